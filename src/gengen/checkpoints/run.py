"""A run: a directory with one writer, a name, a config, and checkpoints."""

import fcntl
import json
import os
import re
import socket
import struct
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, TextIO
from weakref import WeakValueDictionary

from gengen.checkpoints.files import replace_text, to_json
from gengen.checkpoints.migrate import read_config
from gengen.config.limits import parse_json
from gengen.config.redact import redact
from gengen.errors import RunLocked, UserError, did_you_mean

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
LOCKED_HERE: "WeakValueDictionary[Path, Run]" = WeakValueDictionary()
"""The runs that this process writes: a record lock keeps out other processes only."""


class Run:
    """One run directory."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self._lock: TextIO | None = None

    @property
    def name(self) -> str:
        return self.path.name

    def read_config(self) -> dict[str, Any]:
        return read_config(self.path)

    def write_config(self, config: dict[str, Any]) -> None:
        replace_text(self.path / "config.json", redact(to_json(config)))

    def lock(self) -> str | None:
        """Become the run's one writer, until `unlock` or the end of the process.

        Returns a line if a stale lock was taken over; samples that its process had begun to write are removed. Raises
        RunLocked, naming pid and host, while another process holds it, or this one does.
        """
        here = self.path.resolve()
        if here in LOCKED_HERE:
            raise RunLocked(
                f"{self.path} is being written by this process, pid {os.getpid()} on {socket.gethostname()}"
            )
        file = (self.path / "run.lock").open("a+", encoding="utf8", errors="replace")
        file.seek(0)
        try:
            holder = dict(parse_json(file.read() or "{}"))
        except (ValueError, TypeError):
            holder = {}
        try:  # a record lock: the system drops it when the process dies, and forked workers do not inherit it
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunLocked(
                f"{self.path} is being written by pid {holder.get('pid', '?')} on {holder.get('host', '?')}"
            ) from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        self._lock = file
        LOCKED_HERE[here] = self
        if not isinstance(pid := holder.get("pid"), int):
            return None
        for begun in self.samples.glob(f".*.{pid}"):  # see `replace_bytes`
            begun.unlink()
        return f"took over the lock of pid {pid} on {holder.get('host')}, which is gone"

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None
            LOCKED_HERE.pop(self.path.resolve(), None)


FLOCK = "qqihhi" if sys.platform == "darwin" else "hhqqii"
"""`struct flock` of fcntl(2), whose fields stand in another order on macOS; the last int is padding."""


def being_written(lock: Path) -> bool:
    """Return whether a process holds a run's lock. It is only asked for: who took it to find out, and be it for a
    moment, would turn a trainer away that begins in this moment."""
    darwin = sys.platform == "darwin"
    asked = struct.pack(FLOCK, *((0, 0, 0, fcntl.F_WRLCK, 0, 0) if darwin else (fcntl.F_WRLCK, 0, 0, 0, 0, 0)))
    try:
        with lock.open("rb") as file:
            found = struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    except OSError:
        return False
    return bool(found[3 if darwin else 0] != fcntl.F_UNLCK)


def check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise UserError(f"run={name} cannot name a run: letters, digits, '.', '_' and '-', at most 80, are allowed")


def create(runs_dir: Path, name: str | None, stem: str) -> Run:
    """Make the directory of a new run: `name`, or stem-1, stem-2, ... whichever is free.

    Two processes never get the same number.
    """
    if name is not None:
        check_name(name)
    runs_dir.mkdir(parents=True, exist_ok=True)
    numbers = count(1)
    while True:
        path = runs_dir / (name or f"{stem}-{next(numbers)}")
        with suppress(FileExistsError):
            path.mkdir()
            return Run(path)
        if name is not None:
            return Run(path)


def find(where: str, runs_dir: Path) -> Path:
    """The directory that a run's name or path, or a checkpoint's path, means.

    Raises UserError with the nearest runs.
    """
    for path in (Path(where), runs_dir / where):
        if os.path.isfile(path / "config.json"):
            return path
    runs = sorted(path.parent.name for path in runs_dir.glob("*/config.json"))
    raise UserError(f"no run {where!r} in {runs_dir}/" + did_you_mean(Path(where).name, runs))
