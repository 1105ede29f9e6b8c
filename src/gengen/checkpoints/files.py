"""Small files written so that a crash leaves the old one or the new one, and JSON read with limits."""

import hashlib
import json
import math
import os
import shutil
from pathlib import Path

from gengen.config.limits import parse_json
from gengen.errors import UserError
from gengen.io import Json, fsync

MAX_JSON = 16 * 2**20  # bytes
NOT_FINITE = ("nan", "inf", "-inf")  # as {"float": one of them} in our JSON, which has no numbers for them


class Damaged(UserError):
    """A file is not what was written."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path} is damaged: {reason}")
        self.path, self.reason = path, reason


def without_special_floats(tree: Json) -> Json:
    """The tree with {"float": "nan"}, "inf" or "-inf" in place of each number that is not finite."""
    if isinstance(tree, float) and not math.isfinite(tree):
        return {"float": str(float(tree))}
    if isinstance(tree, dict):
        return {key: without_special_floats(value) for key, value in tree.items()}
    return [without_special_floats(value) for value in tree] if isinstance(tree, (list, tuple)) else tree


def with_special_floats(tree: Json) -> Json:
    """The inverse of `without_special_floats`."""
    if isinstance(tree, dict):
        if set(tree) == {"float"} and tree["float"] in NOT_FINITE:
            return float(tree["float"])
        return {key: with_special_floats(value) for key, value in tree.items()}
    return [with_special_floats(value) for value in tree] if isinstance(tree, list) else tree


def to_json(tree: Json) -> str:
    """Canonical JSON: the same tree is always the same text, which `read_json` makes the same tree again."""
    tree = without_special_floats(tree)
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


def read_json(path: Path, limit: int = MAX_JSON) -> Json:
    """What a JSON file spells; raises Damaged where it is missing, too large, nested too deeply or no JSON."""
    try:
        return with_special_floats(parse_json(read_text(path, limit)))
    except ValueError as error:
        raise Damaged(path, f"not JSON ({error})") from None


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
