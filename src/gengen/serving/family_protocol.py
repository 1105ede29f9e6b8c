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
)

MAX_SHOWN = 100  # tokens of `next`
MAX_FRAMES = 32  # of `denoise`
MAX_SCORED = 64  # answers of a request
MAX_LATENTS = 65_536  # numbers of a latent
SPAN = 6.0  # deviations to either side that a latent may have


@dataclass
class NextRequest(Controls):
    """The body of POST /gengen/v1/next: which token would be next, and what each control makes of it."""

    model: str = option("", "the run, by its name")
    prompt: list[str | list[int]] = parameter(read_prompts, "a text or tokens to go on from", [])
    messages: list[dict[str, str]] = parameter(read_messages, "or a conversation", [])
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
class LatentRequest:
    """The body of POST /gengen/v1/latent: what an autoencoder decodes from a latent."""

    model: str = option("", "the run, by its name")
    seed: int = option(0, "the draw from the prior that is changed", low=0, high=MAX_SEED)
    first: int = option(0, "its number", low=0, high=SAMPLES)
    deviations: list[float | None] = parameter(
        read_deviations, "standard deviations from the mean, of each channel or of each number of the latent", []
    )

    def check(self) -> None:
        """Raise ApiError where parameters do not go together."""
        check_model(self.model)


@dataclass
class ReconstructRequest:
    """The body of POST /gengen/v1/reconstruct: what an autoencoder leaves of a picture."""

    model: str = option("", "the run, by its name")
    image: BytesIO | None = parameter(read_picture, "a picture in base64, which is brought to the model's size")

    def check(self) -> None:
        """Raise ApiError where parameters do not go together."""
        check_model(self.model)
        if self.image is None:
            raise invalid("image", "image is missing: a picture in base64", MISSING)


@dataclass
class GanRequest:
    """The body of POST /gengen/v1/gan: images, and what the discriminator says of them."""

    model: str = option("", "the run, by its name")
    prompt: str = option("", 'classes, by name or number; "" = all in turn')
    n: int = option(1, "images", low=1, high=MAX_N)
    seed: int = option(0, "image i is a function of seed and i alone", low=0, high=MAX_SEED)
    first: int = option(0, "number of the first sample", low=0, high=SAMPLES)
    truncation: float = option(1.0, "factor on z", above=0, high=10)

    def check(self) -> None:
        """Raise ApiError where parameters do not go together."""
        check_model(self.model)
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
class ScoreRequest:
    """The body of POST /gengen/v1/score: what a reward model thinks of answers."""

    model: str = option("", "the run, by its name")
    prompt: str | None = option(None, "what was asked")
    messages: list[dict[str, str]] = parameter(
        read_messages, "or a conversation, up to where the assistant speaks", []
    )
    responses: list[str] = parameter(read_responses, "the answers to score", [])
    ended: bool = option(True, "whether they have ended, or were cut off")

    def check(self) -> None:
        """Raise ApiError where parameters do not go together."""
        check_model(self.model)
        if (self.prompt is None) == (not self.messages):
            raise invalid("prompt", "give prompt, a text, or messages, a conversation", MISSING)
        if not self.responses:
            raise invalid("responses", "responses is missing: the answers to score", MISSING)
