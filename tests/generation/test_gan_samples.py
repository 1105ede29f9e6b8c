"""Drawing from GANs: image i is a function of (seed, i, its label), classes by name, paths, truncation, and the files
of the command.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import gengen.generation.image.gan
from gengen.cli.sample_images import sample_images
from gengen.config.commands import EvaluateConfig, GANSampling
from gengen.config.model import DCGANConfig, GANConfig
from gengen.errors import UserError
from gengen.generation.image.files import enlarged, grid, to_uint8
from gengen.generation.image.gan import GANGenerator
from gengen.generation.noise import slerp
from gengen.models.dcgan import DCGAN
from gengen.models.gan import GAN

CLASSES = ["Cat", "dog", "fox"]


def generator(family: str = "gan", **settings: Any) -> GANGenerator:
    """Of a small GAN whose every weight matters and, with batch normalisation, whose statistics are those of some
    batches.
    """
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "resolution": 16,
        "channels": 1,
        "classes": CLASSES,
        "latent_size": 8,
        "widths": [8, 16],
    } | settings
    model = DCGAN(DCGANConfig(**shape)) if family == "dcgan" else GAN(GANConfig(**shape | {"blocks": 1, "patch": 2}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for _ in range(20):
            model.generator(torch.randn(16, 8), torch.full((16,), -1))
    return GANGenerator(model)


@pytest.fixture
def in_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images as the network made them."""
    monkeypatch.setattr(gengen.generation.image.gan, "to_uint8", lambda x: x)


