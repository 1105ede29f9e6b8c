"""Your own .jsonl files, a row a line."""

from collections.abc import Iterator

from gengen.config.data import ExamplesConfig
from gengen.data.dialogue.sources.base import SUFFIXES, Row
from gengen.data.sources.files import FileSet
from gengen.data.sources.skips import Skips, tallied
from gengen.data.sources.text_files import json_rows
from gengen.io import Say


class DialogueFiles(FileSet):
    def __init__(self, config: ExamplesConfig):
        super().__init__(config.path, SUFFIXES, config.licence)

    def read(self, skips: Skips, say: Say) -> Iterator[Row]:
        for file in self.files(say):
            with tallied(file, skips):
                for number, row in json_rows(file, skips):
                    yield Row("line", f"{file} line {number}", None, row)
