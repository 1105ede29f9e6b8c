"""What the figures say of generators whose faults are known."""

import json
import struct
from dataclasses import replace

import pytest
import torch
from made_up_pictures import Split, draw
from torch import Tensor

from gengen.config.errors import UserError
from gengen.evaluation import images as evaluation
from gengen.evaluation.images import evaluate_images, evaluate_reconstruction, nearest_panel, shuffled

N = 150


def quiet(line: str) -> None: ...


def fresh(labels: Tensor) -> Tensor:
    """As good a generator as there is: new images of the distribution the data came from."""
    return draw(labels, seed=99)


@pytest.fixture(scope="module")
def good(prepared, judge):
    return evaluate_images(fresh, prepared, quiet, n=N)


def samples(generate, prepared, **settings):
    return evaluate_images(generate, prepared, quiet, n=N, **settings)["samples"]


def test_a_perfect_generator_is_near_the_floor_and_far_from_the_ceiling(good) -> None:
    drawn, real, noise = good["samples"], good["real"], good["noise"]
    assert set(drawn) == set(real) == set(noise)
    assert 0.3 * real["fd_smallcnn"] < drawn["fd_smallcnn"] < 3 * real["fd_smallcnn"]
    assert 20 * drawn["fd_smallcnn"] < noise["fd_smallcnn"]
    assert abs(drawn["kid_smallcnn"]) < 0.05 * noise["kid_smallcnn"]
    for key in ("precision", "recall", "coverage"):
        assert drawn[key] > 0.8 and real[key] > 0.8
    assert noise["recall"] < 0.3 and noise["coverage"] < 0.3
    assert drawn["accuracy"] > 0.9 and real["accuracy"] > 0.9
    assert abs(drawn["auth_pct"] - real["auth_pct"]) < 15


def test_the_counts_are_stated(good, judge) -> None:
    facts = good["facts"]
    assert (facts["n"], facts["seed"], facts["reference"], facts["train"]) == (N, 0, 300, 300)
    assert "shuffled" in facts["noise"] and facts["judge"]["accuracy"] == judge.facts["accuracy"]
    json.dumps(good, allow_nan=False)


def test_a_seed_gives_the_same_numbers(good, prepared, monkeypatch) -> None:
    assert evaluate_images(fresh, prepared, quiet, n=N) == good
    fewer = evaluate_images(fresh, prepared, quiet, n=60, seed=0)["real"]
    assert evaluate_images(fresh, prepared, quiet, n=60, seed=1)["real"] != fewer  # other held-out images


def test_a_collapsed_generator_covers_nothing(good, prepared) -> None:
    def collapsed(labels: Tensor) -> Tensor:
        return draw(labels[:3], seed=99)[labels]  # one image a class

    figures = samples(collapsed, prepared)
    assert figures["accuracy"] > 0.9 and figures["coverage"] < 0.2
    assert figures["fd_smallcnn"] > 3 * good["real"]["fd_smallcnn"]


def test_a_memorising_generator_is_caught_by_authenticity_alone(good, prepared) -> None:
    figures = samples(lambda labels: prepared.train.images[: len(labels)], prepared)  # in the order of balanced labels
    assert figures["auth_pct"] == 0 < good["real"]["auth_pct"]
    assert figures["coverage"] > 0.8 and figures["accuracy"] > 0.9


def test_a_generator_that_swaps_labels_is_never_right(good, prepared) -> None:
    figures = samples(lambda labels: fresh((labels + 1) % 3), prepared)
    assert figures["accuracy"] < 0.05
    assert figures["fd_smallcnn"] == pytest.approx(good["samples"]["fd_smallcnn"], rel=1)  # the distance cannot see it


def test_a_missing_class_is_seen(good, prepared) -> None:
    figures = samples(lambda labels: fresh(labels % 2), prepared)
    assert figures["coverage"] < 0.75 and figures["fd_smallcnn"] > 3 * good["real"]["fd_smallcnn"]


def test_labels_are_balanced_and_every_class_is_asked_for(prepared, judge) -> None:
    asked: list[Tensor] = []

    def generate(labels: Tensor) -> Tensor:
        asked.append(labels)
        return fresh(labels)

    samples(generate, prepared)
    assert torch.cat(asked).bincount().tolist() == [50, 50, 50]


def test_an_unconditional_generator_has_no_accuracy(prepared) -> None:
    assert "accuracy" not in samples(fresh, prepared, conditional=False)


@pytest.mark.parametrize(
    "generate",
    [lambda labels: fresh(labels).float(), lambda labels: fresh(labels)[1:], lambda labels: fresh(labels).expand(-1, 3, -1, -1)],
)
def test_only_uint8_images_of_the_shape_asked_for_are_measured(generate, prepared) -> None:
    with pytest.raises(ValueError, match="to_uint8"):
        samples(generate, prepared)


