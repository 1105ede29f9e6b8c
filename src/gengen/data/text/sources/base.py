"""Documents, and which source of them `auto` means."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from gengen.config.data import TextConfig
from gengen.data.sources.base import Source, source_for
from gengen.data.sources.hub import hub_facts
from gengen.data.sources.skips import Skips
from gengen.data.sources.text_files import field_text
from gengen.errors import UserError
from gengen.io import Json, Say


@dataclass(frozen=True)
class Document:
    text: str
    origin: str
    """File, archive member or data set it was read from."""
    more: Iterable[str] = ()
    """What follows `text`, where it is too long to be held at once: pieces that are read as they are asked for, once
    and before the next document. Each begins where a text may be cut (see `tokenizer.recut`)."""


def text_source(config: TextConfig) -> Source[Document]:
    """The source of a config whose source is settled."""
    return source_for("text", config)


def settle_source(config: TextConfig, say: Say) -> TextConfig:
    """Return the config with `source: auto` settled: the hub if it answers in time, else the archive, with one line
    that says so."""
    if config.source != "auto":
        return config
    try:
        hub_facts(config.hub)
        return replace(config, source="hub")
    except UserError as error:
        if not config.wheel:
            raise
        say(f"data: {error}; training on the storybook instead (public-domain books: {', '.join(config.members)})")
        return replace(config, source="wheel")


def row_document(row: Json, field: str, origin: str, unit: str, number: int, skips: Skips) -> Iterator[Document]:
    """Yield the document in a row, if there is one; an empty text is no document, and no fault either."""
    try:
        text = field_text(row, field)
    except ValueError as error:
        skips.skip(unit, f"{origin} {unit} {number}", str(error))
        return
    skips.good[unit] += 1
    if text.strip():
        yield Document(text, origin)
