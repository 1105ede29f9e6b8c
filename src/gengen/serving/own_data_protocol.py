"""What may be asked about the data that a run was trained on: a dataclass each, as in protocol.py. Pure."""

from dataclasses import dataclass

from gengen.config.fields import choice, option
from gengen.serving.family_protocol import OfRun
from gengen.serving.protocol import MAX_SEED, MISSING, invalid

MAX_REAL = 64  # pictures of a request
MAX_COMPARED = 4_000  # characters of a text that is compared
MAX_PROMPTS = 50  # of a request


@dataclass
class RealRequest(OfRun):
    """The body of POST /gengen/v1/real: pictures of a GAN's own data, as its discriminator judges them."""

    part: str = choice("val", ["val", "train"], "val: held out; train: those that the discriminator learnt from")
    prompt: str = option("", "a class, or several with commas between; empty = any")
    n: int = option(16, "pictures, evenly over the part; fewer where it has fewer", low=1, high=MAX_REAL)


@dataclass
class CopiedRequest(OfRun):
    """The body of POST /gengen/v1/copied: what of a text stands word for word in what a run was trained on."""

    text: str = option("", "the text to compare")

    def check(self) -> None:
        super().check()
        if not self.text:
            raise invalid("text", "text is missing: what to compare with the training text", MISSING)
        if len(self.text) > MAX_COMPARED:
            raise invalid("text", f"text has {len(self.text):,} characters; {MAX_COMPARED:,} at most are compared")


@dataclass
class PromptsRequest(OfRun):
    """The body of POST /gengen/v1/prompts: prompts of what was held out from a run's training."""

    first: int = option(0, "number of the first", low=0, high=2**31 - 1)
    n: int = option(10, "how many; fewer at the end", low=1, high=MAX_PROMPTS)


@dataclass
class GameRequest(OfRun):
    """The body of POST /gengen/v1/gan/game: each discriminator that was saved against each generator."""

    seed: int = option(0, "of the drawn pictures", low=0, high=MAX_SEED)
    n: int = option(64, "real pictures, and drawn ones of their classes", low=1, high=MAX_REAL)
