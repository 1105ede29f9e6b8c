"""What a source is: it describes itself, says what of it shapes the prepared data, and yields records.

A new source is one file with one class, registered by name for a kind of data (`register_source` in registry.py):

    @register_source("text", "poems")
    class Poems:
        def __init__(self, config: TextConfig): ...
        def describe(self): return "poems of mine", "CC0-1.0"
        def facts(self): return {"poems": 1}
        def read(self, skips, say): yield Document("Roses are red", "poem 1")

`data.source=poems` then reads it. It is imported only when it is read.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol, TypeVar

from gengen.config.data import DataConfig
from gengen.data.sources.skips import Skips
from gengen.io import Say
from gengen.registry import source_class

Record_co = TypeVar("Record_co", covariant=True)
Record = TypeVar("Record")


class Source(Protocol[Record_co]):
    """Where records of one kind come from: documents of text, pictures, rows of a dialogue. Built from its config
    alone; nothing is read or downloaded before `describe` or `read`."""

    def describe(self) -> tuple[str, str]:
        """Return (source, licence) in words, for people and meta.json."""

    def facts(self) -> dict[str, Any]:
        """Return what of the source shapes the prepared data, as JSON: a part of the fingerprint. It must be known
        without the network, so that what is prepared can be opened without one."""

    def read(self, skips: Skips, say: Say) -> Iterator[Record_co]:
        """Yield the records; what cannot be read is counted in `skips` and passed over. say: takes progress lines."""


def source_for(kind: str, config: DataConfig) -> Source[Any]:
    """Build the source that `config.source` names for a kind of data."""
    source: Source[Any] = source_class(kind, getattr(config, "source"))(config)
    return source


def read_records(source: Source[Record], skips: Skips, say: Say, limit: int | None = None) -> Iterator[Record]:
    """Yield the records of a source, `limit` at most; raise UserError at the end if too much could not be read."""
    yield from islice(source.read(skips, say), limit)
    skips.check()
