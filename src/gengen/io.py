"""What every room needs of files and of words: a file that survives a power cut, and where progress is told."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

Say = Callable[[str], None]
"""Takes one message for people, such as a line of progress or a warning."""
Json: TypeAlias = Any
"""What JSON holds: None, a bool, a number, a text, and lists and dicts of these. It is named, but not checked: a
recursive type would need a cast at each step into a tree."""


def fsync(path: Path) -> None:
    """Flush a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a file and flush it; for files inside a directory that is renamed into place later."""
    path.write_text(text, encoding="utf8", newline="\n")
    fsync(path)
