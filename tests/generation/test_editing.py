"""Pictures changed by a diffusion model: what stays, what changes, what it depends on, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gengen.cli.sample_images import sample_images
from gengen.config.commands import DiffusionSampling
from gengen.config.model import AutoencoderConfig, LDMConfig, UNetConfig
from gengen.config.schema import build
from gengen.diffusion.parameterizations import target
from gengen.errors import UserError
from gengen.generation import editing
from gengen.generation.diffusion import path_of
from gengen.generation.image.autoencoder import AutoencoderGenerator
from gengen.generation.image.diffusion import ImageGenerator
from gengen.generation.image.files import to_float
from gengen.generation.image.masks import open_cells, read_mask, read_picture
from gengen.generation.noise import Noise
from gengen.models.autoencoder import Autoencoder
from gengen.models.unet import UNet

SMALL: dict[str, Any] = {
    "resolution": 8, "channels": 1, "classes": ["cat", "dog"], "widths": [32], "blocks": 1, "attention": [0],
    "patch": 2, "sigma_data": 0.5,
}  # fmt: skip
FEW: dict[str, Any] = {"steps": 3, "sampler": "ddim"}


def awake(net: Any) -> Any:
    """A network of random weights, none of them zero."""
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return net


def pixel_model(**settings: Any) -> ImageGenerator:
    torch.manual_seed(0)
    return ImageGenerator(awake(UNet(UNetConfig(**(SMALL | settings)).resolved())))


def latent_model(**settings: Any) -> ImageGenerator:
    """On 4 x 4 latents of 16 x 16 pixels."""
    torch.manual_seed(0)
    shape = {"widths": [16, 32], "blocks": 1, "patch": 2, "latent_channels": 2, "resolution": 16, "channels": 1}
    codec = awake(Autoencoder(AutoencoderConfig(name="autoencoder_kl", **shape)))
    ldm = LDMConfig(**(SMALL | {"resolution": 4, "channels": 2, "patch": 1} | settings))
    return ImageGenerator(awake(UNet(ldm.resolved())), AutoencoderGenerator(codec))


MODELS = {"pixels": pixel_model, "latents": latent_model}


def picture_for(gen: ImageGenerator, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, gen.side, gen.side), generator=draw, dtype=torch.uint8)


# --- what stays and what changes


@pytest.mark.parametrize("inpaint", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_outside_the_mask_every_pixel_is_the_pictures(model: str, inpaint: bool) -> None:
    gen = MODELS[model](inpaint=inpaint)
    picture = picture_for(gen)
    is_open = torch.zeros(gen.side, gen.side, dtype=torch.bool)
    is_open[1:4, 2:7] = True  # not whole cells of latents
    frames: list[Tensor] = []
    images = gen.edit(picture, is_open, n=3, resamples=2, frames=frames, **FEW)
    assert images.shape == (3, *picture.shape) and images.dtype == torch.uint8
    assert all(torch.equal(image[:, ~is_open], picture[:, ~is_open]) for image in images)
    assert all((image[:, is_open] != picture[:, is_open]).any() for image in images)
    assert len(frames) == 3 and torch.equal(frames[-1], images)
    if gen.codec:  # without pasting it would not be
        assert not torch.equal(gen.codec.reconstruct(picture[None])[0, :, ~is_open], picture[:, ~is_open])


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "ddim", "ancestral"])
@pytest.mark.parametrize("path", ["flow", "cosine", "edm"])
@pytest.mark.parametrize("model", MODELS)
def test_at_strength_1_without_a_mask_it_is_a_new_image_bit_for_bit(model: str, path: str, sampler: str) -> None:
    gen = MODELS[model](path=path)
    how: dict[str, Any] = {"labels": ["dog"], "sampler": sampler, "steps": 3, "seed": 5, "first": 2}
    assert torch.equal(gen.edit(picture_for(gen), n=2, strength=1, **how), gen.generate(2, **how))
    assert torch.equal(
        gen.edit(picture_for(gen), n=2, strength=1, **(how | {"labels": ()})),
        gen.generate(2, **(how | {"labels": [-1]})),  # no class: guided or not, the same
    )


def ideal(gen: ImageGenerator) -> ImageGenerator:
    """The same with the exact answer for pixels drawn from N(0, .5^2), each by itself."""
    way, sigma_data = path_of(gen.config), gen.config.sigma_data or 0.0

    def network(x: Tensor, level: Tensor, labels: Tensor) -> Tensor:
        t = level.view(-1, 1, 1, 1)
        spread = way.alpha(t) ** 2 * sigma_data**2 + way.sigma(t) ** 2
        x_t = x * spread.sqrt()
        x0 = way.alpha(t) * sigma_data**2 / spread * x_t
        return target(gen.config.prediction, x0, way.to_eps(x_t, x0, level), level, way, sigma_data)

    gen.model.forward = network  # type: ignore[method-assign, assignment]
    return gen


def test_the_more_strength_the_farther_from_the_picture() -> None:
    gen = ideal(pixel_model())
    picture = picture_for(gen)
    distances = [
        (to_float(gen.edit(picture, n=8, strength=s / 10)) - to_float(picture)).square().mean().item()
        for s in range(1, 11)
    ]
    assert distances == sorted(distances) and distances[0] < 0.03 < 0.3 < distances[-1]
    varied = (to_float(gen.variations(picture, n=8)) - to_float(picture)).square().mean().item()
    assert varied == pytest.approx(distances[6])


# --- what it depends on


@pytest.mark.parametrize("sampler", ["heun", "ancestral"])
@pytest.mark.parametrize("model", MODELS)
def test_image_i_does_not_depend_on_how_many_are_made(model: str, sampler: str) -> None:
    gen = MODELS[model]()
    picture, how = picture_for(gen), {"mask": "left", "resamples": 2, "steps": 3, "sampler": sampler}
    five = gen.edit(picture, n=5, **how)
    for other in (gen.edit(picture, n=2, first=3, **how), gen.edit(picture, n=5, batch_size=2, **how)[3:]):
        assert (other.int() - five[3:].int()).abs().max() <= 1
    assert not torch.equal(five[0], five[1])


def test_pitfall_eight_the_noise_of_the_known_part_is_each_samples_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that it is drawn anew in each round, and is not what the sample starts from."""
    gen = pixel_model()
    seen: list[Tensor] = []
    original = editing.inpaint

    def watched(*args: Any) -> Tensor:
        *before, known_noise, x0, is_open, resamples, callback = args
        first = before[2]

        def noted() -> Tensor:
            seen.append(known_noise())
            return seen[-1]

        seen.append(first)
        return original(*before, noted, x0, is_open, resamples, callback)

    monkeypatch.setattr(editing, "inpaint", watched)

    def drawn(n: int, first: int = 0) -> list[Tensor]:
        seen.clear()
        gen.edit(picture_for(gen), "left", n=n, first=first, resamples=2, labels=["cat"], **FEW)
        return list(seen)

    def holds() -> None:
        many, one = drawn(4), drawn(1, first=2)
        assert len(many) == len(one) == 1 + 3 * 3 and len({tuple(x.flatten().tolist()) for x in many}) == 10
        assert all(torch.equal(a[2:3], b) for a, b in zip(many, one, strict=True))

    holds()

    class Shared(Noise):
        """The bug: one generator for the batch."""

        def __call__(self) -> Tensor:
            return torch.randn(len(self.streams), *self.shape, generator=shared)

    shared = torch.Generator().manual_seed(0)
    own = editing.Noise
    monkeypatch.setattr(editing, "Noise", lambda *a, purpose: (Shared if "known" in purpose else own)(*a))
    with pytest.raises(AssertionError):
        holds()


