"""Errors a user can act on: one message, no traceback, an exit code of their own."""

import traceback
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
    """The known words most like `word`, best first; a dotted key is compared whole and by its last part.

    A word that lacks only the end of a known one (`decay` of `decay_ratio`) is nearly that one.
    """

    def likeness(key: str) -> float:
        last_of_word, last_of_key = word.rsplit(".", 1)[-1], key.rsplit(".", 1)[-1]
        if last_of_key.startswith(f"{last_of_word}_"):
            return 0.95
        return max(SequenceMatcher(None, a, b).ratio() for a, b in ((word, key), (last_of_word, last_of_key)))

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


def place(error: BaseException, packages: Iterable[str]) -> str:
    """The innermost line of these top-level packages on the way to an error; empty if there is none."""
    packages, at = set(packages), ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__")).split(".")[0] in packages:
            at = f"{frame.f_code.co_filename}, line {number}, in {frame.f_code.co_name}"
    return at


def raised(error: BaseException, packages: Iterable[str]) -> str:
    """What was raised, and where in these packages."""
    at = place(error, packages)
    return f"{type(error).__name__}: {error}" + (f"\n  at {at}" if at else "")
