"""One row of a dialogue as a source yields it, not yet looked at."""

from typing import NamedTuple

from gengen.io import Json

SUFFIXES = (".jsonl", ".jsonl.gz")


class Row(NamedTuple):
    unit: str
    """What one is called where they are counted: line, row, entry, record."""
    origin: str
    """Where it was read."""
    split: str | None
    """train or val, where the source comes divided."""
    content: Json
