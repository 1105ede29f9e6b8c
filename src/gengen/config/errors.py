"""Errors a user can act on: one message, no traceback, an exit code of their own."""

from collections.abc import Iterable
from difflib import SequenceMatcher


class UserError(Exception):
    """Something the user can mend. The message names the thing, what was found and what is allowed."""

    exit_code = 2


class RunLocked(UserError):
    """Another process writes to this run."""

    exit_code = 3


class NoCheckpoint(UserError):
    """`resume=must`, and no checkpoint of the run can be used."""

    exit_code = 4


def nearest(word: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The known words most like `word`, best first; a dotted key is compared whole and by its last part."""

    def likeness(key: str) -> float:
        pairs = ((word, key), (word.rsplit(".", 1)[-1], key.rsplit(".", 1)[-1]))
        return max(SequenceMatcher(None, a, b).ratio() for a, b in pairs)

    scores = {key: likeness(key) for key in known}
    bar = max(0.6, max(scores.values(), default=0.0) - 0.1)
    return sorted((key for key, score in scores.items() if score >= bar), key=lambda key: -scores[key])[:n]


def did_you_mean(word: str, known: Iterable[str], all_if_none: bool = True) -> str:
    """A second line for an error message: the nearest known words, or all of them when none is near."""
    known = list(known)
    close = nearest(word, known)
    if close:
        return f"\n  did you mean {' or '.join(close)}?"
    return f"\n  known: {', '.join(sorted(known)) or 'none'}" if all_if_none else ""
