"""Folders of prepared data that are made once.

A folder is made under another name and renamed when complete, so it is never seen half done. Of two processes that
want the same one, one makes it and the other waits.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from gengen.data.sources.files import in_words
from gengen.errors import UserError

Opened = TypeVar("Opened")
LOOK_ONLY = ContextVar("LOOK_ONLY", default=False)
"""Whether what is missing or damaged is an error, instead of being made."""

TRAINED_ON = ContextVar("TRAINED_ON", default="")
"""The fingerprint of the data of the run that goes on or is evaluated: they stay as they were prepared for it."""


class NotPrepared(UserError):
    """The folder `home` is not there, where nothing is to be made."""

    def __init__(self, home: Path):
        super().__init__(f"{home} is not there")
        self.home = home


class Prepared:
    """What prepared data of any kind say of themselves, by their meta.json."""

    meta: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return self.meta["fingerprint"]

    @property
    def dependencies(self) -> dict[str, Path]:
        """Folders that a run keeps a copy of, by the name they have there."""
        return {}

    def described(self, facts: dict[str, str]) -> list[str]:
        """What they are, in aligned lines."""
        facts = {key: self.meta[key] for key in ("source", "licence")} | facts
        facts |= {"fingerprint": self.fingerprint[:16], "skipped": in_words(self.meta["skips"])}
        return [f"{key:<{max(12, *map(len, facts))}} {value}" for key, value in facts.items()]


def fingerprint(facts: dict[str, Any], today: int) -> tuple[str, int]:
    """(sha256 over all that shapes prepared data, the format they are made in): today's, or that of the run's data."""
    digests = {}
    for version in range(today, 0, -1):
        digests[version] = hashlib.sha256(json.dumps(facts | {"format": version}, sort_keys=True).encode()).hexdigest()
    version = next((version for version, digest in digests.items() if digest == TRAINED_ON.get()), today)
    return digests[version], version


def made_once(
    home: Path, open_: Callable[[], Opened], build: Callable[[Path, Path], None], say: Callable[[str], None]
) -> Opened:
    """What `open_` finds in the folder `home`; where it finds it missing or damaged, a UserError, the folder is made
    first.

    build(folder, spool): fills an empty folder; `spool` is a path to use on the way, thrown away in the end.
    """
    if LOOK_ONLY.get():
        if not home.exists():
            raise NotPrepared(home)
        return open_()
    with suppress(UserError):
        return open_()
    try:
        with _workspace(home, say) as making:
            try:
                return open_()  # made while this process waited
            except UserError as damage:
                say(f"data: {damage}\n  preparing it again" if home.exists() else f"data: preparing {home}")
            built = making / "built"
            built.mkdir()
            build(built, making / "spool")
            _sync(built)
            if home.exists():
                os.rename(home, making / "damaged")
            os.rename(built, home)
            _sync(home.parent)
            return open_()
    except OSError as error:
        raise UserError(f"data: {home} cannot be prepared ({error})") from error


@contextmanager
def _workspace(home: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """An empty folder beside `home`, for one process at a time: the lock is the system's, and falls with its process."""
    home.parent.mkdir(parents=True, exist_ok=True)
    making = home.with_name(f".{home.name}.making")
    with open(home.with_name(f".{home.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("data: another process prepares the same data; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(making, ignore_errors=True)  # left by a process that was killed
        making.mkdir()
        try:
            yield making
        finally:
            shutil.rmtree(making, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a file, and make its content survive a power cut."""
    with open(path, "wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def file_facts(path: Path, hashed: bool) -> tuple[int, str]:
    """(bytes, what tells the content: its sha256 or the time of its last change); reading will say what is wrong with
    a file that cannot be opened."""
    stat = path.stat()
    if not hashed:
        return stat.st_size, f"changed {stat.st_mtime_ns}"
    try:
        return stat.st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return stat.st_size, "unreadable"