def apart(a: Tensor, b: Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


# --- what an image depends on


@pytest.mark.parametrize("family", ["gan", "dcgan"])
def test_image_i_does_not_depend_on_how_many_are_drawn(family: str) -> None:
    g = generator(family)
    images = g.generate(16, seed=5)
    assert images.dtype == torch.uint8 and len({image.numpy().tobytes() for image in images}) == 16
    assert torch.equal(g.generate(4, seed=5), images[:4])
    assert not torch.equal(g.generate(16, seed=6), images)


@pytest.mark.usefixtures("in_floats")
@pytest.mark.parametrize("family", ["gan", "dcgan"])
def test_nor_do_its_floats_on_those_drawn_with_it(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    g = generator(family)
    g.model.train()  # as in the middle of training
    images = g.generate(16)
    assert images.dtype == torch.float32
    torch.testing.assert_close(g.generate(4), images[:4], atol=1e-4, rtol=0)
    monkeypatch.setattr(gengen.generation.image.gan, "BATCH", 3)
    torch.testing.assert_close(g.generate(16), images, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("in_floats")
def test_statistics_of_the_batch_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug put back: batch normalisation left in training."""
    g = generator("dcgan")
    g.model.train()
    monkeypatch.setattr(g.model, "eval", lambda: g.model)
    assert not torch.allclose(g.generate(4), g.generate(16)[:4], atol=1e-2)


def test_noise_is_of_seed_and_index_alone() -> None:
    g = generator()
    z = g.latents(range(8), 3)
    assert z.shape == (8, 8) and torch.equal(g.latents([5, 2], 3), z[[5, 2]])
    assert not torch.isclose(g.latents(range(8), 4), z).any()
    many = g.latents(range(2000))
    assert many.mean().item() == pytest.approx(0, abs=0.03) and many.std().item() == pytest.approx(1, abs=0.03)


# --- classes


@pytest.mark.parametrize(
    "wanted,labels",
    [
        ((), [0, 1, 2, 0, 1]),
        (["dog"], [1, 1, 1, 1, 1]),
        (["FOX", "0"], [2, 0, 2, 0, 2]),
        (["dog,cat"], [1, 0, 1, 0, 1]),
        ([2], [2, 2, 2, 2, 2]),
    ],
)
def test_classes_are_named_numbered_and_taken_in_turn(wanted: list[str | int], labels: list[int]) -> None:
    g = generator()
    assert torch.equal(g.generate(5, wanted, seed=1), g.decode(g.latents(range(5), 1), labels))
    assert not torch.equal(
        g.decode(g.latents(range(5), 1), [(label + 1) % 3 for label in labels]), g.generate(5, wanted, seed=1)
    )


def test_classes_named_by_numbers_are_drawn_as_numbered() -> None:
    """As previews and `evaluate` ask for them."""
    g = generator(classes=sorted(str(i) for i in range(12)))
    expected = g.decode(g.latents(range(12), 3), range(12))
    assert torch.equal(g.generate(12, range(12), seed=3), expected)
    assert torch.equal(g.image_sampler(EvaluateConfig(run="r", seed=3))(torch.arange(12)), expected)
    assert torch.equal(g.generate(12, ["10"], seed=3), g.decode(g.latents(range(12), 3), [2] * 12))


def test_a_class_that_is_not_there_is_answered() -> None:
    with pytest.raises(UserError, match=r"labels=dgo: no such class\n +did you mean dog\?"):
        generator().generate(2, ["dgo"])
    with pytest.raises(UserError, match="labels=3: no such class"):
        generator().generate(2, [3])
    with pytest.raises(UserError, match="trained without classes"):
        generator(classes=[]).generate(2, ["dog"])


def test_without_classes_images_are_of_none() -> None:
    g = generator(classes=[])
    assert torch.equal(g.generate(4), g.decode(g.latents(range(4)), [-1] * 4))
    assert torch.equal(g.image_sampler(EvaluateConfig(run="r", seed=2))(torch.full((3,), -1)), g.generate(3, seed=2))


def test_evaluation_judges_images_of_the_labels_it_gives() -> None:
    g = generator()
    images = g.image_sampler(EvaluateConfig(run="r", seed=3))(torch.tensor([2, 2, 0]))
    assert torch.equal(images, g.decode(g.latents(range(3), 3), [2, 2, 0]))


# --- truncation and paths


def test_truncation_brings_images_to_that_of_their_class() -> None:
    g = generator()
    assert torch.equal(g.generate(6, truncation=1.0), g.generate(6))
    images = g.generate(6, truncation=1e-6)
    middle = g.decode(torch.zeros(3, 8), [0, 1, 2])
    assert apart(images, middle.repeat(2, 1, 1, 1)) <= 1
    assert apart(middle[0], middle[1]) > 10  # the class is not truncated
    assert apart(g.generate(6), middle.repeat(2, 1, 1, 1)) > 10
    assert torch.equal(g.generate(6, truncation=0.5), g.decode(g.latents(range(6)) / 2, [0, 1, 2] * 2))


def test_paths_begin_and_end_at_what_was_given() -> None:
    g = generator()
    a, b = g.latents([0, 1])
    path = g.interpolate(a, b, 2, steps=5)
    assert path.shape == (5, 1, 16, 16)
    assert apart(path[[0, 4]], g.decode(torch.stack([a, b]), [2, 2])) <= 1
    assert apart(path[2:3], g.decode(slerp(a, b, torch.tensor([0.5])), [2])) <= 1
    assert apart(path[[0, 4]], g.decode(torch.stack([a, b]), [1, 1])) > 10


# --- the model


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    g = generator("dcgan")
    g.model.train(training)
    before = {name: tensor.clone() for name, tensor in g.model.state_dict().items()}
    g.generate(3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in g.model.state_dict().items())
    assert {module.training for module in g.model.modules()} == {training}
    assert all(p.requires_grad for p in g.model.parameters())
    with pytest.raises(IndexError):
        g.decode(torch.zeros(1, 8), [99])
    assert {module.training for module in g.model.modules()} == {training}


def test_images_are_made_in_fp32_inside_autocast() -> None:
    g = generator()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = g.generate(4)
    assert torch.equal(inside, g.generate(4))


# --- files


def read(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("L")))


def test_the_command_writes_images_and_what_they_are(tmp_path: Path) -> None:
    g, said = generator(), list[str]()
    config = GANSampling(run="r", out=str(tmp_path / "out"), n=4, seed=3, labels=["dog", "cat"], truncation=0.5)
    summary = sample_images(g, config, said.append)
    images, out = g.generate(4, [1, 0], seed=3, truncation=0.5), tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [f"{i:05}.png" for i in range(4)] + [
        "grid.png",
        "samples.json",
    ]
    for i in range(4):
        assert torch.equal(read(out / f"{i:05}.png"), images[i, 0])
    assert torch.equal(read(out / "grid.png"), grid(enlarged(images))[0])
    entries = json.loads((out / "samples.json").read_text())
    assert entries[2] == {"file": "00002.png", "index": 2, "seed": 3, "truncation": 0.5, "label": 1, "class": "dog"}
    assert [entry["class"] for entry in entries] == ["dog", "Cat", "dog", "Cat"]
    assert said == [f"{out}/grid.png"] and summary.startswith("4 images in ")


def test_the_command_writes_paths_a_row_each_and_their_animation(tmp_path: Path) -> None:
    g, out = generator(), tmp_path / "out"
    config = GANSampling(
        run="r", out=str(out), n=2, seed=3, labels=["dog", "fox"], truncation=0.5, what="interpolation", steps=4
    )
    config.check()
    sample_images(g, config, lambda line: None)
    numbered = sorted(out.glob("0*.png"))
    assert [path.name for path in numbered] == [f"{i:05}.png" for i in range(8)]
    assert {path.name for path in out.iterdir()} - {path.name for path in numbered} == {
        "grid.png",
        "interpolation.gif",
        "samples.json",
    }
    ends = g.decode(g.latents(range(4), 3) / 2, [1, 1, 2, 2])
    for file, end in zip((0, 3, 4, 7), ends, strict=True):
        assert apart(read(numbered[file]), end[0]) <= 1
    assert read(out / "grid.png").shape == (2 * 66 + 2, 4 * 66 + 2)  # a row a path
    entries = json.loads((out / "samples.json").read_text())
    assert [entry["at"] for entry in entries] == pytest.approx([0, 1 / 3, 2 / 3, 1] * 2)
    last = {
        "file": "00007.png",
        "from": 2,
        "to": 3,
        "seed": 3,
        "truncation": 0.5,
        "label": 2,
        "class": "fox",
        "at": 1.0,
    }
    assert entries[-1] == last
    with Image.open(out / "interpolation.gif") as gif:
        assert gif.n_frames > 60  # type: ignore[attr-defined]  # there and back; frames alike are one
        for frame, expected in (
            (0, ends[[0, 2]]),
            (gif.n_frames - 1, ends[[0, 2]]),
            (gif.n_frames // 2, ends[[1, 3]]),
        ):  # type: ignore[attr-defined]
            gif.seek(frame)
            shown = torch.from_numpy(np.array(gif.convert("L")))
            assert (shown.int() - grid(enlarged(expected))[0].int()).abs().float().mean() < 3


def test_files_of_an_unlabelled_model_name_no_class(tmp_path: Path) -> None:
    for what in ("images", "interpolation"):
        config = GANSampling(run="r", out=str(tmp_path / what), n=1, what=what)
        sample_images(generator(classes=[]), config, lambda line: None)
        entries = json.loads((tmp_path / what / "samples.json").read_text())
        assert len(entries) == {"images": 1, "interpolation": 8}[what]
        assert not any("label" in entry or "class" in entry for entry in entries)


def test_bytes_are_the_nearest_to_what_the_network_made() -> None:
    g = generator()
    z = g.latents(range(4))
    with torch.no_grad():
        made = g.model.generator(z, torch.tensor([0, 1, 2, 0]))
    assert apart(g.generate(4), to_uint8(made)) <= 1 and made.std() > 0.1
