"""Runs of images that are served: what a family takes, how it is called, and what is said of what it drew."""

import base64
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import Tensor

from gengen.config.commands import DiffusionSettings, RunConfig
from gengen.config.serve import ServeConfig
from gengen.errors import UserError
from gengen.generation.base import GeneratesImages
from gengen.generation.image.autoencoder import AutoencoderGenerator
from gengen.generation.image.diffusion import ImageGenerator
from gengen.generation.image.editing import ImageEditor, Sampling
from gengen.generation.image.files import PictureGenerator, named, png_bytes, turn_of
from gengen.generation.image.gan import GANGenerator
from gengen.generation.image.provenance import Origin, chunks
from gengen.serving.calls import CallWorker
from gengen.serving.image_protocol import DrawRequest, EditRequest, RemixRequest, given, names_of
from gengen.serving.protocol import invalid
from gengen.serving.runs import facts

Watch = Callable[[int, float, Tensor, Tensor], None]
"""Called in each step of a sampler with its number, its time, the state and the estimate in it."""
SETTINGS = ("sampler", "steps", "guidance", "guide_from", "guide_to", "negative", "truncation")
"""Settings of a family that a request may name."""
WRONG_KIND = "wrong_kind_of_model"
FARTHEST = 2  # squares of the model's size that a picture is carried on by, a side
API_NAMES = {"labels": "prompt", "prompts": "prompt"}  # what a generator calls what a request calls otherwise


