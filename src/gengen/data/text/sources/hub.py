"""Rows of a data set on the hub, a document each."""

from collections.abc import Iterator

from gengen.config.data import TextConfig
from gengen.data.sources.hub import HubSet, hub_facts, hub_rows
from gengen.data.sources.skips import Skips
from gengen.data.text.sources.base import Document, row_document
from gengen.io import Say


class HubTexts(HubSet):
    def __init__(self, config: TextConfig):
        super().__init__(config.hub)
        self.field = config.field

    def read(self, skips: Skips, say: Say) -> Iterator[Document]:
        revision, _ = hub_facts(self.name)
        for number, row in hub_rows(self.name):
            yield from row_document(row, self.field, f"{self.name}@{revision}", "row", number, skips)
