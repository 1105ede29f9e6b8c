"""Where text comes from: the hub, your files, or a pinned archive. Each source is a stream of documents."""

import codecs
import gzip
import io
import os
import queue
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, Any, AnyStr

from gengen.config.data import TextConfig
from gengen.config.limits import parse_json
from gengen.data.sources import storygen
from gengen.data.sources.wheels import MAX_RATIO, pin, read_members, wheel
from gengen.errors import UserError, did_you_mean

Say = Callable[[str], None]
SUFFIXES = (".jsonl", ".parquet", ".txt", ".jsonl.gz", ".txt.gz")
PACKED = (".gz", ".bz2", ".xz", ".zst")  # what is compressed is named with the suffix before this one
MAX_LINE, MAX_TEXT = 16 * 2**20, 4 * 2**30  # bytes of one jsonl line, and of a .txt file
PROBE = 3.0  # seconds the hub has to answer
HOPELESS = 1000  # bad records with no good one among them, after which reading on is pointless
BOM = codecs.BOM_UTF8
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",  # which the first one begins with, too
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class Document:
    text: str
    origin: str
    """File, archive member or data set it was read from."""


class Skips:
    """Counts what was read and what could not be. Lines, rows and whole files are tallied apart: one is not worth
    another.
    """

    def __init__(self, max_bad: float):
        self.max_bad = max_bad
        self.good: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        self.first = ""

    def skip(self, unit: str, where: str, why: str) -> None:
        self.first = self.first or f"{where}: {why}"
        self.bad[unit] += 1
        if self.bad[unit] == HOPELESS and not self.good[unit]:
            self.check()

    def check(self) -> None:
        """A UserError if more than the share `max_bad` of any unit was bad."""
        for unit, bad in self.bad.items():
            total = bad + self.good[unit]
            if bad / total > self.max_bad:
                raise UserError(
                    f"{bad:,} of {total:,} {unit}s cannot be read ({bad / total:.2%}; data.max_bad allows {self.max_bad:.2%})"
                    f"\n  first: {self.first}\n  mend the data, or raise data.max_bad to skip what is bad"
                )

    def summary(self) -> dict[str, Any]:
        """For meta.json: bad counts by unit, and the first of them."""
        return {**self.bad, "first": self.first} if self.bad else {}


def in_words(summary: dict[str, Any]) -> str:
    """A summary of skips, for people."""
    counts = ", ".join(f"{count:,} {unit}{'s' * (count > 1)}" for unit, count in summary.items() if unit != "first")
    return f"{counts}; first: {summary['first']}" if summary else "nothing"


def documents(config: TextConfig, skips: Skips, say: Say) -> Iterator[Document]:
    """The documents of a settled source, `max_documents` at most. What cannot be read is skipped and counted, and a
    UserError at the end if that was too much."""
    readers = {"hub": hub_documents, "files": file_documents, "wheel": wheel_documents}
    if config.source == "storygen":
        yield from (
            Document(text, "storygen") for text in storygen.documents(config.max_documents or storygen.STORIES)
        )
    else:
        yield from islice(readers[config.source](config, skips, say), config.max_documents)
    skips.check()


def resolve_source(config: TextConfig, say: Say) -> TextConfig:
    """The config with `source: auto` settled: the hub if it answers in time, else the archive, and that is said."""
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


# ---------------------------------------------------------------------------------------------------------------- hub


@lru_cache
def hub_facts(name: str | None) -> tuple[str, str]:
    """(revision, licence) of a data set on the hub, from one request; a UserError if it does not answer in 3 s."""
    if not name:
        raise UserError("data.hub is not set")
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        if os.environ.get(variable, "").upper() in {"1", "ON", "YES", "TRUE"}:
            raise UserError(f"the hub is not asked for {name} ({variable} is set)")
    answer: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        try:
            from huggingface_hub import HfApi

            answer.put(HfApi().dataset_info(name, timeout=PROBE))
        except Exception as error:
            answer.put(error)

    threading.Thread(
        target=ask, daemon=True
    ).start()  # a thread, because no timeout covers the look-up of the host's name
    try:
        info = answer.get(timeout=PROBE)
    except queue.Empty:
        info = TimeoutError(f"nothing in {PROBE:g} s")
    if isinstance(info, Exception):
        first_line = (str(info).strip().splitlines() or [""])[0]
        raise UserError(f"the hub does not answer for {name} ({type(info).__name__}: {first_line})")
    return info.sha, str((info.card_data or {}).get("license") or "unknown")


