"""Documents on disk, between being read and being encoded: in segments, which are encoded apart from each other.

    texts-00000.bin ...  pieces of documents, each behind its bytes, its document's number and its place in that
    documents.bin        (3, N) uint64: hash, bytes and characters of each document
    spool.json           written last: the spool is whole

What a killed process left of it is gone on with.
"""

import hashlib
import json
import os
import shutil
import struct
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gengen.data.text.sources.base import Document
from gengen.io import fsync, write_text

LAYOUT = 1  # of the files above; what was left of another is made anew
HEAD = struct.Struct("<QQQ")
SEGMENT = 2**24  # bytes of text, after which the next segment begins
MAX_ORIGINS = 100


class Piece(NamedTuple):
    """A part of a document, which can be encoded by itself."""

    text: str
    document: int
    offset: int
    """Characters of the document before it."""


class StrippedHash:
    """sha256 of bytes that come in pieces, without the white space around the whole."""

    def __init__(self) -> None:
        self.hash, self.space, self.begun = hashlib.sha256(), b"", False

    def update(self, raw: bytes) -> None:
        raw = raw if self.begun else raw.lstrip()
        if text := raw.rstrip():
            self.hash.update(self.space + text if self.space else text)
            self.space, self.begun = b"", True
        self.space += raw[len(text) :]

    def number(self) -> int:
        """Return the first 64 bits."""
        return int.from_bytes(self.hash.digest()[:8], "little")


@dataclass(frozen=True)
class Spool:
    """A whole spool. hashes (N,) uint64, of the texts without the white space around them; sizes, lengths: (N,) int64,
    their bytes and characters. facts: what `finish_spool` was given to keep."""

    folder: Path
    segments: int
    hashes: np.ndarray
    sizes: np.ndarray
    lengths: np.ndarray
    facts: dict[str, Any]

    @property
    def count(self) -> int:
        """How many documents."""
        return len(self.hashes)

    def segment(self, number: int) -> Path:
        return self.folder / f"texts-{number:05}.bin"

    def pieces(self, segment: int) -> Iterator[Piece]:
        with open(self.segment(segment), "rb") as file:
            while head := file.read(HEAD.size):
                size, document, offset = HEAD.unpack(head)
                yield Piece(file.read(size).decode(), document, offset)


def open_spool(folder: Path) -> Spool | None:
    """Return the spool that a killed process left whole; None, and an empty folder, where there is none."""
    try:
        facts = json.loads((folder / "spool.json").read_bytes())
        if facts["layout"] == LAYOUT:
            hashes, sizes, lengths = np.fromfile(folder / "documents.bin", np.uint64).reshape(3, -1)
            return Spool(
                folder, facts["segments"], hashes, sizes.astype(np.int64), lengths.astype(np.int64), facts["facts"]
            )
    except (OSError, ValueError, KeyError, TypeError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return None


def write_spool(folder: Path, documents: Iterable[Document], whole: bool) -> tuple[int, list[str]]:
    """Write the documents into an empty folder; return how many segments there are, and the first hundred origins.
    `finish_spool` makes it one that can be opened. whole: keep each document in one piece, whatever its size."""
    table = hashes, sizes, lengths = array("Q"), array("Q"), array("Q")
    origins = dict[str, None]()
    with Segments(folder) as segments:
        for number, document in enumerate(documents):
            parts = chain([document.text], document.more)
            content, size, length = StrippedHash(), 0, 0
            for text in ["".join(parts)] if whole else parts:
                raw = text.encode()
                segments.write(HEAD.pack(len(raw), number, length) + raw)
                content.update(raw)
                size, length = size + len(raw), length + len(text)
            for column, value in zip(table, (content.number(), size, length), strict=True):
                column.append(value)
            if len(origins) < MAX_ORIGINS:
                origins[document.origin] = None
    np.array([hashes, sizes, lengths], np.uint64).tofile(folder / "documents.bin")
    fsync(folder / "documents.bin")
    return segments.count, list(origins)


def finish_spool(folder: Path, segments: int, facts: dict[str, Any]) -> Spool:
    """Mark what was written as whole, and open it."""
    put_text(folder / "spool.json", json.dumps({"layout": LAYOUT, "segments": segments, "facts": facts}))
    spool = open_spool(folder)
    assert spool
    return spool


class Segments(ExitStack):
    """Files that are filled one after the other, each flushed to the disk."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self.count = folder, 0
        self.file: BinaryIO | None = None
        self.callback(self.finish)

    def write(self, record: bytes) -> None:
        if self.file is None:
            self.file = open(self.folder / f"texts-{self.count:05}.bin", "wb")  # noqa: SIM115
            self.count += 1
        self.file.write(record)
        if self.file.tell() >= SEGMENT:
            self.finish()

    def finish(self) -> None:
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.file = None


def put_text(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    beside = path.with_name(f".{path.name}")
    write_text(beside, text)
    os.replace(beside, path)
