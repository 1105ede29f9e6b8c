"""Requests for stories and answers to them, from the seeded grammar, which holds out some itself."""

from collections.abc import Iterator
from typing import Any

from gengen.config.data import ExamplesConfig
from gengen.data.dialogue.sources.base import Row
from gengen.data.sources import storygen
from gengen.data.sources.skips import Skips
from gengen.io import Say


class StorygenDialogues:
    def __init__(self, config: ExamplesConfig):
        self.kind = "preferences" if config.kind == "ratings" else config.kind

    def describe(self) -> tuple[str, str]:
        return storygen.NAME, storygen.LICENCE

    def facts(self) -> dict[str, Any]:
        return {"storygen": storygen.EXAMPLES_FORMAT}

    def read(self, skips: Skips, say: Say) -> Iterator[Row]:
        for split in ("val", "train"):
            for i, row in enumerate(storygen.examples(self.kind, split)):
                yield Row("record", f"storygen {split} {i}", split, row)
