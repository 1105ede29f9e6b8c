"""The contracts of generation/base.py, and signatures that say what the configs say."""

import inspect
import json
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_autoencoder_samples import generator as autoencoder
from test_gan_samples import generator as gan
from test_image import generator as diffusion

from gengen.cli.sample_images import sample_images
from gengen.config.commands import (
    AutoencoderSampling,
    DecodingSettings,
    DiffusionSampling,
    DiffusionSettings,
    EvaluateConfig,
    GANSampling,
    PictureSampling,
    TextSampling,
)
from gengen.errors import UserError
from gengen.generation.base import (
    GeneratesFromPrompts,
    GeneratesImages,
    GeneratesText,
    Generator,
    Labels,
    Reconstructs,
)
from gengen.generation.image.autoencoder import AutoencoderGenerator
from gengen.generation.image.diffusion import ImageGenerator
from gengen.generation.image.gan import GANGenerator
from gengen.generation.text.generator import TextGenerator

FAMILIES: dict[str, Callable[[], Any]] = {"diffusion": diffusion, "gan": gan, "vae": autoencoder}


def defaults(config: type, *names: str) -> dict[str, Any]:
    """The defaults of the fields of these names, a list as what it holds."""
    known = {f.name: f.default if f.default_factory is MISSING else tuple(f.default_factory()) for f in fields(config)}
    return {name: known[name] for name in names or known}


@pytest.mark.parametrize(
    "call,own,wanted",
    [
        (
            TextGenerator.generate,
            ["grammar", "processor", "interrupted"],
            defaults(TextSampling, "n") | defaults(DecodingSettings),
        ),
        (
            TextGenerator.stream,
            ["grammar", "processor", "interrupted"],
            {name: value for name, value in defaults(DecodingSettings).items() if name != "logprobs_of"},
        ),
        (
            ImageGenerator.generate,
            ["first", "frames", "callback", "interrupted"],
            defaults(DiffusionSampling, "n", "seed", "labels", "negative")
            | {"prompts": ()}
            | defaults(DiffusionSettings),
        ),
        (
            ImageGenerator.remix,
            ["first", "callback"],
            defaults(DiffusionSampling, "n", "seed", "negative", "pictures") | defaults(DiffusionSettings),
        ),
        (GANGenerator.generate, ["first"], defaults(GANSampling, "n", "seed", "labels", "truncation")),
        (AutoencoderGenerator.generate, ["first", "labels"], defaults(AutoencoderSampling, "n", "seed")),
    ],
    ids=["text", "stream", "diffusion", "remix", "gan", "autoencoder"],
)
def test_keywords_and_their_defaults_are_those_of_the_command(
    call: Callable[..., Any], own: list[str], wanted: dict[str, Any]
) -> None:
    """What `sample` draws by default is what Python draws by default."""
    parameters = list(inspect.signature(call).parameters.values())[1:]
    found = {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in own}
    assert found == wanted
    positional = {
        TextGenerator.generate: {"prompts"},
        TextGenerator.stream: {"prompt"},
        ImageGenerator.remix: {*"abn"},
    }
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters if p.name not in positional.get(call, {"n", "labels"}))


@pytest.mark.parametrize("family", FAMILIES)
def test_generators_of_images_keep_the_contract(family: str) -> None:
    made = FAMILIES[family]()
    assert isinstance(made, Generator) and isinstance(made, GeneratesImages) and not isinstance(made, GeneratesText)
    assert isinstance(made, Reconstructs) == (family == "vae")
    assert isinstance(made, GeneratesFromPrompts) == (family == "diffusion")
    assert family != "diffusion" or not made.reads_prompts  # this one knows classes
    assert made.command_hint.format(run="runs/x").count("runs/x") == 1


def test_a_generator_of_text_keeps_the_contract(generator: TextGenerator) -> None:
    assert isinstance(generator, GeneratesText) and not isinstance(generator, GeneratesImages | Reconstructs)


class Flat:
    """A generator of a user's own that can do nothing but generate."""

    model, command_hint, classes = torch.nn.Identity(), "{run}", ()

    def generate(self, n: int = 16, labels: Labels = (), *, seed: int = 0, first: int = 0) -> torch.Tensor:
        return (seed + torch.arange(first, first + n, dtype=torch.uint8)).expand(1, 8, 8, n).permute(3, 0, 1, 2)

    def image_sampler(self, config: EvaluateConfig) -> None:
        return None


def test_sample_writes_what_a_generator_of_ones_own_generates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generator: TextGenerator
) -> None:
    """A batch at a time; sample i is the same in whichever."""
    monkeypatch.setattr("gengen.cli.sample_images.BATCH", 2)
    said: list[str] = []
    config = PictureSampling(run="r", n=5, seed=7, out=str(tmp_path / "out"))
    assert sample_images(Flat(), config, said.append).startswith("5 images in ")
    facts = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert facts == [{"file": f"{i:05}.png", "index": i, "seed": 7} for i in range(5)]
    for i in range(5):
        with Image.open(tmp_path / "out" / f"{i:05}.png") as image:
            assert image.getpixel((0, 0)) == 7 + i
    with pytest.raises(UserError, match="r draws no images: TextGenerator has no generate"):
        sample_images(generator, config, said.append)


def test_a_class_of_a_model_without_classes_is_refused() -> None:
    with pytest.raises(UserError, match="without classes"):
        autoencoder().generate(2, ["cat"])


def test_evaluation_records_how_diffusion_draws() -> None:
    """As it was asked for: the guidance that a null stands for is the model's."""
    config = EvaluateConfig(run="r", steps=1, sampler="ddim")
    recorded = diffusion().image_sampler(config).settings
    assert recorded == {f.name: getattr(config, f.name) for f in fields(DiffusionSettings)}
    assert recorded["guidance"] is None and recorded["steps"] == 1
    assert gan().image_sampler(config).settings == {}
