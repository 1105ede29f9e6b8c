"""Going on with fewer rows at once where memory runs out."""

from collections.abc import Callable
from typing import TypeVar

import torch

from gengen.errors import UserError

T = TypeVar("T")


def in_halves(act: Callable[[int], T], rows: int, what: str) -> tuple[T, int]:
    """Return act(rows) and `rows`; where memory runs out, call it again with half as many rows at once.

    Raises UserError, naming `what` was done, where even one row is too many.
    """
    while True:
        try:
            return act(rows), rows
        except torch.OutOfMemoryError:
            if rows == 1:
                raise UserError(
                    f"out of memory {what}, one row at a time: a smaller model, or a smaller context"
                ) from None
        rows //= 2  # not above, where the error still holds what was computed
        torch.cuda.empty_cache()
