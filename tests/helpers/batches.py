"""What tests of loaders have in common."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch

Batch = dict[str, torch.Tensor]


def take(loader: Iterable[Batch], n: int) -> list[Batch]:
    return list(islice(loader, n))


def assert_equal(batches: Sequence[Any], expected: Sequence[Any]) -> None:
    """To the last bit."""
    assert len(batches) == len(expected)
    for one, two in zip(batches, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
