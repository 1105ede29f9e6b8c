"""Weights of transformers both ways: what one side wrote computes the same on the other, and what has no place there
is refused.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gengen
from gengen.checkpoints import store
from gengen.checkpoints.convert import huggingface
from gengen.checkpoints.convert.huggingface import LAYOUTS, ends, from_config, layout_of, read_folder
from gengen.checkpoints.layout import Checkpoint, unique_state
from gengen.checkpoints.run import Run
from gengen.cli import main
from gengen.config.model import GPTConfig
from gengen.config.resume import stored
from gengen.config.train import TrainConfig
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.models.gpt import GPT

PROSE = "Once upon a time there was a little bear. The bear ran home, and the fox sang in the wood. "
TOKENIZER = TextTokenizer.train([PROSE * 3], 300)
VOCABULARY = 301  # one id more than there are tokens, and no multiple of 64


@pytest.fixture(scope="module")
def hf() -> Iterator[Any]:
    """transformers, quiet."""
    module = pytest.importorskip("transformers")
    module.utils.logging.disable_progress_bar()
    yield module


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def lively(model: Any, seed: int = 0) -> Any:
    """The model in evaluation mode, with no weight zero or one, as it might be after training."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(
                torch.randn(p.shape, generator=draw) * (0.2 if p.dim() < 2 else p.shape[-1] ** -0.5) + (p.dim() < 2)
            )
    return model.eval()


def logits(model: nn.Module, size: int = VOCABULARY) -> Tensor:
    tokens = torch.randint(size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model(tokens)
    return found if isinstance(found, Tensor) else found.logits


def close(a: Tensor, b: Tensor) -> None:
    assert a.std() > 0.5  # there is something to compare
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


# ---------------------------------------------------------------------------------------------------------- from there

ENDS = {"bos_token_id": 0, "eos_token_id": 0}
GPT2 = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, **ENDS}
LLAMA = {
    "vocab_size": VOCABULARY, "max_position_embeddings": 64, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, **ENDS,
}  # fmt: skip
STRETCHED = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "gpt2 untied": (
        "GPT2",
        GPT2 | {"tie_word_embeddings": False, "n_inner": 40, "activation_function": "gelu_pytorch_tanh"},
    ),
    "llama": ("Llama", LLAMA | {"rms_norm_eps": 1e-5}),
    "llama tied": (
        "Llama",
        LLAMA | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 16},
    ),
    "llama stretched": ("Llama", LLAMA | {"rope_parameters": STRETCHED | {"rope_theta": 100.0}}),
    "llama linear": (
        "Llama",
        LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
    ),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 16, "tie_word_embeddings": True}),
}


def theirs(hf: Any, name: str) -> Any:
    family, config = THEIRS[name]
    model = getattr(hf, f"{family}{'LMHeadModel' if family == 'GPT2' else 'ForCausalLM'}")
    return lively(model(getattr(hf, f"{family}Config")(**config)))


def saved(model: Any, folder: Path, **settings: Any) -> Path:
    """A folder as transformers writes it, with a tokenizer."""
    model.save_pretrained(folder, **settings)
    for name, tree in TOKENIZER.huggingface(64).items():
        (folder / name).write_text(json.dumps(tree))
    return folder


def taken(folder: Path, name: str = "taken") -> Any:
    """The folder imported, and loaded as any run is."""
    assert main(["import_weights", str(folder), f"run={name}"]) == 0
    return gengen.load(f"runs/{name}")


def same_files(a: Path, b: Path) -> None:
    one, two = read_folder(a), read_folder(b)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)


