"""Your own .jsonl files, a row a line.

A file of preferences or ratings may take back what it says: a line {"retract": ID} drops the line whose "gengen" has
this "id", and is none itself. So a vote is undone without a byte of the file being changed.
"""

from collections.abc import Iterator
from pathlib import Path

from gengen.config.data import ExamplesConfig
from gengen.data.dialogue.sources.base import SUFFIXES, Row
from gengen.data.sources.files import FileSet
from gengen.data.sources.skips import Skips, tallied
from gengen.data.sources.text_files import json_rows
from gengen.io import Json, Say


class DialogueFiles(FileSet):
    def __init__(self, config: ExamplesConfig):
        super().__init__(config.path, SUFFIXES, config.licence)
        self.retractable = config.kind in ("preferences", "ratings")

    def read(self, skips: Skips, say: Say) -> Iterator[Row]:
        for file in self.files(say):
            with tallied(file, skips):
                retracted = retractions(file) if self.retractable else set()
                for number, row in json_rows(file, skips):
                    if self.retractable and (is_retraction(row) or vote_id(row) in retracted):
                        continue
                    yield Row("line", f"{file} line {number}", None, row)


def retractions(file: Path) -> set[str]:
    """Return the ids that a file takes back. What cannot be read is counted when it is read for its rows."""
    return {row["retract"] for _, row in json_rows(file, Skips(1.0)) if is_retraction(row)}


def is_retraction(row: Json) -> bool:
    return isinstance(row, dict) and row.keys() == {"retract"} and isinstance(row["retract"], str)


def vote_id(row: Json) -> str | None:
    """Return the id that the page of preferences gave a row."""
    about = row.get("gengen") if isinstance(row, dict) else None
    return about["id"] if isinstance(about, dict) and isinstance(about.get("id"), str) else None
