"""The count of what could not be read: one bad record costs itself alone, too many are an error."""

import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gengen.errors import UserError

HOPELESS = 1000  # bad records with no good one among them, after which reading on is pointless


class Skips:
    """Counts what was read and what could not be. Lines, rows and whole files are tallied apart: one is not worth
    another.
    """

    def __init__(self, max_bad: float):
        self.max_bad = max_bad
        self.good: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        self.first = ""

    def skip(self, unit: str, where: str, why: str) -> None:
        """Count one bad record. unit: what it is, such as "line"."""
        self.first = self.first or f"{where}: {why}"
        self.bad[unit] += 1
        if self.bad[unit] == HOPELESS and not self.good[unit]:
            self.check()

    def check(self) -> None:
        """Raise UserError if more than the share `max_bad` of any unit was bad."""
        for unit, bad in self.bad.items():
            total = bad + self.good[unit]
            if bad / total > self.max_bad:
                allowed = f"{bad / total:.2%}; data.max_bad allows {self.max_bad:.2%}"
                raise UserError(
                    f"{bad:,} of {total:,} {unit}s cannot be read ({allowed})"
                    f"\n  first: {self.first}\n  mend the data, or raise data.max_bad to skip what is bad"
                )

    def restore(self, summary: dict[str, Any]) -> None:
        """Take over what an earlier process counted."""
        self.bad = Counter({unit: count for unit, count in summary.items() if unit != "first"})
        self.first = summary.get("first", "")

    def summary(self) -> dict[str, Any]:
        """Return bad counts by unit, and the first of them, for meta.json."""
        return {**self.bad, "first": self.first} if self.bad else {}


def in_words(summary: dict[str, Any]) -> str:
    """Spell out a summary of skips for people."""
    counts = ", ".join(f"{count:,} {unit}{'s' * (count > 1)}" for unit, count in summary.items() if unit != "first")
    return f"{counts}; first: {summary['first']}" if summary else "nothing"


@contextmanager
def tallied(path: Path, skips: Skips) -> Iterator[None]:
    """Count a file as good once the block inside is done, as bad where the block ends in an error of the file."""
    good, bad = skips.good.total(), skips.bad.total()
    try:
        yield
        if skips.bad.total() > bad and skips.good.total() == good:
            raise ValueError("nothing in it can be read")
        skips.good["file"] += 1
    except (OSError, EOFError, zlib.error, ValueError, NotImplementedError) as error:  # pyarrow's are among these
        skips.skip("file", str(path), (str(error).splitlines() or [type(error).__name__])[0])
