"""A judge is made once, is the same ever after, and looks at nothing but the training split."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gengen.evaluation import judges
from gengen.evaluation.judges import ImageClassifierJudge, accuracy, augmented, judge_for
from gengen.generation.image.files import to_float
from helpers.made_up_pictures import Split, draw


def home(prepared) -> Path:
    return Path(prepared.config.dir) / "judges" / f"smallcnn-{prepared.fingerprint[:16]}"


def weights(judge: ImageClassifierJudge) -> dict[str, bytes]:
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in judge.state_dict().items()}


@pytest.fixture
def copy(prepared, judge, tmp_path):
    """The prepared data with its judge, in a folder that a test may spoil."""
    there = replace(prepared, config=type(prepared.config)(**vars(prepared.config) | {"dir": str(tmp_path)}))
    home(there).mkdir(parents=True)
    for file in home(prepared).iterdir():
        (home(there) / file.name).write_bytes(file.read_bytes())
    return there


@pytest.fixture
def no_training(monkeypatch):
    def refuse(prepared):
        raise AssertionError("trained")

    monkeypatch.setattr(judges, "train", refuse)


def test_it_learns_and_says_how_often_it_is_right(prepared, judge) -> None:
    assert judge.facts["accuracy"] > 0.95 and judge.facts["held_out"] == 150
    right = (judge.logits(prepared.val.images).argmax(1) == prepared.val.labels).double().mean().item()
    assert right == judge.facts["accuracy"] == json.loads((home(prepared) / "judge.json").read_text())["accuracy"]


def test_it_is_read_back_bit_equal_and_not_trained_again(prepared, judge, no_training) -> None:
    again = judge_for(prepared, lambda line: None)
    assert weights(again) == weights(judge)
    assert torch.equal(again.features(prepared.val.images), judge.features(prepared.val.images))


def test_training_it_again_gives_the_same_whatever_is_held_out_and_touches_no_generator(prepared, judge) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    other = replace(prepared, val=Split(255 - prepared.val.images, 2 - prepared.val.labels))
    assert weights(judges.train(other)) == weights(judge)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("what", ["a byte of the weights", "a missing file", "half a JSON", "another recipe"])
def test_a_judge_that_is_not_as_written_is_made_again(copy, judge, what: str, monkeypatch) -> None:
    monkeypatch.setattr(judges, "train", lambda prepared: judge)
    file = home(copy) / ("judge.safetensors" if what in ("a byte of the weights", "a missing file") else "judge.json")
    raw = bytearray(file.read_bytes())
    if what == "a missing file":
        file.unlink()
    elif what == "a byte of the weights":
        raw[-1] ^= 1
        file.write_bytes(raw)
    else:
        file.write_bytes(
            raw[: len(raw) // 2] if what == "half a JSON" else raw.replace(b'"seed": 7919', b'"seed": 7920')
        )
    said: list[str] = []
    assert weights(judge_for(copy, said.append)) == weights(judge)
    assert file.name in said[0] and "preparing it again" in said[0]
    assert sorted(p.name for p in home(copy).parent.iterdir() if p.is_dir()) == [home(copy).name]


def test_nothing_is_left_half_written(copy, judge, monkeypatch) -> None:
    """Killed at the last moment before the rename, there is no judge; the next one is made whole."""
    for file in home(copy).iterdir():
        file.unlink()
    home(copy).rmdir()
    monkeypatch.setattr(judges, "train", lambda prepared: judge)

    def killed(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", killed)
        judge_for(copy, lambda line: None)
    assert not home(copy).exists()
    assert weights(judge_for(copy, lambda line: None)) == weights(judge)


def test_other_data_gets_another_judge(prepared) -> None:
    assert home(prepared) != home(replace(prepared, fingerprint="f" + prepared.fingerprint[1:]))


@pytest.mark.parametrize("classes", [[], ["one"]])
def test_without_two_classes_there_is_none_and_a_line_says_so(prepared, no_training, classes: list[str]) -> None:
    said: list[str] = []
    assert judge_for(replace(prepared, classes=classes), said.append) is None
    assert len(said) == 1 and "judge" in said[0]


def test_features_do_not_depend_on_the_batch_and_the_logits_are_theirs(prepared, judge) -> None:
    images = prepared.val.images
    features = judge.features(images)
    assert features.shape == (150, 128) and features.dtype == torch.float32
    torch.testing.assert_close(judge.features(images[7:9]), features[7:9], atol=1e-5, rtol=1e-5)
    assert torch.equal(judge.classify(features), judge.logits(images))
    torch.testing.assert_close(judge(to_float(images)), judge.logits(images), atol=1e-4, rtol=1e-4)  # dropout is off


def test_unlabelled_images_are_left_out(prepared, monkeypatch) -> None:
    monkeypatch.setattr(judges, "SEEN", 1)
    holes = Split(prepared.train.images[:60], prepared.train.labels[:60].clone())
    holes.labels[::5] = -1
    kept = Split(holes.images[holes.labels >= 0], holes.labels[holes.labels >= 0])
    assert weights(judges.train(replace(prepared, train=holes))) == weights(
        judges.train(replace(prepared, train=kept))
    )
    assert accuracy(torch.eye(3), torch.tensor([0, -1, 0])) == 0.5


@pytest.mark.parametrize(("channels", "side"), [(3, 64), (3, 45), (1, 28)])
def test_it_works_for_grey_and_colour_from_28_to_64_pixels(channels: int, side: int, tmp_path, short_training) -> None:
    judge = ImageClassifierJudge(channels, 2)
    images = draw(torch.arange(4) % 3, 0, channels, side)
    assert judge.eval().logits(images).shape == (4, 2)


def test_an_augmented_image_is_the_image_shifted_with_its_edges_repeated(monkeypatch) -> None:
    monkeypatch.setattr(judges, "NOISE", 0)
    monkeypatch.setattr(judges, "BLUR", 0)
    torch.manual_seed(0)
    images = draw(torch.zeros(64, dtype=torch.int64), 0, channels=3, side=32)
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="replicate").to(torch.uint8)
    seen = set()
    for image, source in zip(augmented(images, flip=False), padded, strict=True):
        fits = [(i, j) for i in range(5) for j in range(5) if torch.equal(image, source[:, i : i + 32, j : j + 32])]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) > 15  # of 25


def test_noise_differs_from_image_to_image_up_to_its_limit() -> None:
    torch.manual_seed(0)
    grey = torch.full((400, 1, 32, 32), 128, dtype=torch.uint8)
    spread = (augmented(grey, flip=False).double() - 128).flatten(1).std(1)
    assert spread.max() < judges.NOISE * 1.1 and spread.min() < judges.NOISE / 10
    assert spread.mean().item() == pytest.approx(judges.NOISE / 2, rel=0.1)


def test_blur_is_a_gaussian_of_each_images_own_width() -> None:
    """A point becomes a Gaussian: its second moment is sigma^2 on each axis; nothing is lost, and no width leaves it
    as it is.
    """
    point = torch.zeros(3, 2, 15, 15)
    point[:, :, 7, 7] = 255
    spread = judges.blurred(point, torch.tensor([0.0, 0.5, 0.75]))
    torch.testing.assert_close(spread.sum((2, 3)), torch.full((3, 2), 255.0))
    assert torch.equal(spread[0], point[0])
    distance = (torch.arange(15) - 7.0).square()
    for channel in range(2):
        across = (spread[:, channel].sum(1) * distance).sum(1) / 255
        torch.testing.assert_close(across[2].item(), 0.75**2, atol=0.01, rtol=0)
        assert 0.15 < across[1] < 0.25  # a Gaussian of half a pixel, taken at whole pixels


def test_images_are_mirrored_only_where_the_data_allows_it(monkeypatch) -> None:
    monkeypatch.setattr(judges, "NOISE", 0)
    monkeypatch.setattr(judges, "BLUR", 0)
    ramp = torch.arange(32, dtype=torch.uint8).expand(200, 1, 32, 32)  # bright to the right

    def falling(flip: bool) -> float:
        torch.manual_seed(0)
        images = augmented(ramp, flip).int()
        return (images[:, 0, 0, -1] < images[:, 0, 0, 0]).double().mean().item()

    assert falling(flip=False) == 0
    assert falling(flip=True) == pytest.approx(0.5, abs=0.15)
