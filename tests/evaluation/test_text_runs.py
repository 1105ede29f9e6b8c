"""A tiny run of text, evaluated and sampled by the commands."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gengen.cli import main
from gengen.evaluation import judges, retrieval
from gengen.evaluation.attribute_judge import AttributeJudge
from gengen.registry import IMAGE_REWARDS, SOURCES
from helpers.captioned_pictures import SETTINGS, UNSEEN


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("text-runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES["image"], "made-up-shapes", "helpers.captioned_pictures:Shapes")
        patch.setitem(IMAGE_REWARDS, "redness", f"{__name__}:redness")
        patch.setattr(judges, "SEEN", 800)
        patch.setattr(retrieval, "SEEN", 400)
        patch.setattr(AttributeJudge, "SEEN", 5000)
        assert main(["train", *SETTINGS, f"data.dir={folder}", f"runs_dir={folder}", "run=r"]) == 0
        yield folder / "r"


def redness(data, say):
    """A reward of one's own, which needs no data."""
    return lambda images, prompts: images[:, 0].double().mean((1, 2)) - images[:, 1].double().mean((1, 2))


def test_evaluation_of_a_run_of_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "samples=12", "prompts=12", "steps=1", "sampler=ddim", "seed=3"]) == 0
    found, said = json.loads((run / "evaluation.json").read_text()), capsys.readouterr().out
    # distances: samples of the captions of held-out images beside the floor, as of any run
    assert found["facts"]["n"] == 12 and {"samples", "real", "noise", "floor"} <= set(found)
    assert found["settings"]["sampler"] == "ddim"
    # prompts: each figure beside floor and ceiling
    prompts = found["prompts"]
    assert prompts["n"] == {"seen": 6, "unseen": 6} and prompts["judge"]["real"] >= 0.99
    assert set(prompts["rows"]) == {"colour", "shape", "colour x shape"}
    for row in prompts["rows"].values():
        assert row["gap"] == row["seen"]["accuracy"] - row["unseen"]["accuracy"]
        assert row["unseen"]["n"] == 6 and row["unseen"]["ceiling"] >= 0.8
    assert "colour x shape" in said and "floor" in said and "ceiling" in said
    for name in ("samples.png", "prompts.png", "nearest.png"):
        with Image.open(run / "evaluation" / name) as image:
            assert image.width > 64


def test_words_are_judged_without_samples_too(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "samples=0", "prompts=4", "steps=1", "sampler=ddim"]) == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert found["prompts"]["n"] == {"seen": 2, "unseen": 2} and "samples" not in found
    assert "prompts: 2 seen and 2 unseen captions" in capsys.readouterr().out


def test_each_image_is_drawn_by_its_caption_from_noise_of_its_own(run: Path) -> None:
    import gengen
    from gengen.config.commands import EvaluateConfig

    generator = gengen.load(str(run))
    config = EvaluateConfig(run=str(run), steps=1, sampler="ddim", seed=5, batch_size=2)
    sampler = generator.image_sampler(config)
    assert sampler.captions
    texts = ["red cross", "blue ring", "red cross"]
    images = sampler(texts)
    for i, text in enumerate(texts):
        alone = generator.generate(1, prompts=text, seed=5, first=i, steps=1, sampler="ddim")
        assert (images[i].int() - alone[0].int()).abs().max() <= 1
    assert not torch.equal(images[0], images[2])


def test_held_out_combinations_are_those_that_are_unseen(run: Path) -> None:
    from gengen.config.commands import EvaluateConfig
    from gengen.training.evaluate import images_of

    prepared = images_of(EvaluateConfig(run=str(run)), print)
    combinations = {tuple(thing.attributes.values()) for row in prepared.val.descriptions for thing in row.things}
    shown = {tuple(thing.attributes.values()) for row in prepared.train.descriptions for thing in row.things}
    assert len(combinations) == len(UNSEEN) and not combinations & shown


def test_sample_keeps_the_best_by_a_reward_of_ones_own(run: Path, tmp_path: Path) -> None:
    """Four of three each: those of index 0 .. 11 with the highest reward of their three."""
    how = ["steps=1", "sampler=ddim", "seed=1", "animation=false"]
    assert main(["sample", str(run), "n=12", f"out={tmp_path / 'all'}", *how]) == 0
    assert main(["sample", str(run), "n=4", "best_of=3", "reward=redness", f"out={tmp_path / 'best'}", *how]) == 0
    rewards = []
    for i in range(12):
        with Image.open(tmp_path / "all" / f"{i:05}.png") as image:
            red, green, _ = np.asarray(image, np.float64).mean((0, 1))
            rewards.append(red - green)
    facts = json.loads((tmp_path / "best" / "samples.json").read_text())
    wanted = [max(range(i, i + 3), key=lambda j: rewards[j]) for i in range(0, 12, 3)]
    assert [fact["index"] for fact in facts] == wanted
    assert [fact["reward"] for fact in facts] == pytest.approx([rewards[i] for i in wanted], abs=1e-3)


def test_an_unknown_reward_is_one_message(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(run), "best_of=2", "reward=follow_prompt"]) == 2
    assert "follows_prompt" in capsys.readouterr().err
