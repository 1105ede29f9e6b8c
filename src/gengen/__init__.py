"""gengen trains and samples generative models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from gengen.generation.base import Generator

__version__ = "0.1.0"


def load(
    run: "str | Path", *, checkpoint: str = "latest", weights: str | None = None, device: str = "auto"
) -> "Generator":
    """Return the generator of a run, from nothing but its run or checkpoint directory.

    checkpoint: latest, best, or the number of a step; weights: ema, raw, or None for EMA where the run has it.
    Text: `load("runs/NAME").generate("Once upon a time", n=4)`. Images: `load("runs/NAME").generate(16, ["cat",
    "dog"])`.
    """
    from gengen.generation.load import load_generator

    return load_generator(str(run), checkpoint=checkpoint, weights=weights, device=device)


__all__ = ["__version__", "load"]
