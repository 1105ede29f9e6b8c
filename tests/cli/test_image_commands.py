"""The commands on images: one line of a mistake, and figures of the weights that were asked for."""

import json
from pathlib import Path

import pytest

from gengen.checkpoints.metrics_csv import read_metrics
from gengen.cli import main

SMALL = [
    "model.widths=[32]", "model.blocks=1", "model.attention=[0]", "model.patch=4", "optim.ema=0.9",
    "data.batch_size=12",
    "trainer.max_steps=8", "trainer.save_every=8", "trainer.eval_every=8", "trainer.sample_every=8",
    "trainer.log_every=4",
    "trainer.precision=fp32", "trainer.device=cpu", "trainer.threads=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(picture_data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("image-runs")
    assert main(["train", "model=unet", *picture_data, *SMALL, f"runs_dir={runs}", "run=r"]) == 0
    return runs / "r"


def test_evaluate_measures_the_weights_it_is_asked_for(run: Path) -> None:
    """The average, as training's last evaluation did; the raw weights differ from it."""
    losses = {}
    for weights in ("ema", "raw"):
        assert main(["evaluate", str(run), f"weights={weights}", "samples=12", "steps=2"]) == 0
        losses[weights] = json.loads((run / "evaluation.json").read_text())["val/loss"]
    assert losses["ema"] == pytest.approx(
        read_metrics(run / "metrics.csv")[-1]["val/loss"], rel=1e-6
    )  # the file keeps seven digits
    assert losses["raw"] != pytest.approx(losses["ema"], rel=1e-4)


def test_evaluation_says_floor_and_ceiling_beside_the_samples(run: Path) -> None:
    assert main(["evaluate", str(run), "samples=10", "steps=2", "guidance=2", "seed=3"]) == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert found["settings"]["guidance"] == 2 and found["facts"]["seed"] == 3
    assert {"fd_smallcnn", "kid_smallcnn", "coverage", "accuracy", "auth_pct"} <= set(found["samples"]) & set(
        found["real"]
    )
    assert found["real"]["fd_smallcnn"] == found["floor"]["fd_smallcnn"]["real"] < found["noise"]["fd_smallcnn"]
    assert (run / "evaluation" / "samples.png").exists() and (run / "evaluation" / "nearest.png").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "model=unet"], ["tinystories", "data=animals"]),
        (["train", "data=animals"], ["model=gpt", "trained on text"]),
        (["train", "model=ldm", "data=animals"], ["model.codec=runs/NAME"]),
        (["train", "model=ldm", "data=animals", "model.codec=runs/nosuch"], ["no run 'runs/nosuch'"]),
        (["train", "model=unet", "data=animals", "model.path=flwo"], ["flow"]),
        (["train", "model=unet", "data=animals", "model.prediction=eps"], ["velocity"]),
        (["train", "model=unet", "data=animals", "model.widths=64,x"], ["list of int"]),
        (
            ["train", "model=gan", "data=animals", "model.augment=colour,cutout"],
            ["'colour'", "color, translation, cutout"],
        ),
        (["train", "model=gan", "data=animals", "model.loss=wgan"], ["relativistic"]),
        (["train", "model=dcgan", "data=animals", "model.gamma=1"], ["model=gan"]),
    ],
)
def test_a_mistake_is_one_message(argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words) and "Traceback" not in error, error


def test_sampling_mistakes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, words in (
        (["labels=crss"], "cross"),
        (["sampler=heum"], "heun"),
        (["prompt=hello"], "prompt='hello': this run knows 3 classes and no texts: labels=circle;"),
        (["negative=hello"], "negative='hello': this run knows 3 classes and no texts: labels=circle;"),
        (["what=remix", "prompt=a", "prompt=b"], "prompt='a': this run knows 3 classes and no texts: labels=circle;"),
        (["what=remix", "prompt=a"], "what=remix takes two prompts, not 1"),
        (["what=guidance", "guidance=2"], "leave guidance out"),
        (["what=guidance", "guidances=1,x"], "guidances is list of float >= 0"),
        (["what=guidance", "guidances=1,-2"], "guidances is list of float >= 0"),
        (["what=guidance", "guidances=nan"], "guidances is list of float >= 0"),
        (["what=guidance", "guidances="], "guidances=1,2,4,8"),
        (["steps=0"], "steps"),
    ):
        assert main(["sample", str(run), *argv]) == 2
        assert words in capsys.readouterr().err, argv


def test_pictures_from_words(text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A prompt is taken as it stands, commas and all; a word nobody knows is named, and drawn."""
    out, few = tmp_path / "drawn", ["steps=2", "sampler=ddim", "device=cpu"]
    assert main(["sample", str(text_run), "prompt=a red circle, big", "prompt=[1]", "n=2", f"out={out}", *few]) == 0
    assert "never seen in training: big" in capsys.readouterr().out
    facts = json.loads((out / "samples.json").read_text())
    assert [f["prompt"] for f in facts] == ["a red circle, big"] * 2 + ["[1]"] * 2
    scales = ["what=guidance", "guidances=1,2.5", "prompt=a red circle", "n=1", f"out={tmp_path / 'scales'}"]
    assert main(["sample", str(text_run), *scales, *few]) == 0
    assert [f["guidance"] for f in json.loads((tmp_path / "scales" / "samples.json").read_text())] == [1.0, 2.5]
    remix = ["what=remix", "prompt=a red circle", "prompt=a blue square", "pictures=3", "n=2"]
    assert main(["sample", str(text_run), *remix, f"out={tmp_path / 'remix'}", *few]) == 0
    assert (tmp_path / "remix" / "remix.gif").exists()


def test_mistakes_of_prompts(text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, words in (
        (["labels=cat"], 'labels=cat: this run knows texts and no classes: prompt="a cat"'),
        (["prompt=" + "circle " * 60], "model.text_context - 1 = 31"),
        (["prompt=a", "negative=b", f"guide={text_run}"], "leave out one"),
    ):
        assert main(["sample", str(text_run), f"out={tmp_path / 'no'}", "device=cpu", *argv]) == 2
        error = capsys.readouterr().err
        assert words in error and "Traceback" not in error, error
    assert not (tmp_path / "no").exists()


def test_a_codec_must_be_an_autoencoder_of_such_images(
    run: Path, picture_data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "model=ldm", f"model.codec={run}", *picture_data, f"runs_dir={tmp_path}"]) == 2
    assert "no autoencoder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_new_run_starts_from_another_of_images(
    run: Path, picture_data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The family may be named beside init_from, which brings the recipe along; its shape may not be."""
    few = [setting for setting in SMALL if not setting.startswith("model.")]
    argv = ["train", *picture_data, *few, f"init_from={run}", f"runs_dir={tmp_path}"]
    assert main([*argv, "model=unet", "run=next", "stop_at=1", "optim.lr=1e-9"]) == 0
    assert json.loads((tmp_path / "next" / "config.json").read_text())["model"]["widths"] == [32]
    for wrong in ("model=gan", "model.patch=2"):
        assert main([*argv, "model=unet", wrong, "run=other"] if "." in wrong else [*argv, wrong, "run=other"]) == 2
        assert f"a unet; leave out {wrong}" in capsys.readouterr().err
