"""Stories of the seeded grammar, a document each."""

from collections.abc import Iterator
from typing import Any

from gengen.config.data import TextConfig
from gengen.data.sources import storygen
from gengen.data.sources.skips import Skips
from gengen.data.text.sources.base import Document
from gengen.io import Say


class StorygenTexts:
    def __init__(self, config: TextConfig):
        self.count = config.max_documents or storygen.STORIES

    def describe(self) -> tuple[str, str]:
        return storygen.NAME, storygen.LICENCE

    def facts(self) -> dict[str, Any]:
        return {"storygen": storygen.FORMAT}

    def read(self, skips: Skips, say: Say) -> Iterator[Document]:
        for text in storygen.documents(self.count):
            yield Document(text, "storygen")
