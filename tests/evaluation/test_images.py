"""What the figures say of generators whose faults are known."""

import json
import struct
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gengen.errors import UserError
from gengen.evaluation import images as evaluation
from gengen.evaluation.images import evaluate_images, evaluate_reconstruction, in_words, nearest_panel, shown, shuffled
from helpers.benchmark import benchmark
from helpers.made_up_pictures import Split, draw

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
    assert (facts["n"], facts["seed"], facts["reference"]) == (N, 0, 300)
    assert "shuffled" in facts["noise"] and facts["judge"]["accuracy"] == judge.facts["accuracy"]
    json.dumps(good, allow_nan=False)


def test_a_seed_gives_the_same_numbers(good, prepared, monkeypatch) -> None:
    assert evaluate_images(fresh, prepared, quiet, n=N) == good
    fewer = evaluate_images(fresh, prepared, quiet, n=60, seed=0)["real"]
    assert evaluate_images(fresh, prepared, quiet, n=60, seed=1)["real"] != fewer  # other held-out images


def test_a_collapsed_generator_covers_nothing(good, prepared) -> None:
    def collapsed(labels: Tensor) -> Tensor:
        return draw(torch.arange(3), seed=99)[labels]  # one image a class

    figures = samples(collapsed, prepared)
    assert figures["accuracy"] > 0.9 and figures["coverage"] < 0.2
    assert figures["fd_smallcnn"] > 3 * good["real"]["fd_smallcnn"]


def test_a_memorising_generator_is_caught_by_authenticity_alone(good, prepared) -> None:
    def memorised(labels: Tensor) -> Tensor:
        return prepared.train.images[labels + 3 * torch.arange(len(labels)) % 300]  # their labels are 0, 1, 2 in turn

    figures = samples(memorised, prepared)
    assert figures["auth_pct"] == 0 < good["real"]["auth_pct"]
    assert figures["coverage"] > 0.8 and figures["accuracy"] > 0.9


def test_a_generator_that_swaps_labels_is_never_right(good, prepared) -> None:
    figures = samples(lambda labels: fresh((labels + 1) % 3), prepared)
    assert figures["accuracy"] < 0.05
    assert figures["fd_smallcnn"] == pytest.approx(good["samples"]["fd_smallcnn"], rel=1)  # the distance cannot see it


def test_a_missing_class_is_seen(good, prepared) -> None:
    figures = samples(lambda labels: fresh(labels % 2), prepared)
    assert figures["coverage"] < 0.75 and figures["fd_smallcnn"] > 3 * good["real"]["fd_smallcnn"]


@pytest.fixture(scope="module")
def uneven(prepared, judge):
    """The same data with few pictures of two classes, judged by the judge of all."""

    def part(split: Split, *counts: int) -> Split:
        rows = torch.cat([(split.labels == label).nonzero()[:count, 0] for label, count in enumerate(counts)])
        return Split(split.images[rows], split.labels[rows])

    return replace(prepared, train=part(prepared.train, 100, 40, 20), val=part(prepared.val, 50, 20, 10))


@pytest.fixture(scope="module")
def asked() -> list[Tensor]:
    """The labels that images of uneven classes were asked for with."""
    return []


@pytest.fixture(scope="module")
def uneven_figures(uneven, judge, asked):
    def generate(labels: Tensor) -> Tensor:
        asked.append(labels)
        return fresh(labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "judge_for", lambda *args: judge)
        return evaluate_images(generate, uneven, quiet, n=80)


def test_samples_are_of_the_labels_of_the_held_out_images(uneven_figures, asked) -> None:
    assert [labels.bincount().tolist() for labels in asked] == [[50, 20, 10]]


def test_a_perfect_generator_scores_the_floor_of_uneven_classes(uneven_figures) -> None:
    found = uneven_figures
    row = found["floor"]["fd_smallcnn"]
    assert (found["facts"]["reference"], row["redraws"], row["n"]) == (160, 6, 80)
    assert (row["samples"], row["real"]) == tuple(found[which]["fd_smallcnn"] for which in ("samples", "real"))
    assert abs(row["samples"] - row["mean"]) < 4 * row["std"] and abs(row["real"] - row["mean"]) < 4 * row["std"]
    assert row["times_floor"] == row["samples"] / row["real"] and 0.5 < row["times_floor"] < 2
    for of, count in zip(found["by_class"].values(), (50, 20, 10), strict=True):
        assert of["n"] == count and of["times_floor"] == of["samples"] / of["real"] < 3 and of["accuracy"] > 0.8


def test_balanced_samples_of_uneven_classes_would_be_noticed(uneven_figures, uneven, judge, monkeypatch) -> None:
    """The bug put back: as good images, but of all classes alike."""
    monkeypatch.setattr(evaluation, "judge_for", lambda *args: judge)
    balanced = evaluate_images(lambda labels: fresh(torch.arange(len(labels)) % 3), uneven, quiet, n=80)
    times = [found["floor"]["fd_smallcnn"]["times_floor"] for found in (uneven_figures, balanced)]
    assert times[1] > 3 * times[0]