def hub_rows(name: str | None) -> Iterator[tuple[int, Any]]:
    """(number, row) of the train split, streamed."""
    revision, _ = hub_facts(name)
    try:
        from datasets import load_dataset

        yield from enumerate(load_dataset(name, split="train", revision=revision, streaming=True))
    except UserError:
        raise
    except Exception as error:  # the library raises whatever its network, file and format layers raise
        raise UserError(f"data.hub={name}: cannot be read to the end ({type(error).__name__}: {error})") from error


def hub_documents(config: TextConfig, skips: Skips, say: Say) -> Iterator[Document]:
    origin = f"{config.hub}@{hub_facts(config.hub)[0]}"
    for number, row in hub_rows(config.hub):
        yield from row_document(row, config.field, origin, "row", number, skips)


def wheel_documents(config: TextConfig, skips: Skips, say: Say) -> Iterator[Document]:
    archive = wheel(config.wheel, Path(config.dir) / "wheels", say)
    for name, text in read_members(archive, config.members):
        yield Document(text, f"{archive.name}:{name}")


def describe_hub(name: str | None) -> tuple[str, str]:
    revision, licence = hub_facts(name)
    return f"hub {name}@{revision}", licence


def describe_source(config: TextConfig) -> tuple[str, str]:
    """(source, licence) in words, for people and meta.json."""
    if config.source == "hub":
        return describe_hub(config.hub)
    if config.source == "wheel":
        return f"wheel {config.wheel} {pin(config.wheel).version}", config.licence
    if config.source == "storygen":
        return storygen.NAME, storygen.LICENCE
    return f"files {config.path}", config.licence


# -------------------------------------------------------------------------------------------------------------- files


def existing(path: str) -> Path:
    """The path, which data.path names, if something is there."""
    root = Path(path)
    if not root.exists():
        missing = next(p for p in (root, *root.parents) if p.parent.exists())
        beside = [p.name for p in missing.parent.iterdir()] if missing.parent.is_dir() else []
        raise UserError(
            f"data.path={path}: {missing} does not exist" + did_you_mean(missing.name, beside, all_if_none=False)
        )
    return root


def files_below(root: Path) -> tuple[list[Path], Counter[str]]:
    """All files below a folder in sorted order, hidden ones left out; and what else is there, counted by what it is.

    Links to folders are followed.
    Each folder is read once, under its own name before that of a link: links may go in circles.
    """
    files: list[Path] = []
    others: Counter[str] = Counter()
    seen: set[Path] = set()
    folders, links = [root], list[Path]()  # links wait until the folders themselves are read
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        real = folder.resolve()
        if real in seen or (folder != root and folder.parent.resolve().is_relative_to(real)):
            others["link to a folder that is read anyway"] += 1
            continue
        seen.add(real)
        try:
            for path in sorted(folder.iterdir()):
                if path.name.startswith("."):
                    continue
                if path.is_dir():
                    (links if path.is_symlink() else folders).append(path)
                elif path.is_file():
                    files.append(path)
                elif path.is_symlink() and not path.exists():
                    others["link that leads nowhere"] += 1
                else:
                    others["pipe or device"] += 1
        except OSError:
            others["folder that cannot be opened"] += 1
    return sorted(files), others


def ending(path: Path) -> str:
    """The suffix that says what a file is, .jsonl.gz for one; of a file without, its name."""
    inner = Path(path.stem).suffix if path.suffix.lower() in PACKED else ""
    return (inner + path.suffix).lower() or path.name


