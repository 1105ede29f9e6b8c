"""Small files written so that a crash leaves the old one or the new one, and JSON read with limits."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from gengen.config.errors import UserError
from gengen.config.limits import parse_json

MAX_JSON = 16 * 2**20  # bytes


class Damaged(UserError):
    """A file is not what was written."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path} is damaged: {reason}")
        self.path, self.reason = path, reason


def to_json(tree: Any) -> str:
    """Canonical JSON: the same tree is always the same text."""
    return json.dumps(tree, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_text(path: Path, limit: int) -> str:
    """The text of a plain file in UTF-8; raises Damaged where it is missing, or larger than `limit` bytes."""
    if not os.path.isfile(path):
        raise Damaged(path, "missing")
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise Damaged(path, str(error)) from None
    if len(raw) > limit:
        raise Damaged(path, f"{path.stat().st_size:,} bytes; at most {limit:,} are allowed")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Damaged(path, f"not UTF-8 ({error})") from None


def read_json(path: Path, limit: int = MAX_JSON) -> Any:
    """What a JSON file spells; raises Damaged where it is missing, too large, nested too deeply or no JSON."""
    try:
        return parse_json(read_text(path, limit))
    except ValueError as error:
        raise Damaged(path, f"not JSON ({error})") from None


def fsync(path: Path) -> None:
    """Flush a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write and flush; for files inside a directory that is renamed into place later."""
    path.write_text(text, encoding="utf8")
    fsync(path)


def replace_text(path: Path, text: str) -> None:
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step: readers see the old content or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    fsync(beside)
    os.replace(beside, path)
    fsync(path.parent)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder of plain files, so that `target` is there whole or not at all; what was there is replaced."""
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside)
    for path in beside.iterdir():
        fsync(path)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(beside, target)
    fsync(target.parent)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