def test_fewer_held_out_images_than_samples_are_said(prepared, judge) -> None:
    said: list[str] = []
    assert evaluate_images(fresh, prepared, said.append, n=1000)["facts"]["n"] == 150
    assert any("150" in line and "1,000" in line for line in said)
    with pytest.raises(UserError, match="at least 10"):
        evaluate_images(fresh, prepared, quiet, n=5)


def test_fid_is_not_claimed(good, prepared) -> None:
    said: list[str] = []
    result = evaluate_images(fresh, prepared, said.append, n=20)
    assert not any("fid" in figures for figures in result.values())
    assert any(line.startswith("fid: not computed") for line in said)


def test_classes_of_very_different_size_are_said(prepared, judge, monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "judge_for", lambda *args: judge)
    for labels, warned in ((prepared.train.labels, False), (torch.where(torch.arange(300) < 280, 0, prepared.train.labels), True)):
        said: list[str] = []
        evaluate_images(fresh, replace(prepared, train=Split(prepared.train.images, labels)), said.append, n=20)
        assert any("differ much" in line for line in said) is warned


def test_a_second_network_is_compared_on_the_same_images(prepared) -> None:
    seen: list[int] = []

    def features(images: Tensor) -> Tensor:
        seen.append(len(images))
        return torch.nn.functional.avg_pool2d(images.double(), 7).flatten(1)

    result = evaluate_images(fresh, prepared, quiet, n=N, lite0=features)
    assert seen == [300, N, N, N]
    assert result["samples"]["fd_efflite0"] < 0.3 * result["noise"]["fd_efflite0"]


def test_unlabelled_data_is_measured_by_what_needs_no_judge(prepared) -> None:
    def features(images: Tensor) -> Tensor:
        return images.double().mean((1, 2, 3))[:, None]

    result = evaluate_images(fresh, replace(prepared, classes=[]), quiet, n=N, lite0=features)
    assert set(result["samples"]) == {"fd_efflite0"}


def test_noise_has_the_pixels_of_its_image_colour_by_colour() -> None:
    images = draw(torch.arange(6) % 3, 0, channels=3)
    noise = shuffled(images, torch.Generator().manual_seed(0))
    as_colours = [x.flatten(2).transpose(1, 2).tolist() for x in (images, noise)]
    assert [sorted(image) for image in as_colours[0]] == [sorted(image) for image in as_colours[1]]
    assert not torch.equal(noise[0].flatten(1).argsort(1), noise[1].flatten(1).argsort(1))


# --- reconstructions


def test_a_perfect_reconstruction(prepared, judge) -> None:
    result = evaluate_reconstruction(lambda images: images.clone(), prepared, quiet)
    assert result["psnr"] == 100 and result["ssim"] == pytest.approx(1)
    assert result["rfd_smallcnn"] == pytest.approx(0, abs=1e-3)
    json.dumps(result, allow_nan=False)


def test_a_reconstruction_that_is_off_by_two_levels(prepared, judge) -> None:
    off = torch.full((1,), 2, dtype=torch.uint8)
    result = evaluate_reconstruction(lambda images: torch.where(images > 100, images - off, images + off), prepared, quiet)
    assert result["psnr"] == pytest.approx(42.11, abs=0.005)  # 20 log10(255 / 2)
    worse = evaluate_reconstruction(lambda images: images // 64 * 64, prepared, quiet)
    assert worse["psnr"] < result["psnr"] and worse["ssim"] < result["ssim"] and worse["rfd_smallcnn"] > result["rfd_smallcnn"]


def test_a_reconstruction_of_another_image_is_a_good_set_and_a_bad_copy(prepared, judge) -> None:
    result = evaluate_reconstruction(lambda images: images.roll(3, 0), prepared, quiet)  # of the same class
    assert result["rfd_smallcnn"] == pytest.approx(0, abs=1e-3) and result["psnr"] < 20


# --- the panel


def size_of(png: bytes) -> tuple[int, int]:
    return struct.unpack(">II", png[16:24])


def test_the_panel_shows_each_sample_and_its_nearest(prepared, judge, tmp_path, monkeypatch) -> None:
    shown: list[Tensor] = []
    monkeypatch.setattr(evaluation, "grid", lambda images, columns: shown.append(images))
    monkeypatch.setattr(evaluation, "write_png", lambda *args: None)
    copies = prepared.train.images[[4, 250]]
    nearest_panel(copies, prepared.train, tmp_path / "x.png", judge.features)
    rows = shown[0].view(2, 7, 1, 28, 28)
    for column in (0, 1, 4):  # the sample, the nearest in pixels, the nearest in features
        assert torch.equal(rows[:, column], copies)
    for column in (2, 3, 5, 6):
        assert not torch.equal(rows[:, column], copies)


def test_the_panel_is_a_png_of_a_row_a_sample(prepared, tmp_path) -> None:
    nearest_panel(prepared.val.images[:5], prepared.train, tmp_path / "x.png", k=2)
    assert size_of((tmp_path / "x.png").read_bytes()) == (3 * 30 + 2, 5 * 30 + 2)
