"""Your own texts: .txt is a document a file, .jsonl a document a line, .parquet a document a row; the first two also
as .gz."""

from collections.abc import Callable, Iterator
from pathlib import Path

from gengen.config.data import TextConfig
from gengen.data.sources.files import FileSet, ending
from gengen.data.sources.skips import Skips, tallied
from gengen.data.sources.text_files import check_text, json_rows, sound_blocks
from gengen.data.text.sources.base import Document, row_document
from gengen.data.text.tokenizer import recut
from gengen.io import Say

SUFFIXES = (".jsonl", ".parquet", ".txt", ".jsonl.gz", ".txt.gz")


class TextFiles(FileSet):
    def __init__(self, config: TextConfig):
        super().__init__(config.path, SUFFIXES, config.licence)
        self.field = config.field

    def read(self, skips: Skips, say: Say) -> Iterator[Document]:
        for path in self.files(say):
            with tallied(path, skips):
                if not path.stat().st_size:
                    raise ValueError("empty file")
                yield from READERS[ending(path).removesuffix(".gz")](path, self.field, skips)


def read_txt(path: Path, field: str, skips: Skips) -> Iterator[Document]:
    """Yield the file as one document, a block of it in memory at a time; damaged lines are left out."""
    check_text(path)
    parts = recut(sound_blocks(path, skips))
    yield Document(next(parts), str(path), parts)


def read_jsonl(path: Path, field: str, skips: Skips) -> Iterator[Document]:
    """Yield a document a line."""
    for number, row in json_rows(path, skips):
        yield from row_document(row, field, str(path), "line", number, skips)


def read_parquet(path: Path, field: str, skips: Skips) -> Iterator[Document]:
    """Yield a document a row, read in batches of the one column."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if field not in names:
            raise ValueError(f"no column {field!r} (data.field); columns: {', '.join(names)}")
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=[field]):
            for value in batch.column(0):
                number += 1
                try:
                    row = {field: value.as_py()}
                except UnicodeDecodeError as error:
                    skips.skip("row", f"{path} row {number}", f"not UTF-8 ({error.reason})")
                else:
                    yield from row_document(row, field, str(path), "row", number, skips)


READERS: dict[str, Callable[[Path, str, Skips], Iterator[Document]]] = {
    ".txt": read_txt,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}
