"""What an older gengen wrote is read for ever. tests/golden has four steps of eight of one small run in each format;
format-1 was written by one that had the GPT alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F

from gengen.checkpoints import layout as checkpoint_format
from gengen.checkpoints import migrate, store
from gengen.checkpoints.files import to_json
from gengen.checkpoints.layout import digest, read, verify
from gengen.checkpoints.metrics_csv import read_metrics
from gengen.cli import main
from gengen.config.model import GPTConfig
from gengen.config.schema import build, leaves, plain
from gengen.config.train import TrainConfig
from gengen.errors import UserError
from gengen.generation.load import load_generator
from gengen.models.kernels import dropout

GOLDEN = Path(__file__).parents[1] / "golden" / "format-1"
FORMATS = ["format-1", "format-2", "format-3", "format-4"]


def expected(name: str) -> Any:
    return json.loads((GOLDEN.parent / name / "expected.json").read_text())


def copy_of(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run of that format, with its text where its config says."""
    monkeypatch.chdir(folder)
    shutil.copytree(GOLDEN.parent / name, folder / "runs" / "old")
    shutil.copy(GOLDEN / "story.txt", folder)
    return folder / "runs" / "old"


@pytest.fixture
def old_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copy_of("format-1", tmp_path, monkeypatch)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("name", FORMATS)
def test_an_old_checkpoint_samples_what_it_sampled_then(
    name: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_run = copy_of(name, tmp_path, monkeypatch)
    before = content(old_run)
    generator = load_generator(str(old_run), weights=weights, device="cpu")
    prompt = [generator.tokenizer.eot, *generator.tokenizer.encode("Once ")]
    samples = generator.generate([prompt], n=3, seed=5, temperature=0.8, max_tokens=24)
    assert [list(sample.tokens) for sample in samples] == expected(name)["tokens"][weights]
    assert content(old_run) == before


@pytest.mark.fault("F28")
@pytest.mark.parametrize("name", FORMATS)
def test_an_old_run_goes_on_as_it_would_have_then(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its losses are those that the old code came to, with the masks of dropout that torch draws, as it did; what
    today's config has more is at its default."""
    monkeypatch.setattr(dropout, "dropout", F.dropout)
    old_run, then = copy_of(name, tmp_path, monkeypatch), expected(name)
    kept = dict(leaves(migrate.read_config(old_run)))
    assert main(["train", "run=old"]) == 0
    rows = {str(row["step"]): row["train/loss"] for row in read_metrics(old_run / "metrics.csv")}
    assert {step: rows[step] for step in then["train/loss"]} == pytest.approx(then["train/loss"], rel=1e-5)
    newest = store.newest(old_run / "checkpoints")
    assert newest is not None and newest.name == "step-000000008"
    config = dict(leaves(read(newest).config))
    defaults = dict(leaves(plain(build(TrainConfig, {"model": {"name": "gpt"}, "data": {"name": "text"}}))))
    added = config.keys() - kept.keys()
    assert added, "this config has what that of today has: it would show nothing"
    assert {key: config[key] for key in added} == {key: defaults[key] for key in added}


def saved(root: Path, **changes: Any) -> Path:
    """A copy of the old checkpoint, its manifest changed and hashed anew."""
    path = root / "step-000000004"
    shutil.copytree(GOLDEN / "checkpoints" / path.name, path)
    manifest = json.loads((path / "manifest.json").read_text()) | changes
    del manifest["sha256"]
    (path / "manifest.json").write_text(to_json(manifest | {"sha256": digest(manifest)}))
    return path


def formats(monkeypatch: pytest.MonkeyPatch, today: int, steps: dict[int, Any]) -> None:
    for module in (migrate, checkpoint_format):
        monkeypatch.setattr(module, "FORMAT", today)
    monkeypatch.setattr(migrate, "STEPS", steps)


def renamed(key: str, to: str) -> Any:
    return lambda tree: {to if name == key else name: value for name, value in tree.items()}


def test_a_format_2_that_renames_a_key(old_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part is read as the step makes it, by every command; the files stay as they are."""

    def step(config: migrate.Tree) -> migrate.Tree:
        if "rope_theta" not in config["model"]:
            return config
        return config | {"model": renamed("rope_theta", "rope")(config["model"])}

    formats(
        monkeypatch,
        2,
        {1: {"config": step, "state": renamed("evaluated", "looked_at"), "manifest": renamed("data", "texts")}},
    )
    path = old_run / "checkpoints" / "step-000000004"
    before = content(old_run)
    checkpoint = read(path)
    assert checkpoint.config["model"]["rope"] == 10000.0 and "rope_theta" not in checkpoint.config["model"]
    assert checkpoint.state["looked_at"] == 4 and "evaluated" not in checkpoint.state
    assert "texts" in verify(path) and "data" not in checkpoint.facts
    assert (
        migrate.read_config(old_run) == migrate.read_config(path) == checkpoint.config
    )  # the run's own has no number
    with pytest.raises(
        UserError, match=r"unknown key (model\.)?rope="
    ):  # the network of today is built from what the step made
        load_generator(str(old_run), device="cpu")
    assert content(old_run) == before


def test_format_1_could_ask_a_unet_for_cross_attention() -> None:
    """Every UNet's config of format 1 names text_width, an unknown key today; one that has some is refused, not
    changed.
    """
    old = {"model": {"name": "unet", "widths": [32], "text_width": None, "sigma_data": 0.5}, "seed": 1}
    new = migrate.migrated(old, "config", 1)
    assert (
        new == {"model": {"name": "unet", "widths": [32], "sigma_data": 0.5}, "seed": 1}
        and "text_width" in old["model"]
    )
    assert migrate.migrated(new, "config", 1) == new
    with pytest.raises(UserError, match="cross-attention"):
        migrate.migrated({"model": {"name": "unet", "text_width": 12}}, "config", 1)
    today = {"model": {"name": "unet", "text": True, "text_width": 128}}  # the name of another thing
    assert migrate.migrated(today, "config", 1) == today


def test_format_3_has_ratios_by_their_names(old_run: Path) -> None:
    """Values that are nobody's default arrive under the new names; a config of today stays as it is."""
    old = {"final_lr": 0.125, "warmup": 0.25, "decay": 0.375, "lr": 0.5}
    new = migrate.migrated({"optim": old, "seed": 1}, "config", 2)
    ratios = {"final_lr_ratio": 0.125, "warmup_ratio": 0.25, "decay_ratio": 0.375}
    assert new == {"optim": ratios | {"lr": 0.5}, "seed": 1}
    assert migrate.migrated(new, "config", 1) == new
    config = json.loads((old_run / "config.json").read_text())
    (old_run / "config.json").write_text(json.dumps(config | {"optim": config["optim"] | old}))
    optim = build(TrainConfig, migrate.read_config(old_run)).optim
    assert (optim.final_lr_ratio, optim.warmup_ratio, optim.decay_ratio, optim.lr) == (0.125, 0.25, 0.375, 0.5)


def test_format_3_calls_recomputed_activations_what_every_family_calls_them(old_run: Path) -> None:
    new = migrate.migrated({"model": {"name": "gpt", "checkpointing": True, "width": 8}}, "config", 2)
    assert new == {"model": {"name": "gpt", "activation_checkpointing": True, "width": 8}}
    assert migrate.migrated(new, "config", 1) == new
    config = json.loads((old_run / "config.json").read_text())
    (old_run / "config.json").write_text(json.dumps(config | {"model": config["model"] | {"checkpointing": True}}))
    model = build(TrainConfig, migrate.read_config(old_run)).model
    assert isinstance(model, GPTConfig) and model.activation_checkpointing


def test_an_old_name_on_the_command_line_is_answered_with_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    for old, new in (("final_lr", "final_lr_ratio"), ("warmup", "warmup_ratio"), ("decay", "decay_ratio")):
        assert main(["train", "model=gpt", "data=storybook", f"optim.{old}=0.1"]) == 2
        assert f"unknown key optim.{old}=0.1\n  did you mean optim.{new} (float" in capsys.readouterr().err


def test_steps_are_taken_in_order_from_the_format_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats(monkeypatch, 3, {1: {"state": renamed("evaluated", "b")}, 2: {"state": renamed("b", "c")}})
    assert read(saved(tmp_path / "one")).state["c"] == 4
    assert "c" not in read(saved(tmp_path / "two", format=2)).state  # begins at the second
    assert read(saved(tmp_path / "three", format=3)).state["evaluated"] == 4


def test_a_step_that_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formats(monkeypatch, 3, {1: {}})
    with pytest.raises(UserError, match=r"format 2 is not known; known are \[1, 3\]"):
        read(saved(tmp_path / "one"))


@pytest.mark.parametrize("written", [0, -1, None, "1", True, migrate.FORMAT + 1])
def test_numbers_that_no_format_has_are_refused(tmp_path: Path, written: Any) -> None:
    with pytest.raises(UserError, match=f"format {written}"):
        verify(saved(tmp_path, format=written))


def test_what_is_saved_today_needs_no_step() -> None:
    """A new FORMAT comes with a step from the one before, and with a golden checkpoint of its own."""
    assert sorted(migrate.STEPS) == list(range(1, migrate.FORMAT))
    assert [path.name for path in sorted(GOLDEN.parent.glob("format-*"))] == [
        f"format-{n}" for n in range(1, migrate.FORMAT + 1)
    ]
