"""Images from a diffusion model: what a sample depends on, and what is written of it."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gengen.cli.sample_images import sample_images
from gengen.config.commands import DiffusionSampling, EvaluateConfig
from gengen.config.model import UNetConfig
from gengen.errors import UserError
from gengen.generation.diffusion import Condition
from gengen.generation.image.diffusion import ImageGenerator
from gengen.generation.image.files import grid, labels_of, to_float, to_uint8
from gengen.generation.image.prompts import Request
from gengen.generation.noise import Noise
from gengen.models.unet import UNet

SMALL = UNetConfig(
    resolution=8,
    channels=1,
    classes=["cat", "dog", "bird, small"],
    widths=[32],
    blocks=1,
    attention=[0],
    patch=2,
    sigma_data=0.5,
)


def generator(config: UNetConfig = SMALL, seed: int = 0) -> ImageGenerator:
    """A network of random weights: its images are noise of its own kind."""
    torch.manual_seed(seed)
    net = UNet(config.resolved())
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return ImageGenerator(net)


def drawn(gen: ImageGenerator, samples: range, **settings: object) -> torch.Tensor:
    """Samples in fp32, before they are rounded to pixels."""
    labels = labels_of([], gen.classes, samples.stop)[samples.start :]
    return of_labels(gen, labels, samples, DiffusionSampling(steps=6, **settings))  # type: ignore[arg-type]


def of_labels(
    gen: ImageGenerator,
    labels: torch.Tensor,
    samples: range,
    settings: DiffusionSampling,
    guide: ImageGenerator | None = None,
) -> torch.Tensor:
    return gen.draw(Request(Condition(labels), samples), 0, settings, guide)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "ddim", "ancestral"])
def test_sample_i_does_not_depend_on_how_many_are_drawn(sampler: str) -> None:
    gen = generator()
    sixteen = drawn(gen, range(16), sampler=sampler)
    torch.testing.assert_close(drawn(gen, range(4), sampler=sampler), sixteen[:4], atol=1e-4, rtol=0)
    torch.testing.assert_close(drawn(gen, range(7, 9), sampler=sampler), sixteen[7:9], atol=1e-4, rtol=0)
    images = gen.generate(16, sampler=sampler, steps=6)
    assert (images.int() - gen.generate(16, sampler=sampler, steps=6, batch_size=5).int()).abs().max() <= 1


def test_one_generator_for_a_batch_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    gen = generator()
    shared = torch.randn(16, 1, 8, 8)
    monkeypatch.setattr(Noise, "__call__", lambda self: shared[: len(self.streams)])
    with pytest.raises(AssertionError):  # samples 7 and 8 are drawn like 0 and 1
        torch.testing.assert_close(drawn(gen, range(7, 9)), drawn(gen, range(16))[7:9], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("path", "prediction"), [*product(["flow", "cosine", "edm"], ["velocity", "v", "x0", "edm"])])
def test_every_path_and_prediction_is_sampled_as_trained(path: str, prediction: str) -> None:
    """A network that says the exact target for one image draws that image, whatever the path and what it is asked."""
    from gengen.diffusion.parameterizations import target
    from gengen.generation.diffusion import path_of

    config = replace(SMALL, path=path, prediction=prediction)
    gen, way = generator(config), path_of(config)
    x0 = torch.linspace(-0.9, 0.9, 64).view(1, 1, 8, 8)

    def network(x: torch.Tensor, level: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        t = torch.exp(4 * level) if path == "edm" else level
        unscaled = x * (way.alpha(t) ** 2 * config.sigma_data**2 + way.sigma(t) ** 2).sqrt().view(-1, 1, 1, 1)
        eps = way.to_eps(unscaled, x0.expand_as(x), t)
        return target(prediction, x0.expand_as(x), eps, t, way, config.sigma_data)

    gen.model.forward = network  # type: ignore[method-assign, assignment]
    for sampler in ("heun", "dpmpp_2m", "ddim", "ancestral"):
        torch.testing.assert_close(drawn(gen, range(2), sampler=sampler), x0.expand(2, -1, -1, -1), atol=2e-3, rtol=0)


def test_guidance_goes_from_the_null_class_through_the_class_and_beyond() -> None:
    """With one Euler step the sample is the estimate at pure noise, which guidance moves on a straight line."""
    gen = generator()
    labels = torch.tensor([0, 1, 2])
    none, off, double = (
        of_labels(gen, labels, range(3), DiffusionSampling(steps=1, sampler="ddim", guidance=g))
        for g in (0.0, 1.0, 2.0)
    )
    torch.testing.assert_close(double, 2 * off - none, atol=1e-5, rtol=1e-5)
    assert (off - none).abs().max() > 1e-3
    unlabelled = of_labels(
        gen, torch.full((3,), -1), range(3), DiffusionSampling(steps=1, sampler="ddim", guidance=1.0)
    )
    torch.testing.assert_close(none, unlabelled)


def test_autoguidance_takes_another_model_told_the_same_class() -> None:
    gen, worse = generator(), generator(seed=1)
    c = DiffusionSampling(steps=1, sampler="ddim", guidance=1.5)
    labels = torch.tensor([0, 1])
    alone = [of_labels(g, labels, range(2), replace(c, guidance=1.0)) for g in (gen, worse)]
    torch.testing.assert_close(
        of_labels(gen, labels, range(2), c, worse), alone[1].lerp(alone[0], 1.5), atol=1e-5, rtol=1e-5
    )


def test_a_guide_must_mean_the_same() -> None:
    gen = generator()
    for other, words in (
        (replace(SMALL, path="cosine"), "model.path"),
        (replace(SMALL, classes=["cat"]), "model.classes"),
    ):
        with pytest.raises(UserError, match=words):
            gen.generate(2, steps=1, guide=generator(other))


def test_without_an_estimate_without_the_class_there_is_no_guidance() -> None:
    """Guidance was 2 by default, away from an embedding that drop_condition=0 never trains."""
    always, often = generator(replace(SMALL, drop_condition=0.0)), generator()
    assert torch.equal(drawn(always, range(2)), drawn(always, range(2), guidance=1.0))
    assert torch.equal(drawn(often, range(2)), drawn(often, range(2), guidance=2.0))
    assert not torch.equal(drawn(often, range(2)), drawn(often, range(2), guidance=1.0))
    with pytest.raises(UserError, match=r"guidance=2: the model always saw its class \(model.drop_condition=0\)"):
        drawn(always, range(2), guidance=2.0)
    c = DiffusionSampling(steps=1, sampler="ddim")  # another model gives a reference of its own
    labels = torch.arange(2)
    guided = [of_labels(always, labels, range(2), replace(c, guidance=g), often) for g in (None, 2.0)]
    assert torch.equal(*guided)


def test_an_interval_of_guidance_is_kept() -> None:
    gen = generator()
    assert torch.equal(
        drawn(gen, range(2), guidance=3.0, guide_from=0.999, guide_to=0.9991), drawn(gen, range(2), guidance=1.0)
    )
    assert not torch.equal(
        drawn(gen, range(2), guidance=3.0, guide_from=0.2, guide_to=0.6), drawn(gen, range(2), guidance=1.0)
    )


def test_labels_by_name_number_and_in_turn() -> None:
    classes = ["cat", "dog", "bird, small"]
    assert labels_of(["cat,dog"], classes, 3).tolist() == [0, 1, 0]
    assert labels_of(["Bird, small", "1"], classes, 2).tolist() == [2, 1]
    assert labels_of([], classes, 4).tolist() == [0, 1, 2, 0] and labels_of([], [], 2).tolist() == [-1, -1]
    assert labels_of([2, "cat"], classes, 3).tolist() == [2, 0, 2]
    wrong = {"cta": "cat", "3": "no such class", "-1": "no such class", 3: "0 to 2", 0.5: "whole number"}
    for label, words in wrong.items():
        with pytest.raises(UserError, match=words):
            labels_of([label], classes, 1)
    for nobody in (["cat"], [0], torch.tensor([0])):
        with pytest.raises(UserError, match="without classes"):
            labels_of(nobody, [], 1)


TWELVE = sorted(str(i) for i in range(12))  # as text: 0, 1, 10, 11, 2, ...


def test_a_number_is_a_number_and_a_text_is_a_name() -> None:
    numbers = list(range(12))
    assert labels_of(numbers, TWELVE, 12).tolist() == numbers == labels_of(torch.tensor(numbers), TWELVE, 12).tolist()
    assert labels_of(torch.tensor([-1, 11]), TWELVE, 2).tolist() == [-1, 11]  # of no class, and of the last one
    assert [TWELVE[i] for i in labels_of(["2", "10,3"], TWELVE, 3)] == ["2", "10", "3"]
    with pytest.raises(UserError, match="labels=0: no such class"):
        labels_of(["0"], ["1", "2"], 1)  # where names are numbers, a text is none


def test_names_are_found_whatever_the_case_and_unicode_form() -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    assert labels_of([composed, apart, "CAFE\u0301"], ["bar", apart], 3).tolist() == [1, 1, 1]
    assert labels_of(["a", "A"], ["A", "a"], 2).tolist() == [1, 0]  # two names: the one that is written so
    with pytest.raises(UserError, match="no such class"):
        labels_of(["straSSe"], ["STRASSE", "strasse"], 1)  # either could be meant


def test_evaluation_and_numbers_draw_the_classes_they_mean() -> None:
    gen = generator(replace(SMALL, classes=TWELVE))
    wanted = torch.tensor([2, 11, 5])
    settings = DiffusionSampling(steps=1, sampler="ddim", guidance=3.0)
    expected = gen.pixels(of_labels(gen, wanted, range(3), settings))
    assert torch.equal(gen.generate(3, wanted, steps=1, sampler="ddim", guidance=3.0), expected)
    assert torch.equal(gen.generate(3, [2, 11, 5], steps=1, sampler="ddim", guidance=3.0), expected)
    sampler = gen.image_sampler(EvaluateConfig(run="r", steps=1, sampler="ddim", guidance=3.0))
    assert torch.equal(sampler(wanted), expected)
    others = torch.tensor([TWELVE.index(str(i)) for i in (2, 11, 5)])  # what the numbers are as names
    assert not torch.equal(gen.pixels(of_labels(gen, others, range(3), settings)), expected)


def test_words_to_a_model_of_classes_are_one_message() -> None:
    for words in ({"prompts": "a cat"}, {"prompts": ["a cat", "a dog"]}):
        with pytest.raises(UserError, match=r"prompt='a cat': this run knows 3 classes and no texts: labels=cat; "):
            generator().generate(1, **words)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"negative='dull': this run knows 3 classes and no texts: labels=cat; "):
        generator().generate(1, negative="dull")
    with pytest.raises(UserError, match=r"prompt='a cat': this run knows no conditions and no texts: leave it out"):
        generator(replace(SMALL, classes=[])).generate(1, prompts="a cat")


def test_scales_of_guidance_are_columns_of_labels_too(tmp_path: Path) -> None:
    config = DiffusionSampling(run="r", n=2, labels=["dog", "cat"], steps=2, what="guidance", guidances=[1.0, 3.0])
    config.out = str(tmp_path)
    gen = generator()
    (drawn,) = gen.drawn(config)
    assert drawn.columns == 2
    assert [(f["class"], f["guidance"]) for f in drawn.facts] == [*product(["dog", "cat"], [1.0, 3.0])]
    assert torch.equal(drawn.images[1::2], gen.generate(2, ["dog", "cat"], steps=2, guidance=3.0))


def test_an_interruption_leaves_the_rest_undrawn() -> None:
    polls = iter([False, True])
    assert len(generator().generate(8, steps=2, batch_size=2, interrupted=lambda: next(polls))) == 2


def test_what_sample_writes(tmp_path: Path) -> None:
    gen, said = generator(), list[str]()
    config = DiffusionSampling(
        run="r", n=5, labels=["dog"], steps=3, seed=7, out=str(tmp_path / "drawn"), guidance=2.0
    )
    sample_images(gen, config, said.append)
    names = sorted(p.name for p in (tmp_path / "drawn").iterdir())
    assert names == [*(f"{i:05}.png" for i in range(5)), "denoising.gif", "grid.png", "samples.json"]
    facts = json.loads((tmp_path / "drawn" / "samples.json").read_text())
    said_of = [(f["file"], f["index"], f["seed"], f["class"], f["guidance"]) for f in facts]
    assert said_of == [(f"{i:05}.png", i, 7, "dog", 2.0) for i in range(5)]
    with Image.open(tmp_path / "drawn" / "00003.png") as image:
        pixels = torch.from_numpy(np.array(image))
    assert torch.equal(pixels, gen.generate(5, ["dog"], steps=3, seed=7, guidance=2.0)[3, 0])
    with Image.open(tmp_path / "drawn" / "denoising.gif") as movie:
        assert getattr(movie, "n_frames") == 3
    assert "grid.png" in said[-1]


def test_pixels_round_trip_and_a_grid_keeps_them() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    assert torch.equal(to_uint8(to_float(images)), images)
    assert to_uint8(torch.tensor([-2.0, -1.0, 0.999, 1.0, 3.0])).tolist() == [0, 0, 255, 255, 255]
    sheet = grid(images, columns=2, gap=1)
    assert sheet.shape == (1, 19, 19) and torch.equal(sheet[0, 10:18, 1:9], images[2, 0]) and sheet[0, 9].eq(128).all()