@pytest.mark.parametrize("name", THEIRS)
def test_what_transformers_wrote_computes_the_same_and_goes_back_bit_by_bit(hf: Any, name: str, runs: Path) -> None:
    model = theirs(hf, name)
    sharded = {"max_shard_size": "20KB"} if name in ("llama", "gpt2") else {}
    folder = saved(model, Path("theirs"), **sharded)
    assert (folder / "model.safetensors").exists() != bool(sharded)
    generator = taken(folder)
    close(logits(generator.model), logits(model))
    assert (runs / "taken/checkpoints/LATEST").read_text() == "step-000000000\n"
    assert main(["export", "runs/taken", "out=back"]) == 0
    same_files(folder, Path("back"))
    was, now = (hf.AutoConfig.from_pretrained(f).to_dict() for f in (folder, "back"))
    for facts in (was, now):  # what is of no consequence, or follows from the rest
        for key in (
            "transformers_version",
            "_name_or_path",
            "pad_token_id",
            "pretraining_tp",
            "n_inner",
            "activation_function",
        ):
            facts.pop(key, None)
    assert now == was


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(
        {k: v.contiguous() for k, v in change(load_file(folder / "model.safetensors")).items()},
        folder / "model.safetensors",
    )


def configured(folder: Path, **changes: Any) -> None:
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (found | changes).items() if v != "left out"}))


def test_names_and_words_of_old_files(hf: Any, runs: Path) -> None:
    """GPT-2's own file has no prefix and two buffers a block, and its config.json says little; others hold a tied
    matrix twice.
    """
    model = theirs(hf, "gpt2")
    folder = saved(model, Path("theirs"))
    causal = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
    rewritten(
        folder,
        lambda found: (
            {name.removeprefix("transformer."): tensor for name, tensor in found.items()}
            | {f"h.{i}.attn.bias": causal.clone() for i in range(2)}
            | {"h.0.attn.masked_bias": torch.tensor(-1e4), "lm_head.weight": found["transformer.wte.weight"].clone()}
        ),
    )
    configured(
        folder,
        **dict.fromkeys(
            ("tie_word_embeddings", "n_inner", "resid_pdrop", "scale_attn_weights", "architectures"), "left out"
        ),
    )
    close(logits(taken(folder).model), logits(model))

    stretched = theirs(hf, "llama stretched")
    folder = saved(stretched, Path("old"))
    rope = {("type" if key == "rope_type" else key): value for key, value in STRETCHED.items()}
    configured(
        folder, rope_parameters="left out", rope_scaling=rope, rope_theta=100, head_dim="left out", mlp_bias="left out"
    )
    close(logits(taken(folder, "old").model), logits(stretched))


@pytest.mark.parametrize("name,family", [("gpt2", "GPT2"), ("llama", "Llama"), ("qwen3", "Qwen3")])
def test_what_is_left_out_means_what_transformers_takes_it_to_mean(hf: Any, name: str, family: str) -> None:
    layout, defaults = LAYOUTS[name], getattr(hf, f"{family}Config")()
    said = {key: default for _, key, default in layout.keys if default not in (..., None) and key != "rope_theta"}
    assert said == {key: getattr(defaults, key) for key in said}
    assert all(getattr(defaults, key) == values[0] for key, values in layout.means.items())
    spare = {"model_type": name} | {
        key: 4 if field == "heads" else 256 for field, key, default in layout.keys if default is ...
    }
    _, c = from_config(spare)
    assert (c.ff, c.kv_heads, c.head_size) == (1024 if name == "gpt2" else 256, 4, 128 if name == "qwen3" else 64)