def test_an_edit_without_a_class_costs_no_guidance_and_one_with_it_is_heard() -> None:
    gen, calls = pixel_model(), list[int]()
    original = gen.model.forward
    gen.model.forward = lambda *args, **given: calls.append(1) or original(*args, **given)  # type: ignore
    plain = gen.edit(picture_for(gen), "top", n=1, resamples=2, **FEW)
    assert len(calls) == 3 * 2
    cat, dog = (gen.edit(picture_for(gen), "top", n=1, resamples=2, labels=[name], **FEW) for name in ("cat", "dog"))
    assert len(calls) == 3 * 2 * 5 and not torch.equal(cat, dog) and not torch.equal(cat, plain)


def test_a_model_that_always_saw_its_class_needs_one() -> None:
    gen = pixel_model(drop_condition=0.0)
    with pytest.raises(UserError, match=r"labels: the model always saw its class .* labels=cat"):
        gen.edit(picture_for(gen), "left", n=1, **FEW)
    gen.edit(picture_for(gen), "left", n=1, resamples=1, labels=["cat"], **FEW)


# --- a model for inpainting


@pytest.mark.parametrize("model", MODELS)
def test_a_model_for_inpainting_is_told_what_is_known_in_one_pass(model: str) -> None:
    gen = MODELS[model](inpaint=True)
    picture, told = picture_for(gen), list[Tensor]()
    original = gen.model.forward

    def noted(*args: Any, **given: Any) -> Tensor:
        told.append(given["known"])
        return original(*args, **given)

    gen.model.forward = noted  # type: ignore[method-assign, assignment]
    gen.edit(picture, "left", n=2, labels=["cat"], sampler="heun", steps=3)
    assert len(told) == (3 * 2 - 2) * 2  # no rounds; the reference of guidance is told the same
    own = gen.own(picture[None])
    side = own.shape[-1]
    closed = torch.arange(side) >= side // 2
    for known in told:
        assert known.shape == (2, own.shape[1] + 1, side, side)
        assert torch.equal(known[0, 0].bool(), closed.expand(side, side))
        assert torch.equal(known[1, 1:], own[0] * closed)


