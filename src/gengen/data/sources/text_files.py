"""Text files from anyone, read with limits: on a line, on a file, on what a compressed one unpacks to."""

import codecs
import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, AnyStr

from gengen.config.limits import parse_json
from gengen.data.sources.files import ending
from gengen.data.sources.skips import Skips
from gengen.data.sources.wheels import MAX_RATIO
from gengen.io import Json

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_LINE = 16 * 2**20  # bytes of one jsonl line
BLOCK = 2**22  # bytes of a text file that are read at once
FULL_OF_NUL = "full of NUL bytes: damaged, or UTF-16 or UTF-32 without a byte order mark; UTF-8 is read"
BOM = codecs.BOM_UTF8
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",  # which the first one begins with, too
    codecs.BOM_UTF16_BE: "utf-16",
}


class Bounded(io.RawIOBase):
    """A stream of `limit` bytes at most; reading one that holds more is a ValueError."""

    def __init__(self, file: io.BufferedIOBase, limit: int):
        self.file, self.limit, self.left = file, limit, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        with memoryview(buffer).cast("B") as space:
            found = self.file.read(min(len(space), self.left + 1))
            self.left -= len(found)
            if self.left < 0:
                raise ValueError(f"more than {self.limit:,} bytes when unpacked; no more are read")
            space[: len(found)] = found
        return len(found)


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file as it is without compression. More than 200 times its size unpacked is a bomb."""
    with open(path, "rb") as file:
        if ending(path).endswith(".gz"):
            limit = max(MAX_LINE, MAX_RATIO * path.stat().st_size)
            yield io.BufferedReader(Bounded(gzip.GzipFile(fileobj=file), limit))
        else:
            yield file


def encoding_of(text: bytes, telling: int | None = None) -> str:
    """Return a text's encoding by the mark at its start; UTF-8 without one.

    Raises ValueError where that cannot be: there are NULs among its first `telling` bytes (None = all).
    """
    for mark, encoding in MARKS.items():
        if text.startswith(mark):
            return encoding
    if 100 * text[:telling].count(0) > len(text[:telling]):
        raise ValueError(FULL_OF_NUL)
    return "utf-8"


def decoded(raw: bytes) -> str:
    """Decode some UTF-8; a ValueError says what is wrong with it."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason})") from error
    if "\0" in text:
        raise ValueError("NUL characters")
    return text


def blocks(path: Path) -> Iterator[bytes]:
    """Yield a text file in UTF-8, without a mark, in blocks of whole lines: BLOCK bytes or so, of a longer line whole
    words. A file in another encoding must be sound: what is damaged of it cannot be told from the rest."""
    with opened(path) as file:
        encoding = encoding_of(file.peek(4)[:4], telling=0)
        held = b""
        for block in recoded(file, encoding):
            if len(held) > BLOCK // 2:
                end = held.rfind(b"\n") + 1 or held.rfind(b" ") + 1
                if end:
                    yield held[:end]
                held = held[end:]
            held += block
        if held:
            yield held


def recoded(file: io.BufferedIOBase, encoding: str) -> Iterator[bytes]:
    """Yield what a file in some encoding holds, as UTF-8 without a mark."""
    decoder = codecs.getincrementaldecoder(encoding)()
    begin = True
    while raw := file.read(BLOCK):
        if encoding != "utf-8":
            raw = transcoded(decoder, raw, encoding)
        yield raw.removeprefix(BOM) if begin else raw
        begin = False
    if encoding != "utf-8":
        transcoded(decoder, b"", encoding, final=True)


def transcoded(decoder: codecs.IncrementalDecoder, raw: bytes, encoding: str, final: bool = False) -> bytes:
    try:
        text = decoder.decode(raw, final)
    except UnicodeDecodeError as error:
        raise ValueError(f"not {encoding.upper()} ({error.reason})") from error
    if "\0" in text:
        raise ValueError("NUL characters")
    return text.encode()


def sound_lines(raw: bytes) -> tuple[str, int, dict[int, str]]:
    """Return (those lines of a text that can be decoded, how many they are, number of each other -> what is wrong)."""
    try:
        return decoded(raw), raw.count(b"\n") or 1, {}
    except ValueError:
        good: list[str] = []
        bad: dict[int, str] = {}
        for number, line in enumerate(raw.splitlines(keepends=True), 1):
            try:
                good.append(decoded(line))
            except ValueError as error:
                bad[number] = str(error)
        return "".join(good), len(good), bad


def check_text(path: Path) -> None:
    """Raise ValueError where a text file holds nothing, or is damaged beyond a few lines. Reads it once."""
    size, lost, lines, nul = 0, 0, 0, 0
    text, first = False, ""
    for raw in blocks(path):
        sound, _, bad = sound_lines(raw)
        text = text or bool(sound.strip())
        size, nul = size + len(raw), nul + raw.count(0)
        if bad:
            lost += len(raw) - len(sound.encode())
            number = next(iter(bad))
            first = first or f"line {lines + number}: {bad[number]}"
        lines += raw.count(b"\n")
    if 100 * nul > size:
        raise ValueError(FULL_OF_NUL)
    if 2 * lost > size:
        raise ValueError(f"more than half of it is lines like {first}")
    if not text:
        raise ValueError("no text in it")


def sound_blocks(path: Path, skips: Skips) -> Iterator[str]:
    """Yield the sound lines of a text file that `check_text` has passed, a block at a time; count the others."""
    lines = 0
    for raw in blocks(path):
        text, good, bad = sound_lines(raw)
        skips.good["line"] += good
        for number, why in bad.items():
            skips.skip("line", f"{path} line {lines + number}", why)
        lines += raw.count(b"\n")
        yield text


def json_rows(path: Path, skips: Skips) -> Iterator[tuple[int, Json]]:
    """Yield (line number, what the line spells) of a jsonl file; blank lines are passed over."""
    with opened(path) as file:
        encoding = encoding_of(file.peek(4), telling=2)  # JSON begins in ASCII
        text: IO[Any] = file if encoding == "utf-8" else io.TextIOWrapper(file, encoding, newline="\n")
        for number, line in enumerate(bounded_lines(text), 1):
            where = f"{path} line {number}"
            if line is None:
                skips.skip("line", where, f"longer than {MAX_LINE:,} bytes")
            elif line.strip():
                try:
                    yield number, parse_json(line if isinstance(line, str) else line.removeprefix(BOM).decode())
                except ValueError as error:
                    skips.skip("line", where, f"not JSON ({error})")


def bounded_lines(file: IO[AnyStr]) -> Iterator[AnyStr | None]:
    """Yield the lines of a file; None for one of more than MAX_LINE bytes or characters, never held in memory."""
    while line := file.readline(MAX_LINE + 1):
        yield line if len(line) <= MAX_LINE else None
        while len(line) > MAX_LINE and line[-1:] not in (b"\n", "\n"):
            line = file.readline(MAX_LINE + 1)


def field_text(row: Json, field: str) -> str:
    """Return the string in a row's field; a ValueError says why there is none."""
    if not isinstance(row, dict):
        raise ValueError(f"{type(row).__name__}, not an object with the key {field!r}")
    if field not in row:
        raise ValueError(f"no key {field!r} (data.field); keys: {', '.join(map(str, row))}")
    if not isinstance(row[field], str):
        raise ValueError(f"{field!r} holds {type(row[field]).__name__}, not a string")
    row[field].encode()  # JSON can spell half a surrogate pair, which no UTF-8 can hold: a UnicodeEncodeError
    return row[field]
