"""What may be asked of the endpoints of single families: a dataclass each, as in protocol.py. Pure."""

import math
from dataclasses import dataclass
from io import BytesIO

from gengen.config.fields import option
from gengen.io import Json
from gengen.serving.image_protocol import MAX_TEXT, SAMPLES, DrawRequest, read_picture
from gengen.serving.protocol import (
    MAX_N,
    MAX_SEED,
    MISSING,
    Controls,
    check_model,
    invalid,
    parameter,
    read_messages,
    read_prompts,
    read_token_ids,
)

MAX_SHOWN = 100  # tokens of `next`
MAX_FRAMES = 32  # of `denoise`
MAX_SCORED = 64  # answers of a request
MAX_LATENTS = 65_536  # numbers of a latent
MAX_CHANNELS = 64  # that are ordered by what they change
MAX_SIDE = 9  # images a side of a plane
SPAN = 6.0  # deviations to either side that a latent may have


@dataclass
class OfRun:
    """What is asked of one run."""

    model: str = option("", "the run, by its name")

    def check(self) -> None:
        """Raise ApiError where parameters do not go together."""
        check_model(self.model)


@dataclass
class NextRequest(Controls):
    """The body of POST /gengen/v1/next: which token would be next, and what each control makes of it."""

    model: str = option("", "the run, by its name")
    prompt: list[str | list[int]] = parameter(read_prompts, "a text or tokens to go on from", [])
    messages: list[dict[str, str]] = parameter(read_messages, "or a conversation", [])
    drawn: list[int] = parameter(read_token_ids, "tokens that were drawn since", [])
    logits: bool = option(False, "return the logits of all tokens too, base64 of little-endian fp32")
    top: int = option(
        10, "tokens to show, the likeliest by the model itself and by what is drawn from", low=1, high=MAX_SHOWN
    )

    def check(self) -> None:
        """Raise ApiError where parameters do not go together."""
        check_model(self.model)
        if bool(self.prompt) == bool(self.messages):
            raise invalid("prompt", "give prompt, a text or tokens, or messages, a conversation", MISSING)
        if len(self.prompt) > 1:
            raise invalid("prompt", "prompt is one text or one list of tokens here")


@dataclass
class DenoiseRequest(DrawRequest):
    """The body of POST /gengen/v1/denoise: how noise becomes sample number `first`."""

    frames: int = option(8, "steps to show, evenly, the first among them", low=1, high=MAX_FRAMES)
    stream: bool = option(False, "send each step as it comes, by server-sent events")


def read_deviations(key: str, value: Json) -> list[float | None]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_LATENTS:
        raise invalid(key, f"{key} is a list of numbers, null where the draw stays as it is")
    found: list[float | None] = []
    for i, item in enumerate(value):
        number = isinstance(item, int | float) and not isinstance(item, bool)
        if item is not None and not (number and math.isfinite(item) and abs(item) <= SPAN):
            raise invalid(
                f"{key}[{i}]", f"{key}[{i}]={str(item)[:60]} is no number from {-SPAN:g} to {SPAN:g}, nor null"
            )
        found.append(None if item is None else float(item))
    return found


@dataclass
class LatentRequest(OfRun):
    """The body of POST /gengen/v1/latent: what an autoencoder decodes from a latent."""

    seed: int = option(0, "the draw from the prior that is changed", low=0, high=MAX_SEED)
    first: int = option(0, "its number", low=0, high=SAMPLES)
    deviations: list[float | None] = parameter(
        read_deviations, "standard deviations from the mean, of each channel or of each number of the latent", []
    )
    channels: int = option(
        0, "also name so many channels, those first that change the picture most", low=0, high=MAX_CHANNELS
    )


@dataclass
class PathRequest(OfRun):
    """The body of POST /gengen/v1/latent/path: what an autoencoder decodes between two draws of its prior."""

    seed: int = option(0, "of both draws", low=0, high=MAX_SEED)
    first: int = option(0, "number of the draw to go from", low=0, high=SAMPLES)
    to: int = option(1, "number of the draw to go to, on the great arc", low=0, high=SAMPLES)
    steps: int = option(8, "images, both ends among them", low=2, high=MAX_FRAMES)


def read_channels(key: str, value: Json) -> list[int]:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 2 or not all(type(z) is int and z >= 0 for z in numbers) or numbers[0] == numbers[1]:
        raise invalid(key, f"{key} is a list of two different channels, such as [0, 1]")
    return numbers


@dataclass
class PlaneRequest(OfRun):
    """The body of POST /gengen/v1/latent/plane: a draw of an autoencoder's prior, with two channels moved."""

    seed: int = option(0, "the draw from the prior that is changed", low=0, high=MAX_SEED)
    first: int = option(0, "its number", low=0, high=SAMPLES)
    channels: list[int] = parameter(read_channels, "the channel that changes down, and the one across", [0, 1])
    steps: int = option(5, "images a side, from -3 to 3 standard deviations", low=2, high=MAX_SIDE)


@dataclass
class ReconstructRequest(OfRun):
    """The body of POST /gengen/v1/reconstruct: a picture, through an autoencoder's latents and back."""

    image: BytesIO | None = parameter(read_picture, "the picture, in base64; its centre square is taken")

    def check(self) -> None:
        super().check()
        if self.image is None:
            raise invalid("image", "image is missing: the picture to reconstruct, in base64", MISSING)


@dataclass
class GanRequest(OfRun):
    """The body of POST /gengen/v1/gan: images, and what the discriminator says of them."""

    prompt: str = option("", 'classes, by name or number; "" = all in turn')
    n: int = option(1, "images", low=1, high=MAX_N)
    seed: int = option(0, "image i is a function of seed and i alone", low=0, high=MAX_SEED)
    first: int = option(0, "number of the first sample", low=0, high=SAMPLES)
    to: int | None = option(
        None, "go from sample `first` to this one, on the great arc in n steps, instead", low=0, high=SAMPLES
    )
    truncation: float = option(1.0, "factor on z", above=0, high=10)

    def check(self) -> None:
        super().check()
        if self.to is not None and self.n < 2:
            raise invalid("n", "n: a way from one sample to another has 2 images at least, both ends")
        if len(self.prompt) > MAX_TEXT:
            raise invalid("prompt", f"prompt has more than {MAX_TEXT} characters")


def read_responses(key: str, value: Json) -> list[str]:
    responses = [value] if isinstance(value, str) else value
    if not isinstance(responses, list) or not responses or not all(isinstance(text, str) for text in responses):
        raise invalid(key, f"{key} is a text or a list of texts")
    if len(responses) > MAX_SCORED:
        raise invalid(key, f"{key} holds {len(responses)} texts; a request takes at most {MAX_SCORED}")
    return responses


@dataclass
class ScoreRequest(OfRun):
    """The body of POST /gengen/v1/score: what a reward model thinks of answers."""

    prompt: str | None = option(None, "what was asked")
    messages: list[dict[str, str]] = parameter(
        read_messages, "or a conversation, up to where the assistant speaks", []
    )
    responses: list[str] = parameter(read_responses, "the answers to score", [])
    ended: bool = option(True, "whether they have ended, or were cut off")

    def check(self) -> None:
        super().check()
        if (self.prompt is None) == (not self.messages):
            raise invalid("prompt", "give prompt, a text, or messages, a conversation", MISSING)
        if not self.responses:
            raise invalid("responses", "responses is missing: the answers to score", MISSING)
