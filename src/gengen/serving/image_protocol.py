"""What may be asked of the image API: one dataclass an endpoint, as in protocol.py. Pure."""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from typing import Any

from PIL import Image

from gengen.config.fields import choice, option
from gengen.data.image.decode import FORMATS, one_line_errors
from gengen.generation.image.masks import WORDS
from gengen.io import Json
from gengen.serving.protocol import MAX_N, MAX_SEED, MISSING, check_model, invalid, parameter

MAX_STEPS = 250
MAX_PARTIALS = 128  # partial images of a request
MAX_TEXT = 4000  # characters of a prompt
MAX_SIDE = 1024  # pixels a side of an enlarged image
MAX_GIVEN = 4096 * 4096  # pixels of an image that a request brings
SAMPLES = 2**31  # sample numbers
SIDES = ("left", "right", "top", "bottom")
SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
BOX = re.compile(r"[0-9]{1,5}(,[0-9]{1,5}){3}")


def read_response_format(key: str, value: Json) -> str:
    if value == "url":
        raise invalid(key, f"{key}=url: this server keeps no image to be fetched; b64_json is what it answers")
    if value != "b64_json":
        raise invalid(key, f"{key}={str(value)[:60]!r} is not b64_json, the only one there is")
    return "b64_json"


def read_size(key: str, value: Json) -> str:
    if value != "auto" and not (isinstance(value, str) and SIZE.fullmatch(value)):
        raise invalid(key, f"{key} is auto, or WIDTHxHEIGHT such as 64x64")
    return str(value)


def read_picture(key: str, value: Json) -> BytesIO:
    """Base64 -> the bytes of a picture, of which only the header is read here."""
    if not isinstance(value, str) or not value:
        raise invalid(key, f"{key} is a {', '.join(FORMATS)} image in base64; no URL and no path is opened")
    try:
        found = BytesIO(base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError):
        raise invalid(key, f"{key} is no base64; no URL and no path is opened") from None
    try:
        with one_line_errors(), Image.open(found, formats=FORMATS) as image:
            width, height = image.size
    except ValueError as error:
        raise invalid(key, f"{key}: {error}") from None
    if width * height > MAX_GIVEN:
        raise invalid(key, f"{key}: {width:,} x {height:,} pixels; at most {MAX_GIVEN:,} are read")
    found.seek(0)
    return found


def read_mask(key: str, value: Json) -> str | BytesIO:
    """A word, a box, or a picture in base64: never a path."""
    if isinstance(value, str) and (value in WORDS or BOX.fullmatch(value)):
        return value
    return read_picture(key, value)


def given(request: object, names: Sequence[str]) -> dict[str, Any]:
    """Return the parameters that a request sets, of some that are null where it does not."""
    return {name: value for name in names if (value := getattr(request, name)) is not None}