def test_what_is_open_of_the_picture_is_not_told() -> None:
    """Pixels behind the mask make no difference to a model for inpainting, at strength 1."""
    gen = pixel_model(inpaint=True)
    one, other = picture_for(gen), picture_for(gen)
    other[:, :, :4] = 255 - other[:, :, :4]
    images = [gen.edit(picture, "left", n=1, **FEW) for picture in (one, other)]
    assert torch.equal(*images)
    other[:, :, 4:] = 255 - other[:, :, 4:]
    assert not torch.equal(gen.edit(other, "left", n=1, **FEW)[:, :, :, :4], images[0][:, :, :, :4])


def test_it_still_draws_from_nothing_and_guides_only_its_like() -> None:
    gen = pixel_model(inpaint=True)
    assert torch.equal(
        gen.generate(2, ["cat"], **FEW), gen.edit(picture_for(gen), n=2, labels=["cat"], strength=1, **FEW)
    )
    with pytest.raises(UserError, match=r"model.inpaint"):
        gen.edit(picture_for(gen), n=1, labels=["cat"], guide=pixel_model(), **FEW)


# --- beyond the edges


@pytest.mark.parametrize("model", MODELS)
def test_a_picture_carried_on_beyond_its_edges_keeps_its_own_pixels(model: str) -> None:
    gen = MODELS[model]()
    picture, R = picture_for(gen), gen.side
    images = gen.outpaint(picture, left=R, top=3, n=3, resamples=1, **FEW)
    assert images.shape == (3, 1, R + 3, 2 * R) and images.dtype == torch.uint8
    assert all(torch.equal(image[:, 3:, R:], picture) for image in images)
    assert not torch.equal(images[0], images[1])
    alone = gen.outpaint(picture, left=R, top=3, n=1, first=2, resamples=1, **FEW)[0]
    assert (alone.int() - images[2].int()).abs().max() <= 1