def left_out(root: Path, files: Iterable[Path], others: Counter[str], suffixes: tuple[str, ...]) -> str:
    """One line that counts what of a folder is not read, by ending; nothing where that is nothing."""
    kinds = Counter(map(ending, files)).most_common()
    counts = [f"{count:,} {kind}" for kind, count in kinds[:10]]
    if rest := sum(count for _, count in kinds[10:]):
        counts.append(f"{rest:,} with other endings")
    counts += [f"{count:,} {what.replace(' ', 's ', 1) if count > 1 else what}" for what, count in others.items()]
    return f"data: left out of {root}: {', '.join(counts)}; read are {', '.join(suffixes)}" if counts else ""


def find_files(path: str | None, suffixes: tuple[str, ...] = SUFFIXES, say: Say | None = None) -> list[Path]:
    """The readable files at a path: the file itself, or all below a folder in sorted order, hidden ones left out.

    say: takes a line about what else the folder holds.
    """
    allowed = f"allowed are {', '.join(suffixes)}"
    if not path:
        raise UserError(f"data.path is not set: name your own file or folder of texts ({allowed})")
    root = existing(path)
    if root.is_file():
        if ending(root) not in suffixes:
            kind = ending(root) if root.suffix else "no suffix"
            raise UserError(f"data.path={path}: {kind} is not a kind of file that is read; {allowed}")
        return [root]
    below, others = files_below(root)
    found = [p for p in below if ending(p) in suffixes]
    if not found:
        kinds = [*sorted(set(map(ending, below))), *others]
        raise UserError(f"data.path={path}: the folder holds {', '.join(kinds[:10]) or 'no files'}; {allowed}")
    if say and (line := left_out(root, (p for p in below if ending(p) not in suffixes), others, suffixes)):
        say(line)
    return found


def file_documents(config: TextConfig, skips: Skips, say: Say) -> Iterator[Document]:
    readers = {".txt": read_txt, ".jsonl": read_jsonl, ".parquet": read_parquet}
    for path in find_files(config.path, say=say):
        with tallied(path, skips):
            if not path.stat().st_size:
                raise ValueError("empty file")
            yield from readers[ending(path).removesuffix(".gz")](path, config.field, skips)


@contextmanager
def tallied(path: Path, skips: Skips) -> Iterator[None]:
    """Count a file as good when what is done inside is done, as bad where that ends in an error of the file."""
    good, bad = skips.good.total(), skips.bad.total()
    try:
        yield
        if skips.bad.total() > bad and skips.good.total() == good:
            raise ValueError("nothing in it can be read")
        skips.good["file"] += 1
    except (OSError, EOFError, zlib.error, ValueError, NotImplementedError) as error:  # pyarrow's are among these
        skips.skip("file", str(path), (str(error).splitlines() or [type(error).__name__])[0])


class Bounded(io.RawIOBase):
    """A stream that may hold so many bytes, and a ValueError where it holds more."""

    def __init__(self, file: io.BufferedIOBase, limit: int):
        self.file, self.limit, self.left = file, limit, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self.file.read(min(len(buffer), self.left + 1))
        self.left -= len(found)
        if self.left < 0:
            raise ValueError(f"more than {self.limit:,} bytes when unpacked; no more are read")
        buffer[: len(found)] = found
        return len(found)


@contextmanager
def opened(path: Path, most: int = 2**63) -> Iterator[io.BufferedReader]:
    """A file, as it is without compression. More than `most` bytes unpacked, or 200 times its size, is a bomb."""
    with open(path, "rb") as file:
        if ending(path).endswith(".gz"):
            limit = min(most, max(MAX_LINE, MAX_RATIO * path.stat().st_size))
            yield io.BufferedReader(Bounded(gzip.GzipFile(fileobj=file), limit))
        else:
            yield file


def encoding_of(text: bytes, telling: int | None = None) -> str:
    """What a text is encoded in, by the mark at its start; UTF-8 without one.

    A ValueError where that cannot be: there are NULs among its first bytes, `telling` of them, else all.
    """
    for mark, encoding in MARKS.items():
        if text.startswith(mark):
            return encoding
    if 100 * text[:telling].count(0) > len(text[:telling]):
        raise ValueError("full of NUL bytes: damaged, or UTF-16 or UTF-32 without a byte order mark; UTF-8 is read")
    return "utf-8"