@dataclass
class DrawRequest:
    """What all requests share that draw with an image model."""

    model: str = option("", "the run, by its name")
    prompt: str | None = option(None, 'classes, by name or number, commas between, "" = all in turn; or what to show')
    seed: int | None = option(
        None, "image i is a function of seed and i alone; null = a new one", low=0, high=MAX_SEED
    )
    first: int = option(0, "number of the first sample", low=0, high=SAMPLES)
    sampler: str | None = choice(None, ["heun", "dpmpp_2m", "ddim", "ancestral"], "how noise is turned into an image")
    steps: int | None = option(None, "of the sampler", low=1, high=MAX_STEPS)
    guidance: float | None = option(None, "1 = off; null = what suits the model", low=0, high=100)
    guide_from: float | None = option(None, "guide only where the share of noise is at least this", low=0, high=1)
    guide_to: float | None = option(None, "and at most this", low=0, high=1)
    negative: str | None = option(None, "a text to lead away from")

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings of the family that are asked for."""
        return given(self, ("sampler", "steps", "guidance", "guide_from", "guide_to", "negative"))

    def check(self) -> None:
        """Raise ApiError where parameters do not go together."""
        check_model(self.model)
        if self.prompt is None:
            raise invalid("prompt", 'prompt is missing: "" draws all classes in turn, or whatever comes', MISSING)
        for key in ("prompt", "negative"):
            if len(getattr(self, key) or "") > MAX_TEXT:
                raise invalid(key, f"{key} has more than {MAX_TEXT} characters")


@dataclass
class ImageRequest(DrawRequest):
    """The body of POST /v1/images/generations."""

    n: int = option(1, "images", low=1, high=MAX_N)
    size: str = parameter(read_size, "auto = the model's own; or a whole multiple of it, each pixel repeated", "auto")
    response_format: str = parameter(read_response_format, "b64_json", "b64_json")
    output_format: str = choice("png", ["png"], "of the images")
    output_compression: int = option(100, "a PNG loses nothing", low=100, high=100)
    background: str = choice("auto", ["auto", "opaque"], "nothing is transparent")
    quality: str = choice("auto", ["auto"], "steps= says how much care is taken")
    moderation: str = choice("auto", ["auto", "low"], "ignored")
    stream: bool = option(False, "answer by server-sent events")
    partial_images: int = option(0, "with stream: estimates of each image on the way", low=0, high=MAX_PARTIALS)
    truncation: float | None = option(None, "GANs: factor on z", above=0, high=10)

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | given(self, ("truncation",))

    def check(self) -> None:
        super().check()
        if self.partial_images and not self.stream:
            raise invalid("partial_images", "partial_images is for stream=true")
        if self.n * self.partial_images > MAX_PARTIALS:
            message = f"partial_images={self.partial_images} of n={self.n} images are more than {MAX_PARTIALS} in all"
            raise invalid("partial_images", message)


@dataclass
class EditRequest(ImageRequest):
    """The body of POST /gengen/v1/images/edits. OpenAI's own is a form with files; this one is JSON."""

    prompt: str | None = option("", 'classes or a text, as for new images; "" = whatever fits')
    image: BytesIO | None = parameter(read_picture, "the picture, in base64; its centre square is taken")
    mask: str | BytesIO | None = parameter(
        read_mask,
        "what to draw anew: left, right, top, bottom, center; x0,y0,x1,y1; or a picture, white where it is open",
    )
    strength: float | None = option(None, "share of the way to noise to start from", above=0, high=1)
    resamples: int | None = option(None, "rounds of each step behind a mask", low=1, high=50)
    left: int = option(0, "pixels to carry the picture on by, beyond this edge of it", low=0, high=MAX_SIDE)
    right: int = option(0, "and beyond this one", low=0, high=MAX_SIDE)
    top: int = option(0, "and this", low=0, high=MAX_SIDE)
    bottom: int = option(0, "and this", low=0, high=MAX_SIDE)

    @property
    def added(self) -> dict[str, int]:
        """Return the pixels to be added to each side."""
        return {side: getattr(self, side) for side in SIDES}

    def check(self) -> None:
        super().check()
        if self.image is None:
            raise invalid("image", "image is missing: the picture to change, in base64", MISSING)
        if any(self.added.values()):
            for key in ("mask", "partial_images"):
                if getattr(self, key):
                    raise invalid(key, f"{key} is for pictures that keep their size: leave out {' '.join(SIDES)}")


@dataclass
class RemixRequest(DrawRequest):
    """The body of POST /gengen/v1/remix: pictures on the way from one prompt to another, all of sample `first`."""

    to: str | None = option(None, "the other prompt")
    pictures: int = option(8, "on the way, both ends included", low=2, high=MAX_N)

    def check(self) -> None:
        super().check()
        if self.to is None:
            raise invalid("to", "to is missing: the prompt to end with", MISSING)
        if len(self.to) > MAX_TEXT:
            raise invalid("to", f"to has more than {MAX_TEXT} characters")


def names_of(cls: type) -> set[str]:
    return {f.name for f in fields(cls)}


def enlargement(size: str, side: int | None) -> int:
    """Return how often each pixel is repeated a side. Raises ApiError for a size that the model does not have.

    side: pixels a side of the model's images; None = it does not say.
    """
    if size == "auto":
        return 1
    match = SIZE.fullmatch(size)
    assert match, "read_size"
    width, height = int(match[1]), int(match[2])
    if side is None:
        raise invalid("size", "size: this run does not say how large its images are; auto takes them as they are")
    if width != height or width % side or not side <= width <= max(side, MAX_SIDE):
        most = max(side, MAX_SIDE // side * side)
        raise invalid(
            "size", f"size={size}: this run draws {side}x{side}; a multiple of it up to {most}x{most} is taken"
        )
    return width // side
