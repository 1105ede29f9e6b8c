"""Rows of a data set on the hub."""

from collections.abc import Iterator

from gengen.config.data import ExamplesConfig
from gengen.data.dialogue.sources.base import Row
from gengen.data.sources.hub import HubSet, hub_rows
from gengen.data.sources.skips import Skips
from gengen.io import Say


class HubDialogues(HubSet):
    def __init__(self, config: ExamplesConfig):
        super().__init__(config.hub)

    def read(self, skips: Skips, say: Say) -> Iterator[Row]:
        for number, row in hub_rows(self.name):
            yield Row("row", f"{self.name} row {number}", None, row)
