"""Runs that train an adapter: what they keep, what they leave alone, and what they refuse."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from gengen.checkpoints.layout import identity, read, read_tensors
from gengen.cli import main
from gengen.config.schema import build
from gengen.config.train import TrainConfig
from gengen.errors import UserError
from gengen.generation.load import load_generator, load_model, start_from, whole_weights
from gengen.models.gpt import GPT
from gengen.training.build import build_objective
from gengen.training.data import prepare_data
from gengen.training.objectives.preference import DirectPreference
from helpers.runs import last_checkpoint

RHYTHM = ["trainer.max_steps=4", "trainer.eval_every=4", "trainer.save_every=4", "trainer.sample_every=4"]
ADAPTER = ["model.lora.rank=4", "model.lora.targets=q,v,mlp.out"]


def trained(name: str, runs: Path, source: Path, settings: list[str]) -> Path:
    argv = ["train", *settings, *RHYTHM, "data.batch_size=8", f"init_from={source}", f"runs_dir={runs}", f"run={name}"]
    assert main(argv) == 0
    return runs / name


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def story(tiny_alignment: list[str]) -> list[str]:
    return ["data=storygen", "data.max_documents=300", *tiny_alignment]


@pytest.fixture(scope="module")
def stories(tiny_alignment: list[str]) -> list[str]:
    return ["stage=sft", "data=stories", "data.max_examples=60", *tiny_alignment]


@pytest.fixture(scope="module")
def adapted(base: Path, story: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the base beside a run that went on pretraining it by an adapter."""
    runs = tmp_path_factory.mktemp("lora")
    shutil.copytree(base, runs / "base")
    return trained("adapted", runs, runs / "base", [*story, *ADAPTER])


@pytest.fixture
def moved(adapted: Path, tmp_path: Path) -> Path:
    """The same two runs in another folder."""
    shutil.copytree(adapted.parent, tmp_path / "elsewhere")
    return tmp_path / "elsewhere" / "adapted"