@dataclass
class ServedImages:
    """A run that draws images. directory: of its checkpoint."""

    name: str
    directory: Path
    generator: GeneratesImages
    worker: CallWorker
    facts: dict[str, Any]
    does: ClassVar[str] = "draws images: /v1/images/generations, and /gengen/v1 what its family has"

    @property
    def summary(self) -> str:
        about = self.facts["gengen"]
        what = "captions" if about["captions"] else f"{len(about['classes'])} classes"
        size = f", {about['side']} x {about['side']}" if about["side"] else ""
        return f"step {about['step']}, images{size}, {what}"

    @property
    def side(self) -> int | None:
        """Return the pixels a side of its images; None where it does not say."""
        side: int | None = self.facts["gengen"]["side"]
        return side

    def generate(self, asked: DrawRequest, n: int, seed: int, watch: Watch) -> tuple[Tensor, list[dict[str, Any]]]:
        """Return n images, uint8 (n, C, H, W), and of each what samples.json says. watch: see `Watch`; a family
        without steps does not call it. Raises ApiError for what this run does not take."""
        settings = self.checked(self.generator.generate, asked.settings)
        what = self.wanted(asked) | {"seed": seed, "first": asked.first}
        takes_callback = "callback" in inspect.signature(self.generator.generate).parameters
        watched: dict[str, Any] = {"callback": watch} if takes_callback else {}
        with refusing():
            said = self.facts_of(what, n, settings)
            return self.generator.generate(n, **what, **settings, **watched), said

    def edit(self, asked: EditRequest, n: int, seed: int, watch: Watch) -> tuple[Tensor, list[dict[str, Any]]]:
        """Return n changes of a picture, likewise."""
        generator = self.generator
        if not isinstance(generator, ImageEditor):
            raise invalid("model", f"{self.name} changes no images: a diffusion model does", WRONG_KIND)
        assert asked.image is not None, "check"
        self.check_sides(asked)
        settings = self.checked(generator.generate, asked.settings)
        what = self.wanted(asked) if asked.prompt else {}  # nothing is wanted: then nothing is guided
        how = given(asked, ("strength", "resamples"))
        negative, sampling = settings.pop("negative", ""), cast(Sampling, settings)
        added = {side: pixels for side, pixels in asked.added.items() if pixels}
        wider = partial(generator.outpaint, left=asked.left, right=asked.right, top=asked.top, bottom=asked.bottom)
        change = wider if added else partial(generator.edit, mask=asked.mask)
        with refusing():
            wanted = generator.wanted(n, what.get("labels", ()), what.get("prompts", ()), negative, asked.first)
            order = generator.order(wanted, seed, asked.strength, asked.resamples, None, settings)
            images = change(
                asked.image, n=n, **what, negative=negative, **how, seed=seed, first=asked.first, callback=watch,
                **sampling,
            )  # fmt: skip
            used = generator.settings(order.settings, RunConfig(), negative)[1]
        mask = {"mask": asked.mask} if isinstance(asked.mask, str) else {}
        said = {"what": "outpaint" if added else "edit", "seed": seed} | mask | added | how | used
        return images, [fact | said | {"guidance": order.settings.guidance} for fact in wanted.facts(range(n))]

    def check_sides(self, asked: EditRequest) -> None:
        """Raise ApiError where a picture would be carried on too far: each square of it is drawn by itself."""
        most = FARTHEST * (self.side or 1)
        for side, pixels in asked.added.items():
            if pixels > most:
                raise invalid(side, f"{side}={pixels}: this run carries a picture on by at most {most} pixels a side")

    def remix(self, asked: RemixRequest, seed: int, watch: Watch) -> tuple[Tensor, list[dict[str, Any]]]:
        """Return pictures on the way from one prompt to another, uint8 (pictures, C, H, W), and of each what
        samples.json says."""
        generator = self.generator
        if not isinstance(generator, ImageGenerator):
            raise invalid("model", f"{self.name} has no way between prompts: a diffusion model does", WRONG_KIND)
        settings = self.checked(generator.generate, asked.settings)
        prompt, to = asked.prompt or "", asked.to or ""
        with refusing():
            (said,) = self.facts_of({"prompts": [prompt], "seed": seed, "first": asked.first}, 1, settings)
            (way,) = generator.remix(
                prompt, to, 1, pictures=asked.pictures, seed=seed, first=asked.first, callback=watch, **settings
            )
        shares = [i / (asked.pictures - 1) for i in range(asked.pictures)]
        return way, [said | {"to": to, "at": share} for share in shares]

    def wanted(self, asked: DrawRequest) -> dict[str, Any]:
        """Return what a prompt asks for, in the words of `generate`: classes, or a text."""
        if getattr(self.generator, "reads_prompts", False):
            return {"prompts": [asked.prompt or ""]}
        return {"labels": [asked.prompt] if asked.prompt else []}

    def checked(self, function: Callable[..., object], settings: dict[str, Any]) -> dict[str, Any]:
        """Return settings, all of which the family takes. Raises ApiError for one that it does not."""
        takes = defaults(function)
        for name in settings:
            if name not in takes:
                known = f"takes {', '.join(takes)}" if takes else "takes no such settings"
                raise invalid(name, f"{name}: {self.name} is a {self.facts['gengen']['family']}, which {known}")
        return dict(settings)

    def facts_of(self, what: dict[str, Any], n: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what samples.json would say of each image."""
        seed, first, labels = what["seed"], what["first"], what.get("labels", ())
        generator = self.generator
        if isinstance(generator, ImageGenerator):
            negative = settings.get("negative", "")
            how = DiffusionSettings(**{name: value for name, value in settings.items() if name != "negative"})
            asked = generator.asked(n, labels, what.get("prompts", ()), negative, first)
            used = {"seed": seed} | generator.settings(how, RunConfig(), negative)[1]
            return [fact | used for fact in asked.facts(range(n))]
        turn = turn_of(labels, generator.classes)
        used = {"seed": seed} | defaults(generator.generate) | settings
        return [{"index": first + j} | used | named(turn[j % len(turn)], generator.classes) for j in range(n)]


def defaults(function: Callable[..., object]) -> dict[str, Any]:
    """Return the settings of `SETTINGS` that a family's function takes, each with its default."""
    parameters = inspect.signature(function).parameters
    return {name: parameters[name].default for name in SETTINGS if name in parameters}


@contextmanager
def refusing(parameter: str | None = None) -> Iterator[None]:
    """Turn a generator's error into one of a request, which names its parameter as the request does: the one given,
    or the one that the error begins with."""
    try:
        yield
    except UserError as error:
        message = str(error)
        if parameter:
            raise invalid(parameter, message) from None
        key = message.partition("=")[0].partition(":")[0]
        name = API_NAMES.get(key, key)
        if name not in names_of(EditRequest):
            raise invalid(None, message) from None
        raise invalid(name, name + message.removeprefix(key)) from None


def load_images(name: str, directory: Path, generator: GeneratesImages, config: ServeConfig) -> ServedImages:
    """Return a run of images to be served."""
    about = {
        "side": side_of(generator),
        "classes": list(generator.classes),
        "captions": bool(getattr(generator, "reads_prompts", False)),
        "edits": isinstance(generator, ImageEditor),
        "latent": latent_of(generator),
        "compares": generator.compares if isinstance(generator, GANGenerator) else None,
    }
    return ServedImages(name, directory, generator, CallWorker(config.queue), facts(name, directory, about))


def latent_of(generator: GeneratesImages) -> dict[str, Any] | None:
    """Return the shape of an autoencoder's latents, and whether draws of its prior are pictures; None for others."""
    if not isinstance(generator, AutoencoderGenerator):
        return None
    return {"shape": list(generator.model.latent_shape), "prior": generator.model.log_scale is not None}


def side_of(generator: GeneratesImages) -> int | None:
    if isinstance(generator, ImageEditor):
        return generator.side
    return generator.config.resolution if isinstance(generator, PictureGenerator) else None


def base64_png(run: ServedImages, image: Tensor, said: dict[str, Any]) -> str:
    return base64.b64encode(encoded_png(run, image, said)).decode()


def encoded_png(run: ServedImages, image: Tensor, said: dict[str, Any], times: int = 1) -> bytes:
    """Return an image (C, H, W) uint8 of a run as a PNG, each pixel repeated so often a side. It holds what the answer
    says of it, and where it comes from."""
    about = run.facts["gengen"]
    origin = Origin(run.name, about["step"], about["sha256"])
    return png_bytes(image.repeat_interleave(times, -1).repeat_interleave(times, -2), chunks(origin, said))
