"""The secret that marks are made and found with: a file that its owner alone may read."""

import os
import secrets
import stat
from pathlib import Path

from gengen.errors import UserError

SIZE = 32  # bytes
NEW = "python scripts/detect.py new_key=FILE makes one"


def new_key(path: Path) -> None:
    """Write a new key, as hexadecimal digits, into a file that is new and that its owner alone may read and write."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UserError(f"new_key={path} exists, and what it marked could not be found by another key") from None
    except OSError as error:
        raise UserError(f"new_key={path} cannot be written: {error.strerror}") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(SIZE) + "\n")


def read_key(path: Path) -> bytes:
    """Return the key in a file. Raises UserError where there is none, and where others than the owner may read it."""
    try:
        mode = path.stat().st_mode
    except OSError:
        raise UserError(f"key file {path}: no such file; {NEW}") from None
    if not stat.S_ISREG(mode):
        raise UserError(f"key file {path} is not a plain file")
    if mode & 0o077:
        raise UserError(
            f"key file {path} may be read by others (mode {mode & 0o777:04o}); only its owner may: chmod 600 {path}"
        )
    try:
        with path.open("rb") as file:
            key = bytes.fromhex(file.read(4 * SIZE).decode("ascii").strip())
    except (OSError, ValueError):
        key = b""
    if len(key) != SIZE:
        raise UserError(f"key file {path} does not hold a key of {2 * SIZE} hexadecimal digits; {NEW}")
    return key