def test_a_run_keeps_its_adapter_and_moments_of_it_and_leaves_its_base_as_it_was(base: Path, adapted: Path) -> None:
    assert files(adapted.parent / "base") == files(base)
    saved = read(last_checkpoint(adapted))
    maps = ("attention.qkv.adapters.q", "attention.qkv.adapters.v", "mlp.out.adapters.out")
    names = {f"blocks.{i}.{one}.{part}" for i in (0, 1) for one in maps for part in "AB"}
    assert saved.model.keys() == names == saved.optimizer["state"].keys()
    assert all(tensor.abs().max() > 0 for name, tensor in saved.model.items() if name.endswith("B"))
    source = last_checkpoint(adapted.parent / "base")
    kept = saved.config["model"]["lora"]
    assert (kept["base"], kept["base_sha256"]) == (str(source), identity(source))
    assert not (adapted / "reference").exists()
    before, after = whole_weights(source), whole_weights(last_checkpoint(adapted))
    changed = {name.split(".", 2)[2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"attention.qkv.weight", "mlp.out.weight"}
    qkv = "blocks.0.attention.qkv.weight"
    assert torch.equal(before[qkv][32:48], after[qkv][32:48])  # the keys


def test_it_is_sampled_merged_and_unmerged_and_evaluated(adapted: Path, capsys: Any) -> None:
    texts = []
    for merge in ("true", "false"):
        assert main(["sample", str(adapted), "prompt=Once", f"merge={merge}", "max_tokens=20", "temperature=0"]) == 0
        texts.append(capsys.readouterr().out.rsplit("---\n", 1)[0])
    assert texts[0] == texts[1] and "Once" in texts[0]
    checkpoint, tokens = last_checkpoint(adapted), torch.arange(40)[None]
    merged, apart = (load_model(checkpoint, merge=merge).eval() for merge in (True, False))
    torch.testing.assert_close(merged(tokens), apart(tokens), atol=1e-6, rtol=0)
    assert main(["evaluate", str(adapted)]) == 0
    figures = json.loads((adapted / "evaluation.json").read_text())
    row = (adapted / "metrics.csv").read_text().splitlines()
    last = dict(zip(row[0].split(","), row[-1].split(","), strict=True))
    assert figures["val/loss"] == pytest.approx(float(last["val/loss"]), rel=1e-6)


def test_folders_that_move_together_find_each_other(moved: Path, adapted: Path) -> None:
    shutil.rmtree(adapted.parent / "base")
    try:
        assert load_generator(str(moved), device="cpu")
    finally:
        shutil.copytree(moved.parent / "base", adapted.parent / "base")


def test_a_base_that_is_gone_or_another_is_refused(moved: Path, story: list[str], tmp_path: Path, capsys: Any) -> None:
    config_path, checkpoint = moved / "config.json", last_checkpoint(moved)
    base = last_checkpoint(moved.parent / "base")
    from gengen.checkpoints.layout import write

    saved = read(checkpoint)
    saved.config["model"]["lora"]["base"] = str(base)  # as if it had been trained here
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()
    write(checkpoint, saved)
    config_path.write_text(json.dumps(saved.config))
    capsys.readouterr()
    other = read(base)
    other.model["norm.weight"] += 1
    shutil.rmtree(base)
    base.mkdir()
    write(base, other)
    assert main(["sample", str(moved), "prompt=Once"]) == 2
    assert f"{base} is not the base that this adapter was trained on: its hash is" in capsys.readouterr().err
    shutil.rmtree(moved.parent / "base")
    going_on = ["train", f"runs_dir={moved.parent}", "run=adapted", "trainer.max_steps=6"]
    for argv in (["sample", str(moved), "prompt=Once"], going_on):
        assert main(argv) == 2
        message = capsys.readouterr().err
        assert f"{base}, the base of this adapter, is not there: put it back" in message
        assert message.count("\n") == 1


def test_new_tokens_are_trained_with_what_embeds_them(adapted: Path, stories: list[str]) -> None:
    """Else all would stay the mean of the others, and none could be told from another."""
    run = trained("sft", adapted.parent, adapted, [*stories, *ADAPTER])
    assert "embedding.weight" in read(last_checkpoint(run)).model
    merged = load_model(last_checkpoint(run))
    assert isinstance(merged, GPT)
    known = read_tensors(last_checkpoint(adapted.parent / "base") / "model.safetensors")["embedding.weight"]
    end, user = merged.embedding.weight[merged.vocab_size - 1], merged.embedding.weight[merged.vocab_size - 2]
    assert not torch.equal(end, user) and merged.vocab_size > 0 and len(known)
    loaded = GPT(merged.config)
    start_from(loaded, last_checkpoint(run))  # an adapter upon an adapter: the base is merged
    assert torch.equal(loaded(torch.arange(30)[None]), merged(torch.arange(30)[None]))


BAD = {
    "rank 0": (["model.lora.rank=0"], "model.lora.rank=0 does not fit: model.lora.rank is int or null > 0"),
    "unknown targets": (
        ["model.lora.rank=2", "model.lora.targets=q,o_proj"],
        "model.lora.targets=q,o_proj: o_proj is no map of this model; it has all, q, qkv",
    ),
    "sharded": (
        ["model.lora.rank=2", "trainer.strategy=fsdp"],
        "model.lora.rank: an adapter is not sharded; take trainer.strategy=ddp or auto",
    ),
    "other settings": (["model.lora.rank=2", "model.width=64"], "leave out model.width=64"),
    "a base of one's own": (["model.lora.rank=2", "model.lora.base=runs/x"], "leave out model.lora.base=runs/x"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_answered(case: str, base: Path, story: list[str], tmp_path: Path, capsys: Any) -> None:
    settings, message = BAD[case]
    argv = ["train", *story, *settings, "trainer.max_steps=2", f"init_from={base}", f"runs_dir={tmp_path}", "run=bad"]
    assert main(argv) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


def test_an_adapter_of_nothing_is_refused(story: list[str], tmp_path: Path, capsys: Any) -> None:
    assert main(["train", "model=gpt", *story, *ADAPTER, f"runs_dir={tmp_path}", "trainer.max_steps=2"]) == 2
    assert "model.lora.rank adapts the weights of a run: init_from=runs/NAME" in capsys.readouterr().err


def test_dry_run_says_how_little_is_trained(base: Path, story: list[str], tmp_path: Path, capsys: Any) -> None:
    argv = ["train", *story, *ADAPTER, f"init_from={base}", f"runs_dir={tmp_path}", "dry_run=true"]
    assert main([*argv, "trainer.max_steps=2"]) == 0
    said = capsys.readouterr().out
    trained_parameters = 2 * (4 * (32 + 32) + 4 * (32 + 16) + 4 * (48 + 32))  # q, v and mlp.out of two blocks
    assert f"{trained_parameters / 1e6:.2f} M of them trained" in said


def test_the_reference_without_a_copy_is_that_of_a_copy_exactly(
    adapted: Path, stories: list[str], tiny_alignment: list[str]
) -> None:
    settings = ["stage=dpo", "data=preferences", "data.max_examples=40", *tiny_alignment]
    source = trained("chat", adapted.parent, adapted.parent / "base", stories)
    run = trained("dpo", adapted.parent, source, [*settings, *ADAPTER])
    assert not (run / "reference").exists()
    config = build(TrainConfig, json.loads((run / "config.json").read_text()))
    prepared = prepare_data(config, lambda line: None, read_tokenizer_of(run), None, run)
    objective = build_objective(config, prepared)
    assert isinstance(objective, DirectPreference) and objective.reference
    copy = GPT(objective.model.config)
    start_from(copy, last_checkpoint(source))
    tokens = torch.arange(60).view(2, 30)
    assert torch.equal(objective.reference.network(tokens), copy(tokens))
    shared = {tensor.data_ptr() for tensor in objective.model.state_dict().values()}
    assert {tensor.data_ptr() for tensor in objective.reference.network.state_dict().values()} <= shared
    objective.load_state_dict(read(last_checkpoint(run)).model)
    batch = prepared.batch("val", [0, 1, 2])
    by_itself = objective.loss_sum(batch)
    objective.reference.network = copy
    assert torch.equal(by_itself, objective.loss_sum(batch))
    assert abs(by_itself.item() / 3 - 0.6931) > 1e-5  # the adapter is at work


def read_tokenizer_of(run: Path) -> str | None:
    from gengen.training.data import brought_tokenizer

    return brought_tokenizer(run)


def test_an_adapter_of_other_dimensions_than_its_base_is_refused(moved: Path) -> None:
    from gengen.checkpoints.layout import write

    checkpoint = last_checkpoint(moved)
    saved = read(checkpoint)
    saved.config["model"]["width"] = 2**20
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()
    write(checkpoint, saved)
    with pytest.raises(UserError, match=r"model.width=1048576 is not that of the base .*, 32"):
        load_model(checkpoint)
