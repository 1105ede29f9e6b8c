"""What of the documents is held out for validation: of each, all behind a place in it, its cut."""

from dataclasses import dataclass

import numpy as np

from gengen.data.text.spool import Spool
from gengen.io import Say

COPIES = {
    "content": "they are held out together",
    "tails": "the same ends of them are held out",
    "documents": "some may be held out and others trained on; data.split=content keeps them together",
}


@dataclass(frozen=True)
class Split:
    """kind: content, documents or tails; share: how much of them is held out; copies: documents that are copies of
    others; cuts: (N,) int64, the characters of each document before what is held out: all, none, or some."""

    kind: str
    share: float
    copies: int
    cuts: np.ndarray


def settled_split(spool: Spool, kind: str, share: float, most: float, say: Say) -> Split:
    """Return how validation is held out: as asked, but by the ends of the documents where these are too few, or too
    large, for that; and the share halved until what is held out cannot become more than `most` tokens. Says so, and
    what becomes of copies."""
    asked, count = share, spool.count
    copies = count - len(np.unique(spool.hashes))
    different = count - copies if kind == "content" else count
    why = ""
    if kind != "tails" and 0 < different < 2 * round(1 / share):
        kind, why = "tails", f"too few to hold out every {round(1 / share)}th"
    while most_tokens(spool, cuts := cuts_of(spool, kind, share)) > most:
        share /= 2
        if kind != "tails" and different < 2 * round(1 / share):
            kind, share, why = "tails", asked, "too large to hold out some of them"
    if why:
        number = f"{different} different" if copies and different < count else str(count)
        say(f"data: {number} documents are {why}; the last {percent(share)} of each is held out")
    if share < asked:
        limit = f"data.val_tokens={most:,} allows no more, at a token a byte"
        say(f"data: held out is {percent(share)} instead of {percent(asked)}: {limit}")
    if copies:
        say(f"data: {copies:,} of {count:,} documents are copies of others; {COPIES[kind]}")
    return Split(kind, share, copies, cuts)


def cuts_of(spool: Spool, kind: str, share: float) -> np.ndarray:
    """Return the cuts of a share, (N,) int64."""
    if kind == "tails":
        return (spool.lengths * (1 - share)).astype(np.int64)
    held = held_out(spool.hashes, share) if kind == "content" else every_nth(spool.count, share)
    return np.where(held, 0, spool.lengths)


def held_out(hashes: np.ndarray, share: float) -> np.ndarray:
    """Return which documents are for validation, (N,) bool: a share of the different ones with all their copies, in
    any order.
    """
    different = np.unique(hashes)
    return np.isin(hashes, different[: max(1, round(share * len(different)))])


def every_nth(count: int, share: float) -> np.ndarray:
    """Return which documents are for validation, (N,) bool: every n-th, which makes the share."""
    every = round(1 / share)
    return np.arange(count) % every == every - 1


def most_tokens(spool: Spool, cuts: np.ndarray) -> int:
    """Return how many tokens what is held out is at most, whatever the tokenizer: one that begins each document, and
    one a byte. A character has four bytes at most, and what lies before a cut as many bytes as characters at least."""
    held = spool.lengths - cuts
    size = np.minimum(4 * held, spool.sizes - cuts)
    return int(size.sum() + np.count_nonzero(held))


def percent(share: float) -> str:
    return f"{100 * share:.3g}%"
