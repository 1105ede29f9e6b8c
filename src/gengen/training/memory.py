"""Going on with fewer rows at once where memory runs out."""

from collections.abc import Callable
from typing import TypeVar

import torch

from gengen.errors import UserError

T = TypeVar("T")


def in_halves(act: Callable[[int], T], rows: int, what: str, least: int = 1) -> tuple[T, int]:
    """Return act(rows) and `rows`; where memory runs out, call it again with half as many rows at once.

    Raises UserError, naming `what` was done, where even the `least` rows are too many.
    """
    while True:
        try:
            return act(rows), rows
        except torch.OutOfMemoryError:
            if rows <= least:
                found = "one row" if rows == 1 else f"{rows} rows"
                raise UserError(
                    f"out of memory {what}, {found} at a time: a smaller model, or a smaller context"
                ) from None
        rows //= 2  # not above, where the error still holds what was computed
        torch.cuda.empty_cache()
