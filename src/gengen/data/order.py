"""Which window of a token stream, or which image, comes when: pure functions of (seed, epoch, index), with nothing to
save or restore.

A run of text is one endless list of windows of T labels. Position p of the list is window `index` of epoch `epoch`; an
epoch turns once around the circular stream of N tokens in ceil(N / T) windows, from an offset of its own and in an
order of its own, so every token is a label exactly once an epoch. Step s takes positions s * B .. (s + 1) * B - 1. A
run of N images is the same with the images for windows: an epoch is a permutation of them.

Windows have one of two orders, which a run's config names (`data.order`). Order 1 sorts n random numbers: a table of
8 n bytes an epoch. Order 2 computes each place by itself (`shuffled`) and keeps nothing, however many windows there
are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import numpy as np

OFFSET, ORDER, FLIP, KEYS = 0, 1, 2, 3  # what numbers are drawn for: each purpose has its own generator
ROUNDS = 6
WORD = 2**64 - 1


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


@lru_cache(maxsize=4)
def _keys(seed: int, epoch: int) -> list[int]:
    return _draws(seed, epoch, KEYS, ROUNDS).tolist()


def _mixed(x: int) -> int:
    """Return 64 bits each of which depends on all of x (the finalizer of SplitMix64, Steele et al. 2014)."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ x >> 27) * 0x94D049BB133111EB & WORD
    return x ^ x >> 31


def shuffled(index: int, seed: int, epoch: int, n: int) -> int:
    """Return where index 0 .. n - 1 comes in an order of the epoch's own: a permutation of n without a table.

    A Feistel network (Luby & Rackoff 1988) permutes 0 .. 4^half - 1, the least power of four that holds n; what falls
    outside of n is permuted again until it falls inside (cycle walking, Black & Rogaway 2002): 4 times on average at
    most.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for key in _keys(seed, epoch):
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        index = left << half | right
        if index < n:
            return index


def locate(position: int, windows: int) -> tuple[int, int]:
    """Return (epoch, index in the epoch) of a position of the endless list, at `windows` an epoch."""
    return divmod(position, windows)


def window(position: int, seed: int, tokens: int, context: int, order: int = 1) -> tuple[int, int]:
    """Return where in the stream the labels of a position's window start, and how many of its `context` labels count.

    All count but in the last window around, whose end would cover the epoch's first tokens again.
    """
    windows = -(-tokens // context)
    epoch, index = locate(position, windows)
    place = shuffled(index, seed, epoch, windows) if order == 2 else int(permutation(seed, epoch, windows)[index])
    first = place * context
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