def test_an_imported_run_is_sampled_and_trained_on(
    hf: Any, runs: Path, texts: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken(saved(theirs(hf, "qwen3"), Path("theirs")))
    assert main(["sample", "runs/taken", "prompt=The bear", "max_tokens=5", "n=2"]) == 0
    assert "The bear" in capsys.readouterr().out
    settings = [
        f"data.path={texts}",
        f"data.dir={shared_data}",
        "data.batch_size=2",
        "trainer.max_steps=1",
        "trainer.compile=false",
    ]
    settings += [
        "trainer.device=cpu",
        "trainer.precision=fp32",
        "trainer.threads=1",
        "optim.lr=1e-12",
        "optim.muon_lr=1e-12",
    ]
    assert main(["train", "init_from=runs/taken", "data=text", "run=next", *settings]) == 0
    assert re.search(r"^model  gpt  \d", capsys.readouterr().out, re.MULTILINE), "it is of no size of ours"
    close(logits(gengen.load("runs/next").model), logits(gengen.load("runs/taken").model))
    for argv in (["train", "run=taken"], ["train", "run=taken", "data=text"], ["evaluate", "runs/taken"]):
        capsys.readouterr()
        assert main(argv) == 2
        assert "imported weights: train.py init_from=RUN data=NAME trains on from them" in capsys.readouterr().err
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    assert main(["import_weights", "theirs", "run=taken"]) == 2
    assert "runs/taken exists, and no run is overwritten" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------------------ to there

OURS: dict[str, dict[str, Any]] = {
    "default": {},
    "untied": {"tied": False, "head_size": 24, "norm_eps": 1e-5, "document_token": 0, "z_loss": 1e-4},
    "llama": {"qk_norm": False, "bias": True, "kv_heads": 1, "rope_theta": 500.0},
    "llama stretched": {
        "qk_norm": False,
        "rope_scaling": "llama3",
        "rope_factor": 4.0,
        "rope_context": 32,
        "rope_theta": 100.0,
    },
    "qwen3 linear": {"rope_scaling": "linear", "rope_factor": 2.0, "window": 8, "window_pattern": "L"},
    "gpt2": {
        "positions": "learned",
        "norm": "layernorm",
        "mlp": "gelu",
        "bias": True,
        "qk_norm": False,
        "kv_heads": 4,
        "tied": False,
    },
}


def ours(vocab_size: int = 300, **config: Any) -> GPT:
    small = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "ff": 48, "context": 64, "tied": True}
    return lively(GPT(GPTConfig(**small | {"vocab_size": vocab_size} | config)), seed=2)


def kept(model: GPT, tokenizer: TextTokenizer = TOKENIZER, name: str = "ours", **more: Any) -> Path:
    """A run with these weights."""
    run, tree = Run(Path("runs") / name), stored(TrainConfig(model=model.config))
    store.save(run.checkpoints, Checkpoint(0, tree, unique_state(model), tokenizer=tokenizer.to_json(), **more))
    run.write_config(tree)
    return run.path


@pytest.mark.parametrize("name", OURS)
def test_what_is_exported_computes_the_same_and_comes_back_bit_by_bit(hf: Any, name: str, runs: Path) -> None:
    model = ours(**OURS[name])
    assert main(["export", str(kept(model)), "to=hf", "out=out"]) == 0
    assert {path.name for path in Path("out").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    there = hf.AutoModelForCausalLM.from_pretrained("out")
    close(logits(there, 300), logits(model, 300))
    back = unique_state(taken(Path("out")).model)
    for key, weight in unique_state(model).items():
        rows = 300 if key in ("embedding.weight", "head.weight") else len(weight)
        assert torch.equal(back.pop(key), torch.cat([weight[:rows], torch.zeros_like(weight[rows:])])), key
    assert not back


@pytest.mark.parametrize("kind", ["bpe", "byte"])
def test_a_trained_model_says_the_same_there(hf: Any, kind: str, runs: Path) -> None:
    """A model that has learnt the prose by heart, so that its text is text."""
    tokenizer = TOKENIZER if kind == "bpe" else TextTokenizer.byte()
    model = GPT(ours(tokenizer.vocab_size).config)
    row = [tokenizer.eot, *tokenizer.encode(PROSE), tokenizer.eot]
    tokens = torch.tensor([row[: model.config.context]])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):  # 40 are enough on some processors, and one letter short on others
        optimizer.zero_grad()
        model(tokens[:, :-1], labels=tokens[:, 1:]).backward()
        optimizer.step()
    assert main(["export", str(kept(model, tokenizer)), "out=out"]) == 0
    there, spelling = hf.AutoModelForCausalLM.from_pretrained("out"), hf.AutoTokenizer.from_pretrained("out")
    for prompt in ("Once upon a", "The bear", ""):
        (sample,) = gengen.load("runs/ours").generate(prompt, max_tokens=25, temperature=0)
        given = spelling(prompt, return_tensors="pt")
        assert given["input_ids"].tolist() == [[tokenizer.eot, *tokenizer.encode(prompt)]]
        text = spelling.decode(
            there.generate(**given, max_new_tokens=25, do_sample=False)[0], skip_special_tokens=True
        )
        assert text == prompt + sample.text
    assert PROSE.startswith(
        "Once upon a" + gengen.load("runs/ours").generate("Once upon a", max_tokens=5, temperature=0)[0].text
    )
    for text in (PROSE, " two  spaces\n\tnaïve 日本 🙂 .", "it 's , n't"):
        assert spelling(text)["input_ids"][1:] == tokenizer.encode(text)
        assert spelling.decode(tokenizer.encode(text)) == text
    assert spelling("x", "y")["input_ids"] == [0, *tokenizer.encode("x"), 0, *tokenizer.encode("y")]


