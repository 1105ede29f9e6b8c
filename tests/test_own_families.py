"""The test of the architecture: a network and a modality of one's own, registered from modules outside of gengen, are
trained, stopped, resumed, sampled and evaluated like those inside. The modules are the examples."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import gengen
from gengen.checkpoints.metrics_csv import read_metrics
from gengen.cli import main
from gengen.registry import DATA, MODELS, PLUGINS, STAGES
from helpers.runs import last_checkpoint, same_checkpoint

EXAMPLES = Path(__file__).parents[1] / "examples"
RHYTHM = ["max_steps=14", "save_every=4", "eval_every=7", "sample_every=7", "log_every=1"]
MACHINE = ["trainer.precision=fp32", "trainer.device=cpu", "trainer.threads=1", "trainer.compile=false"]
SMALL = [*(f"trainer.{setting}" for setting in RHYTHM), *MACHINE, "data.batch_size=12", "optim.ema=0.9"]


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The flag that brings the examples' YAML; their modules can be imported, and what they register is forgotten."""
    monkeypatch.syspath_prepend(EXAMPLES)
    for registry in (MODELS, DATA, STAGES):
        monkeypatch.setattr(registry, "entries", dict(registry.entries))
    before = set(PLUGINS)
    yield [f"--config-dir={EXAMPLES / 'configs'}"]
    PLUGINS.intersection_update(before)
    for name in ("own_network", "own_modality"):
        sys.modules.pop(name, None)


def lives(argv: list[str], plugin: str, runs: Path) -> Path:
    """Train, in one go and in three, and compare every file; returns the run."""
    own = f"plugins=[{plugin}]"
    assert main(["train", *argv, own, f"runs_dir={runs}", "run=straight"]) == 0
    assert main(["train", *argv, own, f"runs_dir={runs}", "run=r", "stop_at=5"]) == 0
    assert main(["train", "run=r", own, f"runs_dir={runs}", "stop_at=11"]) == 0
    assert main(["train", "run=r", own, f"runs_dir={runs}"]) == 0
    same_checkpoint(last_checkpoint(runs / "straight"), last_checkpoint(runs / "r"))
    samples = [{p.name: p.read_bytes() for p in (runs / name / "samples").iterdir()} for name in ("straight", "r")]
    assert samples[0] == samples[1] and len(samples[0]) == 2
    rows = read_metrics(runs / "r" / "metrics.csv")
    assert rows[-1]["step"] == 14 and rows[-1]["val/loss"] < rows[6]["val/loss"]  # it learns
    assert json.loads((runs / "r" / "config.json").read_text())["plugins"] == []  # no run names code
    return runs / "r"


def test_a_network_of_ones_own(
    examples: list[str], picture_data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["model.width=32", "model.layers=2", "model.path=edm", "model.prediction=edm", "model.times=lognormal"]
    run = lives(["model=convmixer", *examples, *picture_data, *shape, *SMALL], "own_network", tmp_path)
    plugin = "plugins=[own_network]"
    assert main(["sample", str(run), "n=3", "steps=2", "labels=cross", "guidance=2", plugin]) == 0
    facts = json.loads((run / "samples" / "sample-0" / "samples.json").read_text())
    assert [fact["class"] for fact in facts] == ["cross"] * 3
    images = gengen.load(str(run)).generate(3, ["cross"], steps=2, guidance=2.0)
    assert images.shape == (3, 1, 16, 16) and images.dtype == torch.uint8 and images.float().std() > 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "samples=12", "steps=2", plugin]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["samples"].keys() >= {"fd_smallcnn", "accuracy"} and found["facts"]["n"] == 12
    assert main(["train", "model=convmixer", *examples, *picture_data, *shape, plugin, "dry_run=true"]) == 0
    assert "FLOPs a step" in capsys.readouterr().out


def test_a_modality_of_ones_own(examples: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["data.length=32", "data.count=60", "model.width=16", "model.layers=3", "model.drop_condition=0.2"]
    argv = ["model=signals", "data=waves", *examples, *shape]
    run = lives([*argv, *SMALL], "own_modality", tmp_path)
    plugin = "plugins=[own_modality]"
    assert main(["sample", str(run), "n=3", "steps=2", "labels=square", "seed=4", plugin]) == 0
    folder = run / "samples" / "sample-4"
    with open(folder / "signals.csv") as file:
        written = [[float(number) for number in row] for row in csv.reader(file)]
    drawn = gengen.load(str(run)).generate(5, ["square"], seed=4, steps=2)
    torch.testing.assert_close(torch.tensor(written), drawn[:3], atol=1e-4, rtol=0)  # whatever the batch
    assert [row["class"] for row in json.loads((folder / "samples.json").read_text())] == ["square"] * 3
    capsys.readouterr()
    assert main(["evaluate", str(run), plugin]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    last = read_metrics(run / "metrics.csv")[-1]
    assert found["val/loss"] == pytest.approx(last["val/loss"], rel=1e-6)
    assert found["checkpoint"] == "step-000000014" and set(found) == {"checkpoint", "weights", "val/loss"}
    assert "0." in (run / "report.html").read_text().split("<h2>Samples</h2>")[1].split("<h2>")[0]
    assert main(["train", "model=unet", "data=waves", *examples, plugin]) == 2
    assert "model=unet stage=pretrain is trained on image, data=waves is signal" in capsys.readouterr().err
    assert main(["train", *argv, plugin, "dry_run=true"]) == 0
    assert "FLOPs a step" in capsys.readouterr().out