def test_too_few_images_for_the_features_are_flagged(prepared, judge) -> None:
    def features(images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images.double(), 7).flatten(1)  # 16 of them

    result = evaluate_images(fresh, prepared, quiet, n=N, lite0=features)
    assert {name: row["few"] for name, row in result["floor"].items()} == {"fd_smallcnn": True, "fd_efflite0": False}
    lines = [line for line in in_words(result) if "few for a covariance" in line]
    assert [line.split(" images")[0] for line in lines] == ["fd_smallcnn: 150", "by class: 50 to 50"]


def test_the_class_that_is_bad_is_named_first(prepared) -> None:
    def dim_dots(labels: Tensor) -> Tensor:
        return fresh(labels) // (1 + (labels == 2).to(torch.uint8)[:, None, None, None])

    found = evaluate_images(dim_dots, prepared, quiet, n=N)
    times = {name: row["times_floor"] for name, row in found["by_class"].items()}
    assert times["dot"] > 3 * max(times["across"], times["down"])
    lines = [line for line in in_words(found) if line.startswith("  ")]
    assert len(lines) == 3 and "dot" in lines[0] and f"{times['dot']:.3g} times the floor" in lines[0]


def test_the_results_page_has_floor_spread_and_times_for_every_family(good) -> None:
    """By benchmarks/results.py."""
    section = benchmark("results").section

    def run(figures: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(evaluation=figures | {"images_per_second": 5.0}, trained=lambda: "1 s", config={})

    unlabelled = {name: figures for name, figures in good.items() if name != "by_class"}
    page = section({"pixels": run(good), "gan": run(good), "vae": run(unlabelled)}).splitlines()
    floor, dot = good["floor"]["fd_smallcnn"], good["by_class"]["dot"]
    times = f"{floor['times_floor']:.2f} ± {floor['times_floor'] * floor['std'] / floor['real']:.2f}"
    rows: dict[str, list[str]] = {}
    for cells in (line.split(" | ") for line in page if line.startswith("| ")):
        rows.setdefault(cells[0][2:], cells)
    assert rows["diffusion on pixels"][3:5] == rows["VAE, prior samples"][3:5] == [f"{floor['samples']:.3f}", times]
    assert f"score {floor['mean']:.3f} ± {floor['std']:.3f}" in page[0] and "150 samples each" in page[0]
    assert rows["real, held out (the floor)"][4].startswith("1.00 ± ")
    assert rows["the floor; real images drawn anew"][3] == f"{dot['real']:.2f}, {dot['mean']:.2f} ± {dot['std']:.2f} |"
    assert [line.split(" | ")[3] for line in page if line.startswith("| GAN |")][1:] == [f"{dot['times_floor']:.2f} |"]
    with pytest.raises(SystemExit, match="gan: not measured on the images"):
        section({"pixels": run(good), "gan": run(good | {"facts": good["facts"] | {"seed": 1}})})
    with pytest.raises(SystemExit, match="gan: evaluated without its floor"):
        section({"pixels": run(good), "gan": run({"facts": good["facts"]})})


def test_a_grid_has_a_column_a_class() -> None:
    labels = torch.tensor([2, 0, 2, 1, 0, 2, 1, 0])
    rows, columns = shown(labels, 3)
    assert columns == 3 and labels[rows].tolist() == [0, 1, 2, 0, 1, 2]
    assert shown(labels, 0) == (pytest.approx(torch.arange(8)), 10)
    assert shown(labels, 5)[1] == 3  # columns for those that are there


def test_an_unconditional_generator_has_no_accuracy(prepared) -> None:
    result = evaluate_images(fresh, prepared, quiet, n=N, conditional=False)
    assert "accuracy" not in result["samples"] and "by_class" not in result


@pytest.mark.parametrize(
    "generate",
    [
        lambda labels: fresh(labels).float(),
        lambda labels: fresh(labels)[1:],
        lambda labels: fresh(labels).expand(-1, 3, -1, -1),
    ],
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


def test_a_second_network_is_compared_on_the_same_images(prepared) -> None:
    seen: list[int] = []

    def features(images: Tensor) -> Tensor:
        seen.append(len(images))
        return torch.nn.functional.avg_pool2d(images.double(), 7).flatten(1)

    result = evaluate_images(fresh, prepared, quiet, n=N, lite0=features)
    assert seen == [N, N, N, 300]
    assert result["floor"]["fd_efflite0"]["std"] > 0
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
    result = evaluate_reconstruction(
        lambda images: torch.where(images > 100, images - off, images + off), prepared, quiet
    )
    assert result["psnr"] == pytest.approx(42.11, abs=0.005)  # 20 log10(255 / 2)
    worse = evaluate_reconstruction(lambda images: images // 64 * 64, prepared, quiet)
    assert (
        worse["psnr"] < result["psnr"]
        and worse["ssim"] < result["ssim"]
        and worse["rfd_smallcnn"] > result["rfd_smallcnn"]
    )


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