def read_txt(path: Path, field: str, skips: Skips) -> Iterator[Document]:
    """One document a file, in memory at once. It is UTF-8, or has a byte order mark; damaged lines are left out."""
    if (size := path.stat().st_size) > MAX_TEXT:
        raise ValueError(f"{size:,} bytes, which are one document; at most {MAX_TEXT:,} are read")
    with opened(path, MAX_TEXT) as file:
        raw = file.read()
    if (encoding := encoding_of(raw)) != "utf-8":  # what is damaged of such a file cannot be told from the rest
        raw = decoded(raw, encoding).encode()
    raw = raw.removeprefix(BOM)
    try:
        text = decoded(raw)
        skips.good["line"] += raw.count(b"\n") or 1
    except ValueError:
        text = sound_lines(raw, path, skips)
    if not text.strip():
        raise ValueError("no text in it")
    yield Document(text, str(path))


def decoded(raw: bytes, encoding: str = "utf-8") -> str:
    """The text of some bytes; a ValueError says what is wrong with them."""
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"not {encoding.upper()} ({error.reason})") from error
    if "\0" in text:
        raise ValueError("NUL characters")
    return text


def sound_lines(raw: bytes, path: Path, skips: Skips) -> str:
    """The lines of a text that can be decoded; a ValueError where the others are more than half of it."""
    good: list[str] = []
    bad: dict[int, str] = {}
    lost = 0
    for number, line in enumerate(raw.splitlines(keepends=True), 1):
        try:
            good.append(decoded(line))
        except ValueError as error:
            bad[number] = str(error)
            lost += len(line)
    if 2 * lost > len(raw):
        number, why = next(iter(bad.items()))
        raise ValueError(f"more than half of it is lines like line {number}: {why}")
    skips.good["line"] += len(good)
    for number, why in bad.items():
        skips.skip("line", f"{path} line {number}", why)
    return "".join(good)


def read_jsonl(path: Path, field: str, skips: Skips) -> Iterator[Document]:
    """One document a line."""
    for number, row in json_rows(path, skips):
        yield from row_document(row, field, str(path), "line", number, skips)


def json_rows(path: Path, skips: Skips) -> Iterator[tuple[int, Any]]:
    """(line number, what the line spells) of a jsonl file; blank lines are passed over."""
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
    """The lines of a file, None for one of more than MAX_LINE bytes or characters, which is never held in memory."""
    while line := file.readline(MAX_LINE + 1):
        yield line if len(line) <= MAX_LINE else None
        while len(line) > MAX_LINE and line[-1:] not in (b"\n", "\n"):
            line = file.readline(MAX_LINE + 1)


def read_parquet(path: Path, field: str, skips: Skips) -> Iterator[Document]:
    """One document a row, read in batches of the one column."""
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


def row_document(row: Any, field: str, origin: str, unit: str, number: int, skips: Skips) -> Iterator[Document]:
    """The document in a row, if there is one; an empty text is no document, and no fault either."""
    try:
        text = field_text(row, field)
    except ValueError as error:
        skips.skip(unit, f"{origin} {unit} {number}", str(error))
        return
    skips.good[unit] += 1
    if text.strip():
        yield Document(text, origin)


def field_text(row: Any, field: str) -> str:
    """The string in a row's field; a ValueError says why there is none."""
    if not isinstance(row, dict):
        raise ValueError(f"{type(row).__name__}, not an object with the key {field!r}")
    if field not in row:
        raise ValueError(f"no key {field!r} (data.field); keys: {', '.join(map(str, row))}")
    if not isinstance(row[field], str):
        raise ValueError(f"{field!r} holds {type(row[field]).__name__}, not a string")
    row[field].encode()  # JSON can spell half a surrogate pair, which no UTF-8 can hold: a UnicodeEncodeError
    return row[field]
