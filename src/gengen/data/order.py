"""Which window of a token stream, or which image, comes when: pure functions of (seed, epoch, index), with nothing to
save or restore.

A run of text is one endless list of windows of T labels. Position p of the list is window `index` of epoch `epoch`; an
epoch turns once around the circular stream of N tokens in ceil(N / T) windows, from an offset of its own and in an
order of its own, so every token is a label exactly once an epoch. Step s takes positions s * B .. (s + 1) * B - 1. A
run of N images is the same with the images for windows: an epoch is a permutation of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import numpy as np

OFFSET, ORDER, FLIP = 0, 1, 2  # what numbers are drawn for: each purpose has its own generator


def _draws(seed: int, epoch: int, purpose: int, n: int) -> np.ndarray:
    """Draw n 64-bit integers. Raw output of a bit generator, which numpy keeps stable; its distributions may
    change."""
    return np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch, purpose))).random_raw(n)


def offset(seed: int, epoch: int, span: int) -> int:
    """Return where in 0 .. span - 1 the epoch begins."""
    return int(_draws(seed, epoch, OFFSET, 1)[0]) % span


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """Return the order of an epoch's n windows or images, (n,) and read-only."""
    order = np.argsort(_draws(seed, epoch, ORDER, n), kind="stable")
    order.flags.writeable = False
    return order


def locate(position: int, windows: int) -> tuple[int, int]:
    """Return (epoch, index in the epoch) of a position of the endless list, at `windows` an epoch."""
    return divmod(position, windows)


def window(position: int, seed: int, tokens: int, context: int) -> tuple[int, int]:
    """Return where in the stream the labels of a position's window start, and how many of its `context` labels count.

    All count but in the last window around, whose end would cover the epoch's first tokens again.
    """
    windows = -(-tokens // context)
    epoch, index = locate(position, windows)
    first = int(permutation(seed, epoch, windows)[index]) * context
    return (offset(seed, epoch, tokens) + first) % tokens, min(context, tokens - first)


@lru_cache(maxsize=2)
def flips(seed: int, epoch: int, n: int) -> np.ndarray:
    """Return which of n images an epoch mirrors, (n,) bool and read-only: a fair coin for each index."""
    heads = _draws(seed, epoch, FLIP, n) >> np.uint64(63) == 1
    heads.flags.writeable = False
    return heads


def images(first: int, count: int, seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what is at positions first .. first + count - 1 of the endless list of n images: (index of the image,
    whether it is mirrored), both (count,)."""
    index, mirrored = [], []
    while count:
        epoch, start = locate(first, n)
        part = permutation(seed, epoch, n)[start : start + count]
        index.append(part)
        mirrored.append(flips(seed, epoch, n)[part])
        first, count = first + len(part), count - len(part)
    return np.concatenate(index), np.concatenate(mirrored)


@dataclass(frozen=True)
class From:
    """start, start + 1, ... Without a length, so that Lightning never takes a run for the middle of an epoch."""

    start: int

    def __iter__(self) -> Iterator[int]:
        return count(self.start)