def test_each_window_has_noise_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same noise in each, what lies beyond the edges would repeat itself."""
    gen, starts = pixel_model(), list[Tensor]()
    original = editing.noised_start
    monkeypatch.setattr(editing, "noised_start", lambda x0, eps, *a: starts.append(eps) or original(x0, eps, *a))
    gen.outpaint(picture_for(gen), right=12, n=1, resamples=1, **FEW)
    assert len(starts) == 3 and not any(torch.equal(starts[i], starts[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_nothing_to_add_is_refused() -> None:
    gen = pixel_model()
    for sides in ({}, {"left": -4, "right": 8}):
        with pytest.raises(UserError, match="how many pixels to add"):
            gen.outpaint(picture_for(gen), **sides)


# --- masks and pictures


def test_masks_in_words_and_as_boxes() -> None:
    def opened(mask: str, size: tuple[int, int] = (8, 8)) -> list[list[int]]:
        found = read_mask(mask, size, 8).nonzero()
        return [found.amin(0).tolist(), found.amax(0).tolist(), [len(found)]]

    assert opened("left") == [[0, 0], [7, 3], [32]] and opened("right") == [[0, 4], [7, 7], [32]]
    assert opened("top") == [[0, 0], [3, 7], [32]] and opened("bottom") == [[4, 0], [7, 7], [32]]
    assert opened("center") == [[2, 2], [5, 5], [16]]
    assert opened("1,2,4,8") == [[2, 1], [7, 3], [18]]
    assert opened("24,0,32,16", (48, 32)) == [[0, 4], [3, 5], [8]]  # the square is from 8 to 40; a quarter of its size


def test_a_pixel_or_a_cell_is_open_if_any_part_of_it_is() -> None:
    fine = torch.zeros(32, 32, dtype=torch.bool)
    fine[9, 17] = True
    assert read_mask(fine, (32, 32), 8).nonzero().tolist() == [[2, 4]]
    assert open_cells(fine, 4).nonzero().tolist() == [[1, 2]]
    assert torch.equal(open_cells(fine, 32), fine)
    fine[16, :] = True  # over the border of a cell, on one side
    assert open_cells(fine, 4).sum(1).tolist() == [0, 1, 4, 0]


def png(folder: Path, name: str, pixels: Any, mode: str | None = None) -> str:
    array = np.asarray(pixels)
    (Image.fromarray(array) if mode is None else Image.fromarray(array, mode)).save(folder / name)
    return str(folder / name)


def test_a_mask_from_a_file_is_white_where_it_is_open(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2:5, 1:3] = 255
    found = read_mask(png(tmp_path, "m.png", pixels), (8, 8), 8)
    assert torch.equal(found, torch.from_numpy(pixels[..., 0] == 255))


def test_masks_that_are_none(tmp_path: Path) -> None:
    text = tmp_path / "words.png"
    text.write_text("no picture")
    small = png(tmp_path, "small.png", np.eye(4, dtype=np.uint8) * 255)
    kept, opened = (png(tmp_path, f"{v}.png", np.full((8, 8), v, np.uint8)) for v in (0, 255))
    for mask, words in {
        small: "the mask is 4 x 4 pixels, the image 8 x 8",
        kept: "nothing is to be drawn",
        opened: "nothing of the image is kept",
        str(text): "no PNG, JPEG, WEBP image",
        "lefft": "(?s)mask=lefft: no such file.*did you mean left",
        "0,0,9,4": "0 <= x0 < x1 <= 8",
        "4,0,4,4": "0 <= x0 < x1 <= 8",
        "-1,0,4,4": "0 <= x0 < x1 <= 8",
        "1,2,3": "four whole numbers",
        "0,0,8,8": "nothing of the image is kept",
    }.items():
        with pytest.raises(UserError, match=words):
            read_mask(mask, (8, 8), 8)
    for tensor, words in ((torch.rand(8, 8), "bool"), (torch.zeros(8, 8).bool(), "nothing is to be drawn")):
        with pytest.raises(UserError, match=words):
            read_mask(tensor, (8, 8), 8)


def test_pictures_of_any_kind_are_taken_and_it_is_said(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    plain = read_picture(png(tmp_path, "plain.png", grey), 8, 1)
    assert plain.note == "" and torch.equal(plain.pixels[0], torch.from_numpy(grey))
    deep = read_picture(png(tmp_path, "deep.png", grey.astype(np.uint16) * 257), 8, 1)
    assert torch.equal(deep.pixels, plain.pixels) and deep.note.endswith("deep.png: taken in 8 bits")
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[..., 3] = 255 * (np.arange(8) < 4)
    on_white = read_picture(png(tmp_path, "clear.png", clear), 8, 3)
    assert on_white.note.endswith("taken on white") and on_white.pixels[:, 0].tolist() == [[0] * 4 + [255] * 4] * 3
    wide = read_picture(png(tmp_path, "wide.png", np.zeros((16, 30), np.uint8)), 8, 1)
    assert wide.size == (30, 16) and "30 x 16 pixels, of which its centre square is drawn at 8 x 8" in wide.note
    assert "16 x 16 pixels, of which it is drawn at 8 x 8" in read_picture(torch.zeros(1, 16, 16).byte(), 8, 1).note


def test_pictures_that_are_none(tmp_path: Path) -> None:
    gen = pixel_model()
    text = tmp_path / "words.png"
    text.write_text("no picture")
    for image, words in (
        (str(text), "no PNG"),
        (str(tmp_path / "nosuch.png"), "No such file"),
        (torch.rand(1, 8, 8), "torch.float32"),
        (torch.zeros(3, 8, 8).byte(), r"uint8 \(1, height, width\)"),
    ):
        with pytest.raises(UserError, match=words):
            gen.edit(image, "left", n=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strength": 0.0}, "strength=0.0 does not fit"),
        ({"strength": float("nan")}, "strength=nan does not fit"),
        ({"strength": 1.01}, "strength=1.01 does not fit"),
        ({"resamples": 0}, "resamples=0 does not fit"),
        ({"steps": 0}, "steps=0 does not fit"),
        ({"sampler": "heum"}, "heun"),
        ({"prompts": "a cat"}, "this run knows 2 classes and no texts"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], words: str) -> None:
    gen = pixel_model()
    with pytest.raises(UserError, match=words):
        gen.edit(picture_for(gen), "left", n=1, **settings)


# --- what the command writes


def written(gen: ImageGenerator, folder: Path, **settings: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """What `sample` says and what samples.json holds."""
    said: list[str] = []
    config = build(DiffusionSampling, {"run": "r", "out": str(folder), "n": 3} | FEW | settings)
    sample_images(gen, config, said.append)
    return said, json.loads((folder / "samples.json").read_text())


def pixels_of(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image))


def test_what_an_edit_writes(tmp_path: Path) -> None:
    gen, out = pixel_model(), tmp_path / "out"
    image = png(tmp_path, "in.png", np.arange(256, dtype=np.uint8).reshape(16, 16))
    how: dict[str, Any] = {"what": "edit", "image": image, "mask": "0,0,16,4", "resamples": 2, "labels": ["dog"]}
    said, facts = written(gen, out, **how)
    assert sorted(p.name for p in out.iterdir()) == [
        "00000.png", "00001.png", "00002.png", "denoising.gif", "grid.png", "samples.json"
    ]  # fmt: skip
    assert said[0] == f"image={image}: 16 x 16 pixels, of which it is drawn at 8 x 8" and len(said) == 2
    assert facts[2] == facts[2] | {"file": "00002.png", "index": 2, "class": "dog", "guidance": 2.0, "seed": 0}
    assert facts[2] == facts[2] | {"what": "edit", "image": image, "mask": "0,0,16,4", "resamples": 2}
    expected = gen.edit(image, "0,0,16,4", n=3, resamples=2, labels=["dog"], **FEW)
    assert torch.equal(pixels_of(out / "00002.png"), expected[2, 0])
    sheet = pixels_of(out / "grid.png")  # 2 columns of 64 pixels: the picture, the mask, then what was made of them
    picture = gen.picture(image).pixels[0].repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert torch.equal(sheet[2:66, 2:66], picture)
    assert sheet[2:18, 68:132].eq(255).all() and sheet[18:66, 68:132].eq(0).all()


def test_what_variations_and_outpainting_write(tmp_path: Path) -> None:
    gen = pixel_model()
    image = png(tmp_path, "in.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
    said, facts = written(gen, tmp_path / "varied", what="variations", image=image, strength=0.6)
    assert len(said) == 1 and facts[1] == facts[1] | {"what": "variations", "strength": 0.6, "guidance": 1.0}
    expected = gen.variations(image, n=3, strength=0.6, **FEW)
    assert torch.equal(pixels_of(tmp_path / "varied" / "00001.png"), expected[1, 0])
    _, facts = written(gen, tmp_path / "wider", what="outpaint", image=image, right=8, resamples=1)
    assert facts[0] == facts[0] | {"what": "outpaint", "right": 8} and "left" not in facts[0]
    wide = pixels_of(tmp_path / "wider" / "00000.png")
    assert wide.shape == (8, 16) and torch.equal(wide[:, :8], gen.picture(image).pixels[0])
    assert not (tmp_path / "wider" / "denoising.gif").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"what": "edit"}, "what=edit changes a picture: image=FILE"),
        (
            {"image": "a.png"},
            "image=a.png is for what=edit and what=outpaint and what=variations, not for what=images",
        ),
        (
            {"what": "variations", "image": "a.png", "mask": "left"},
            "mask=left is for what=edit, not for what=variations",
        ),
        ({"what": "edit", "image": "a.png", "left": 4}, "left=4 is for what=outpaint, not for what=edit"),
        ({"what": "outpaint", "image": "a.png"}, "how many pixels to add"),
        ({"what": "edit", "image": "a.png", "strength": 0.0}, "strength=0.0 does not fit"),
        ({"what": "edit", "image": "a.png", "resamples": 0}, "resamples=0 does not fit"),
    ],
)
def test_a_mistake_in_the_command_is_one_message(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(DiffusionSampling, {"run": "r"} | settings)


def test_edits_are_written_beside_the_samples_of_a_run() -> None:
    folders = [build(DiffusionSampling, {"run": "r"} | more).folder() for more in (
        {}, {"what": "edit", "image": "a.png", "seed": 3}
    )]  # fmt: skip
    assert [folder.name for folder in folders] == ["sample-0", "edit-3"]
