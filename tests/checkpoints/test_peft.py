"""Adapters in PEFT's layout: bit for bit there and back, and read by PEFT itself where that is installed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gengen.checkpoints.convert.huggingface import layout_of, to_config, to_tensors
from gengen.checkpoints.convert.peft import their_names
from gengen.checkpoints.layout import read, unique_state
from gengen.cli import main
from gengen.config.model import GPTConfig, LoRAConfig
from gengen.generation.load import load_model
from gengen.models.gpt import GPT
from gengen.models.kernels.cross_entropy import IGNORED
from gengen.models.lora import LowRank, adapted_maps, add_adapters
from helpers.runs import last_checkpoint

TOKENS = torch.arange(1, 61).view(2, 30)


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def runs(request: Any, tmp_path_factory: pytest.TempPathFactory, tiny_alignment: list[str]) -> Path:
    """A folder with a base and an adapter of it, whose B are far from 0, exported both ways."""
    runs = tmp_path_factory.mktemp(request.param)
    shape = ["layers=2", "width=32", "heads=4", "kv_heads=2", "ff=48", "context=64", "dropout=0"]
    shape += ["qk_norm=false", "bias=true"] if request.param == "llama" else []
    data = ["data=storygen", "data.max_documents=300", "data.batch_size=4", "trainer.max_steps=4", *tiny_alignment]
    fast = ["optim=adamw", "optim.lr=0.05", f"runs_dir={runs}"]
    assert main(["train", "model=gpt", *data, *fast, *(f"model.{s}" for s in shape), "run=base"]) == 0
    lora = ["model.lora.rank=4", "model.lora.alpha=6", "model.lora.targets=q,v,gate,mlp.out"]
    lora += ["model.lora.rank_stabilized=true"] if request.param == "llama" else []
    assert main(["train", *data, *fast, *lora, f"init_from={runs / 'base'}", "run=adapter"]) == 0
    for run, to in (("base", "hf"), ("adapter", "peft"), ("adapter", "hf")):
        assert main(["export", str(runs / run), f"to={to}", f"out={runs / f'{run}-{to}'}"]) == 0
    return runs


def test_an_adapter_goes_there_and_back_bit_by_bit(runs: Path) -> None:
    assert (
        main(["import_weights", str(runs / "adapter-peft"), "run=back", f"base={runs / 'base'}", f"runs_dir={runs}"])
        == 0
    )
    ours, back = read(last_checkpoint(runs / "adapter")), read(last_checkpoint(runs / "back"))
    assert ours.model.keys() == back.model.keys()
    assert all(torch.equal(ours.model[name], back.model[name]) for name in ours.model)
    one, two = (load_model(last_checkpoint(runs / run)) for run in ("adapter", "back"))
    assert torch.equal(one(TOKENS), two(TOKENS))
    assert main(["export", str(runs / "back"), "to=peft", f"out={runs / 'again'}"]) == 0
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (runs / "again" / name).read_bytes() == (runs / "adapter-peft" / name).read_bytes()


def test_the_names_and_values_are_those_that_peft_writes(runs: Path) -> None:
    found = load_file(runs / "adapter-peft" / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.1"
    model = load_model(last_checkpoint(runs / "adapter"), merge=False)
    by_map = {f"{type(owner).__name__}.{name}": linear.adapters for owner, name, linear in adapted_maps(model)}
    gate = by_map["SwiGLU.gate_up"]["gate"]
    assert isinstance(gate, LowRank)
    assert torch.equal(found[f"{stem}.mlp.gate_proj.lora_A.weight"], gate.A)
    assert torch.equal(found[f"{stem}.mlp.gate_proj.lora_B.weight"], gate.B)
    config = json.loads((runs / "adapter-peft" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "gate_proj", "q_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"], len(found)) == (4, 6, 2 * 4 * 2)


def test_merged_weights_in_transformers_compute_what_the_run_does(runs: Path) -> None:
    transformers = pytest.importorskip("transformers")
    merged = transformers.AutoModelForCausalLM.from_pretrained(runs / "adapter-hf").eval()
    model = load_model(last_checkpoint(runs / "adapter"), merge=False).eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(TOKENS).logits, model(TOKENS), atol=1e-4, rtol=0)


def test_peft_itself_computes_what_the_run_does(runs: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = transformers.AutoModelForCausalLM.from_pretrained(runs / "base-hf")
    plain = base(TOKENS).logits.detach()
    theirs = peft.PeftModel.from_pretrained(base, runs / "adapter-peft").eval()
    ours = load_model(last_checkpoint(runs / "adapter"), merge=False).eval()
    with torch.no_grad():
        assert (theirs(TOKENS).logits - plain).abs().max() > 0.1  # the adapter is at work
        torch.testing.assert_close(theirs(TOKENS).logits, ours(TOKENS), atol=1e-4, rtol=0)
    theirs.save_pretrained(runs / "from-peft")
    assert (
        main(["import_weights", str(runs / "from-peft"), "run=theirs", f"base={runs / 'base'}", f"runs_dir={runs}"])
        == 0
    )
    assert torch.equal(load_model(last_checkpoint(runs / "theirs"), merge=False).eval()(TOKENS), ours(TOKENS))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"peft_type": "IA3"}, "peft_type=IA3 is not supported: LORA is"),
    "biases": ({"bias": "all"}, "bias=all is not supported: none is"),
    "dora": ({"use_dora": True}, "use_dora=True is not supported: plain LoRA is"),
    "ranks by name": ({"rank_pattern": {"q_proj": 8}}, "rank_pattern="),
    "another base": ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa is not supported"),
    "another rank": ({"r": 8}, "has shape"),
    "no rank": ({"r": None}, "r is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_here_is_refused(case: str, runs: Path, tmp_path: Path, capsys: Any) -> None:
    own = json.loads((runs / "adapter-peft" / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(own | REFUSED[case][0]))
    save_file(load_file(runs / "adapter-peft" / "adapter_model.safetensors"), tmp_path / "adapter_model.safetensors")
    argv = ["import_weights", str(tmp_path), "run=no", f"runs_dir={runs}"]
    assert main([*argv, f"base={runs / 'base'}"]) == 2
    assert REFUSED[case][1] in capsys.readouterr().err
    assert not (runs / "no").exists()
    assert main(argv) == 2
    assert "holds an adapter: base=RUN" in capsys.readouterr().err


def test_tensors_that_are_too_many_or_missing_are_named(runs: Path, tmp_path: Path, capsys: Any) -> None:
    tensors = load_file(runs / "adapter-peft" / "adapter_model.safetensors")
    argv = ["import_weights", str(tmp_path), "run=no", f"runs_dir={runs}", f"base={runs / 'base'}"]
    (tmp_path / "adapter_config.json").write_bytes((runs / "adapter-peft" / "adapter_config.json").read_bytes())
    save_file(
        tensors | {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 32)}, tmp_path / "adapter_model.safetensors"
    )
    assert main(argv) == 2
    assert "base_model.model.lm_head.lora_A.weight has no place" in capsys.readouterr().err
    gone = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    save_file({name: t for name, t in tensors.items() if name != gone}, tmp_path / "adapter_model.safetensors")
    assert main(argv) == 2
    assert f"{gone} is missing" in capsys.readouterr().err
    assert main(["export", str(runs / "base"), "to=peft", f"out={tmp_path / 'x'}"]) == 2
    assert "has no adapter, but weights of its own; to=hf writes them" in capsys.readouterr().err


@pytest.mark.parametrize("stabilized", [False, True])
@pytest.mark.parametrize("layout_name", ["llama", "qwen3"])
def test_twenty_steps_are_those_of_peft(layout_name: str, stabilized: bool) -> None:
    """From the same start, on the same batch: the loss of every step."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "ff": 96, "vocab_size": 128, "context": 64}
    c = GPTConfig(**shape, qk_norm=layout_name == "qwen3", residual_init="scaled").resolved()
    ours, layout = GPT(c), layout_of(c)
    config = transformers.AutoConfig.for_model(**to_config(layout, c, 0, 0, "float32"))
    plain = transformers.AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(
        to_tensors(layout, c, {name: t.detach() for name, t in unique_state(ours).items()}), strict=False
    )
    plain.tie_weights()
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    theirs = peft.get_peft_model(
        plain, peft.LoraConfig(r=8, lora_alpha=16, use_rslora=stabilized, target_modules=names)
    )
    add_adapters(ours, LoRAConfig(rank=8, alpha=16.0, rank_stabilized=stabilized))
    own, parameters = unique_state(ours), dict(theirs.named_parameters())
    with torch.no_grad():
        for their_name, (_, our_name) in their_names(layout, c).items():
            parameters[their_name.replace(".weight", ".default.weight")].copy_(own[our_name])
    tokens = torch.randint(128, (4, 32), generator=torch.Generator().manual_seed(3))
    labels = torch.cat([tokens[:, 1:], torch.full((4, 1), IGNORED)], dim=1)
    optimizers = [
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0)
        for model in (ours, theirs)
    ]
    curve = []
    for _ in range(20):
        losses = (ours(tokens, labels=labels) / (4 * 31), theirs(tokens, labels=tokens).loss)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        curve.append([loss.item() for loss in losses])
    found = torch.tensor(curve)
    assert found[0, 0] - found[-1, 0] > 0.5  # it learns
    torch.testing.assert_close(found[:, 0], found[:, 1], atol=1e-5, rtol=0)
