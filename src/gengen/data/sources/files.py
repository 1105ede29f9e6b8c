"""Files and folders of the user's own: which of them are read, and which are left out."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from gengen.errors import UserError, did_you_mean
from gengen.io import Say

PACKED = (".gz", ".bz2", ".xz", ".zst")  # what is compressed is named with the suffix before this one
MAX_HASHED = 64 * 2**20  # bytes; of a larger file, a sample is hashed
EDGE, BLOCK, BLOCKS = 2**20, 2**16, 64  # bytes of a sample at either end, and of each of the blocks between


def existing(path: str) -> Path:
    """Return the path that data.path names; raise UserError if nothing is there."""
    root = Path(path)
    if not root.exists():
        missing = next(p for p in (root, *root.parents) if p.parent.exists())
        beside = [p.name for p in missing.parent.iterdir()] if missing.parent.is_dir() else []
        raise UserError(
            f"data.path={path}: {missing} does not exist" + did_you_mean(missing.name, beside, all_if_none=False)
        )
    return root


def files_below(root: Path) -> tuple[list[Path], Counter[str]]:
    """Return all files below a folder, sorted and without hidden ones; and what else is there, counted by what it is.

    Links to folders are followed. Each folder is read once, under its own name before that of a link: links may go in
    circles.
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
    """Return the suffix that says what a file is, such as .jsonl.gz; its name where it has no suffix."""
    inner = Path(path.stem).suffix if path.suffix.lower() in PACKED else ""
    return (inner + path.suffix).lower() or path.name


def left_out(root: Path, files: Iterable[Path], others: Counter[str], suffixes: tuple[str, ...]) -> str:
    """Return one line that counts what of a folder is not read, by ending; "" where everything is."""
    kinds = Counter(map(ending, files)).most_common()
    counts = [f"{count:,} {kind}" for kind, count in kinds[:10]]
    if rest := sum(count for _, count in kinds[10:]):
        counts.append(f"{rest:,} with other endings")
    counts += [f"{count:,} {what.replace(' ', 's ', 1) if count > 1 else what}" for what, count in others.items()]
    return f"data: left out of {root}: {', '.join(counts)}; read are {', '.join(suffixes)}" if counts else ""


def find_files(path: str | None, suffixes: tuple[str, ...], say: Say | None = None) -> list[Path]:
    """Return the readable files at a path: the file itself, or all below a folder, sorted and without hidden ones.

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


def content_hash(path: Path, largest: int = MAX_HASHED) -> str:
    """Return what tells a file's content, wherever it lies and whenever it was written: its sha256; of a file of more
    than `largest` bytes, that of its first and last MiB and of 64 blocks of 64 KiB spread evenly between. A change in
    its size shows, too, beside this; one of the same size that lies between the blocks does not.

    A file that cannot be opened is told by that; reading will say what is wrong with it.
    """
    try:
        with open(path, "rb") as file:
            if (size := os.fstat(file.fileno()).st_size) <= largest:
                return hashlib.file_digest(file, "sha256").hexdigest()
            sample = hashlib.sha256(file.read(EDGE))
            for number in range(BLOCKS):
                file.seek(EDGE + number * (size - 2 * EDGE - BLOCK) // (BLOCKS - 1))
                sample.update(file.read(BLOCK))
            file.seek(-EDGE, os.SEEK_END)
            sample.update(file.read(EDGE))
            return f"sample {sample.hexdigest()}"
    except OSError:
        return "unreadable"


def changed(path: Path) -> str:
    """Return how large files were told before there were samples of them: by the time of their last change."""
    return f"changed {path.stat().st_mtime_ns}"


@runtime_checkable
class ToldByTime(Protocol):
    """A source of files whose facts had times of change in them."""

    def facts_by_time(self) -> dict[str, Any]:
        """Return the facts as they were, for runs whose data are named by them."""


class FileSet:
    """What sources that are a file or folder of the user's own have in common.

    path: `data.path`; suffixes: of the files that are read; licence: the terms the user names.
    """

    def __init__(self, path: str | None, suffixes: tuple[str, ...], licence: str):
        self.path, self.suffixes, self.licence = path, suffixes, licence

    def describe(self) -> tuple[str, str]:
        return f"files {self.path}", self.licence

    def facts(self) -> dict[str, Any]:
        return self._facts(content_hash)

    def facts_by_time(self) -> dict[str, Any]:
        return self._facts(lambda file: content_hash(file) if file.stat().st_size <= MAX_HASHED else changed(file))

    def _facts(self, told: Callable[[Path], str]) -> dict[str, Any]:
        root, files = Path(self.path or ""), find_files(self.path, self.suffixes)
        return {"files": [[str(file.relative_to(root)), file.stat().st_size, told(file)] for file in files]}

    def files(self, say: Say) -> list[Path]:
        return find_files(self.path, self.suffixes, say)