def test_other_number_formats_and_the_averaged_weights(
    hf: Any, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, average = ours(), lively(GPT(ours().config), seed=5)
    kept(model, ema=unique_state(average))
    assert main(["export", "runs/ours", "out=half", "dtype=bf16", "weights=raw"]) == 0
    tensors = load_file("half/model.safetensors")
    assert torch.equal(tensors["model.norm.weight"], model.norm.weight.detach().bfloat16())
    assert hf.AutoModelForCausalLM.from_pretrained("half").dtype == torch.bfloat16
    assert main(["export", "runs/ours", "out=average"]) == 0
    assert torch.equal(load_file("average/model.safetensors")["model.norm.weight"], average.norm.weight.detach())
    taken(Path("half"), "half")
    assert main(["export", "runs/half", "out=again", "dtype=bf16"]) == 0
    same_files(Path("half"), Path("again"))
    with torch.no_grad():
        model.norm.weight[0] = 1e5
    kept(model, name="large")
    assert main(["export", "runs/large", "out=large", "dtype=fp16"]) == 2
    assert "model.norm.weight is not finite in dtype=fp16" in capsys.readouterr().err and not Path("large").exists()
    assert main(["export", "runs/large", "out=half"]) == 2
    assert "out=half exists and is not an empty folder; nothing is overwritten" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- the tests above would
# notice


def interleaved(weight: Tensor) -> Tensor:
    """Rows of heads of 8 in the order of the other form of rotary positions: pairs side by side."""
    return weight.view(-1, 2, 4, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


BUGS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "pairs side by side": lambda found: {
        k: interleaved(v) if "q_proj" in k or "k_proj" in k else v for k, v in found.items()
    },
    "gate and up exchanged": lambda f: {
        (k.replace("up", "gate") if "up" in k else k.replace("gate", "up")): v for k, v in f.items()
    },
    "one head of keys moved": lambda f: {k: v.roll(8, 0) if "k_proj" in k else v for k, v in f.items()},
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_wrong_order_of_rows_would_be_noticed(hf: Any, bug: str, runs: Path) -> None:
    model = theirs(hf, "llama")
    rewritten(saved(model, Path("theirs")), BUGS[bug])
    assert (logits(taken(Path("theirs")).model) - logits(model)).abs().max() > 0.1


def test_square_matrices_not_transposed_would_be_noticed(hf: Any, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = theirs(hf, "gpt2")
    saved(model, Path("theirs"))
    monkeypatch.setattr(huggingface, "TURNED", huggingface.re.compile(r".*\.(c_attn|c_fc|mlp\.c_proj)\.weight"))
    assert (logits(taken(Path("theirs")).model) - logits(model)).abs().max() > 0.1


def test_a_lost_tie_would_be_noticed(hf: Any, runs: Path) -> None:
    model = ours()
    assert main(["export", str(kept(model)), "out=out"]) == 0
    assert "lm_head.weight" not in load_file("out/model.safetensors")
    configured(Path("out"), tie_word_embeddings=False)
    there = hf.AutoModelForCausalLM.from_pretrained("out")
    assert (logits(there, 300) - logits(model, 300)).abs().max() > 0.1


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "config,words",
    [
        ({"mlp": "relu2"}, "the nearest, qwen3, not for model.mlp=relu2 (it has swiglu)"),
        ({"norm": "layernorm"}, "model.norm=layernorm (it has rmsnorm)"),
        ({"logit_softcap": 15.0}, "model.logit_softcap=15.0 (it has None)"),
        ({"window": 8}, "model.window=8 (it has None)"),
        ({"bias": True}, "qwen3, not for model.bias=True (it has False)"),
        (
            {"positions": "learned"},
            "gpt2, not for model.norm=rmsnorm (it has layernorm), model.mlp=swiglu (it has gelu), model.qk_norm=True",
        ),
        (
            OURS["gpt2"] | {"kv_heads": 2, "head_size": 16},
            "gpt2, not for model.kv_heads=2 (it has 4), model.head_size=16 (it has 8)",
        ),
        (
            {"qk_norm": False, "heads": 3, "kv_heads": 1, "head_size": 8},
            "llama, not for model.heads=3 (it has a divisor of width)",
        ),
    ],
)
def test_models_that_no_layout_can_hold(config: dict[str, Any], words: str) -> None:
    dimensions = {"width": 32, "heads": 4, "kv_heads": 2}
    with pytest.raises(UserError) as error:
        layout_of(GPTConfig(**dimensions | config).resolved())
    assert words in str(error.value)


@pytest.mark.parametrize(
    "change,words",
    [
        ({"model_type": "mistral"}, "model_type=mistral is not supported: gpt2, llama, qwen3 are"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu is not supported: silu is"),
        ({"mlp_bias": True}, "mlp_bias=True does not go with attention_bias=False"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "32"}, "width='32' does not fit: width is int"),
        ({"num_attention_heads": 5}, "heads=5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rotary positions of type yarn"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0, "odd": 1}}, "rotary positions of type linear"),
        ({"rope_scaling": "linear"}, "rotary positions of type linear"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rotary positions of type default"),
        ({"partial_rotary_factor": 0.5}, "rotary positions"),
        ({"model_type": "qwen3", "use_sliding_window": True}, "use_sliding_window=True is not supported: False is"),
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias=True is not supported: False is"),
        (
            GPT2 | {"model_type": "gpt2", "activation_function": "relu"},
            "activation_function=relu is not supported: gelu_new or gelu_pytorch",
        ),
        (
            GPT2 | {"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx=True is not supported",
        ),
    ],
)
def test_models_that_gengen_has_not(change: dict[str, Any], words: str) -> None:
    from_config({"model_type": "llama"} | LLAMA)
    with pytest.raises(UserError) as error:
        from_config({"model_type": "llama"} | LLAMA | change)
    assert words in str(error.value)


def broken(folder: Path, how: str) -> None:
    """Spoil a folder that could be imported."""
    path, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if how == "pickle":
        path.rename(folder / "pytorch_model.bin")
    elif how == "bytes":
        path.write_bytes(path.read_bytes()[:-40])
    elif how == "header":
        path.write_bytes(b"\xff" * 100)
    elif how in ("shard", "escape", "list"):
        path.rename(folder.parent / "model.safetensors")
        file = {"shard": "model-00002.safetensors", "escape": "../model.safetensors", "list": ["model.safetensors"]}[
            how
        ]
        index.write_text(json.dumps({"weight_map": {"model.norm.weight": file}}))
    elif how == "lacking":
        path.rename(folder / "one.safetensors")
        index.write_text(json.dumps({"weight_map": {"model.odd.weight": "one.safetensors"}}))
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "no end":
        (folder / "tokenizer_config.json").unlink()
        (folder / "generation_config.json").unlink()
        configured(folder, eos_token_id=None)
    elif how == "settings":
        (folder / "generation_config.json").write_text("[]")
    elif how == "layers":
        configured(folder, num_hidden_layers=10**9)
    elif how == "size":
        configured(folder, vocab_size=10**30)
    else:
        changes: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
            "missing": lambda f: {k: v for k, v in f.items() if k != "model.layers.1.mlp.up_proj.weight"},
            "extra": lambda f: f | {"model.layers.0.self_attn.q_norm.weight": torch.ones(8), "twice": torch.ones(1)},
            "shape": lambda f: f | {"model.norm.weight": torch.ones(31)},
            "int8": lambda f: f | {"model.norm.weight": torch.ones(32, dtype=torch.int8)},
            "twice": lambda f: f | {"norm.weight": torch.ones(32)},
            "tie": lambda f: f | {"lm_head.weight": f["model.embed_tokens.weight"] + 1},
        }
        rewritten(folder, changes[how])
        if how == "tie":
            configured(folder, tie_word_embeddings=True)


BROKEN = {
    "pickle": "has no model.safetensors; its pytorch_model.bin is not read, as that could run code",
    "bytes": "model.safetensors is damaged",
    "header": "model.safetensors is damaged",
    "shard": "model-00002.safetensors is damaged",
    "escape": "weight_map must name a file of this folder for each tensor",
    "list": "weight_map must name a file of this folder for each tensor",
    "lacking": "one.safetensors is damaged: model.odd.weight is missing, "
    "which model.safetensors.index.json says it holds",
    "no tokenizer": "there is no tokenizer.json",
    "no end": "eos_token_id is missing: nothing says which token ends a text",
    "settings": "generation_config.json is damaged: not a JSON object",
    "layers": "config.json describes no model (layers=1000000000)",
    "size": "config.json describes no model",
    "missing": "the weights are not what config.json describes: model.layers.1.mlp.up_proj.weight is missing",
    "extra": "model.layers.0.self_attn.q_norm.weight has no place in this model; "
    "model.twice has no place in this model",
    "shape": "model.norm.weight is (31,), not (32,)",
    "int8": "model.norm.weight is torch.int8: quantized weights are not supported",
    "twice": "norm.weight has no place in this model",
    "tie": "lm_head.weight has no place in this model",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A folder that can be imported, file by file; made without transformers."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["export", str(kept(ours(VOCABULARY, qk_norm=False, tied=False))), "out=out"]) == 0
    return {path.name: path.read_bytes() for path in (root / "out").iterdir()}


@pytest.mark.parametrize("how", BROKEN)
def test_folders_that_are_refused(
    how: str, whole: dict[str, bytes], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("folder")
    folder.mkdir()
    for name, content in whole.items():
        (folder / name).write_bytes(content)
    broken(folder, how)
    assert main(["import_weights", "folder", "run=taken"]) == 2
    error = capsys.readouterr().err
    assert BROKEN[how] in error and error.startswith("error: folder cannot be imported: ") and not runs.exists()


def test_mistakes_on_the_command_line(whole: dict[str, bytes], runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept(ours())
    for argv, words in [
        (["import_weights"], "python scripts/import_weights.py FOLDER run=NAME"),
        (["import_weights", "nowhere", "run=x"], "nowhere holds no model: there is no config.json in it"),
        (["import_weights", "runs/ours", "run=../x"], "run=../x cannot name a run"),
        (["import_weights", "runs/ours", "run=x"], "model_type=None is not supported"),
        (["export"], "which run? python scripts/export.py runs/NAME"),
        (["export", "runs/ours"], "where to? python scripts/export.py runs/NAME to=hf out=FOLDER"),
        (["export", "runs/ours", "out=no/such/folder"], "out=no/such/folder: no such folder no/such"),
        (["export", "runs/ours", "out=x", "to=onnx"], "to='onnx' does not fit: to is str one of hf"),
        (["export", "runs/ours", "out=x", "dtype=int8"], "dtype is str one of fp32, bf16, fp16"),
        (["export", "runs/ours", "out=x", "checkpoint=7"], "checkpoint=7"),
    ]:
        assert main(argv) == 2
        assert words in capsys.readouterr().err
    assert not Path("x").exists() and not (runs / "x").exists()
    for command in ("import_weights", "export"):
        assert main([command, "--help"]) == 0
        assert f"python scripts/{command}.py" in capsys.readouterr().out


def test_the_ends_of_a_text() -> None:
    gpt2 = {"bos_token_id": 50256, "eos_token_id": 50256}
    assert ends({"model_max_length": 1024}, gpt2, {}) == (50256, [50256])
    instruct = {"bos_token": {"content": "<|begin_of_text|>", "special": True}, "eos_token": "<|eot_id|>"}
    several = {"bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009]}
    assert ends(instruct, several, several) == ("<|begin_of_text|>", ["<|eot_id|>", 128001, 128008, 128009])
    assert ends({"bos_token": None, "eos_token": "<|im_end|>"}, {"bos_token_id": 151643}, {}) == (
        151643,
        ["<|im_end|>"],
    )
    assert ends({}, {}, {"eos_token_id": [2, 3]}) == (2, [2, 3])
    with pytest.raises(UserError, match="eos_token_id is missing"):
        ends({}, {"eos_token_id": []}, {})


def test_every_end_of_an_imported_model_ends_a_text_and_goes_back(
    hf: Any, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Llama 3 and Qwen have it: one end in the tokenizer, others in generation_config.json; the first is the one
    trained on.
    """
    model = theirs(hf, "llama")
    model.generation_config.eos_token_id = [7, 0, 9]
    generator = taken(saved(model, Path("theirs")))
    assert (generator.tokenizer.eot, generator.tokenizer.ends) == (0, (0, 7, 9))
    for end, reason in ((0, "end"), (7, "end"), (9, "end"), (8, "length")):
        (sample,) = generator.generate("a", max_tokens=3, logit_bias={end: 1e4})
        assert (sample.finish_reason, sample.tokens) == (reason, [8, 8, 8] if end == 8 else [])
    assert main(["export", "runs/taken", "out=back"]) == 0
    again = hf.AutoModelForCausalLM.from_pretrained("back")
    assert again.config.eos_token_id == again.generation_config.eos_token_id == [0, 7, 9]
    assert hf.AutoTokenizer.from_pretrained("back").eos_token_id == again.generation_config.pad_token_id == 0
    assert taken(Path("back"), "again").tokenizer.to_json() == generator.tokenizer.to_json()
    configured(Path("back"), eos_token_id=[0, VOCABULARY])
    assert main(["import_weights", "back", "run=more"]) == 2
    wrong = f"end with '<|endoftext|>' or 0 or {VOCABULARY} or 7 or 9, which are not all among its tokens"
    assert wrong in capsys.readouterr().err


def test_a_tokenizer_that_came_with_weights_goes_back_with_them(hf: Any, runs: Path) -> None:
    """As transformers writes those of GPT-2, Llama and Qwen, at the start of whose texts is nothing, <s> and
    nothing."""
    vocabulary = json.loads(TOKENIZER.to_json())["model"]
    merges = [tuple(pair) for pair in vocabulary["merges"]]
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        *"abehrt",
        "he",
        "\u2581t",
        "\u2581the",
    ]
    llama = hf.LlamaTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[("h", "e"), ("\u2581", "t"), ("\u2581t", "he")],
        add_bos_token=True,
    )
    for spelling, start, end, beginning in (
        (hf.GPT2Tokenizer(vocab=vocabulary["vocab"], merges=merges), 0, 0, []),
        (hf.Qwen2Tokenizer(vocab=vocabulary["vocab"], merges=merges), 0, 0, []),
        (llama, 1, 2, [1]),
    ):
        name = type(spelling).__name__
        model = ours(VOCABULARY)
        assert main(["export", str(kept(model, name=f"{name}-0")), f"out={name}"]) == 0
        (Path(name) / "tokenizer_config.json").unlink()
        spelling.save_pretrained(name)
        tokenizer = taken(Path(name), name).tokenizer
        assert (tokenizer.start, tokenizer.eot, tokenizer.vocab_size) == (start, end, VOCABULARY)
        assert main(["export", f"runs/{name}", f"out=back-{name}"]) == 0
        again = hf.AutoTokenizer.from_pretrained(f"back-{name}")
        for text in ("the bear ate the tree", "Once upon\n a  time", "naïve 日本 🙂"):
            assert again(text)["input_ids"] == beginning + tokenizer.encode(text) == spelling(text)["input_ids"]
            assert (
                tokenizer.decode(tokenizer.encode(text)).removeprefix(" ")
                == text
                == again.decode(tokenizer.encode(text))
            )
        assert (again.bos_token_id, again.eos_token_id) == (start, end)
