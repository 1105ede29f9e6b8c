"""Saves beside training: the state is copied, and another process writes the copy while the next steps are made.

That process is this file as a program. It writes by the same functions as a run that waits for its saves, so the disk
holds the same at any moment, and at the end. It is started when training begins, as importing torch takes seconds. It
holds no lock of the run: the system kills it with the process that trains, and the next resume removes what it had
begun to write, as after any kill.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from gengen.checkpoints import store
from gengen.checkpoints.saving import Save, Saved, carry_out
from gengen.checkpoints.snapshot import Snapshot, Written, read_snapshot
from gengen.errors import UserError

DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
NICENESS = 5  # below training, where they share a core
UNHEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that a terminal or a cluster sends to all processes: the one that trains answers them, and saves."""


class BackgroundSaver:
    """Hands saves to one process that writes them; one that dies is replaced with the next save."""

    def __init__(self) -> None:
        if not hasattr(os, "memfd_create"):
            raise UserError("trainer.save=async needs Linux; take trainer.save=sync")
        self.snapshot: Snapshot | None = None
        self.writer: subprocess.Popen[str] | None = None
        self.root: Path | None = None  # of the save that was begun last
        self.saved: Saved | None = None  # how it ended, where no writer has to say so

    def start(self) -> None:
        self.snapshot = self.snapshot or Snapshot()
        self.writer = self.writer or started(self.snapshot.file)

    def begin(self, save: Save) -> None:
        assert self.root is None and self.saved is None, "the end of the save before has not been asked for"
        try:
            self.start()
            assert self.snapshot and self.writer and self.writer.stdin
            written = self.snapshot.take(save)
        except (OSError, MemoryError) as error:
            self.saved = Saved(failure=f"step {save.checkpoint.step} could not be copied: {error}")
            return
        self.root = save.root
        with suppress(BrokenPipeError):  # it is gone, as will be found
            self.writer.stdin.write(json.dumps(asdict(written)) + "\n")
            self.writer.stdin.flush()

    def ended(self, wait: bool) -> Saved | None:
        saved, self.saved = self.saved, None
        if saved or self.writer is None or self.root is None:
            return saved
        assert self.writer.stdout
        if not wait and not select.select([self.writer.stdout], [], [], 0)[0]:
            return None
        answer = self.writer.stdout.readline()
        root, self.root = self.root, None
        return Saved(**json.loads(answer)) if answer else self.failed(root)

    def failed(self, root: Path) -> Saved:
        """Clear away a writer that is gone, and what it had begun."""
        assert self.writer
        code = self.writer.wait()
        self.end_writer()
        store.sweep(root)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Saved(failure=f"{root}: the process that writes checkpoints ended with {how}")

    def close(self) -> None:
        self.end_writer()
        if self.snapshot:
            self.snapshot.close()
        self.snapshot = None

    def end_writer(self) -> None:
        """Let the writer end, after the save that it is at."""
        if self.writer and self.writer.stdin and self.writer.stdout:
            with suppress(BrokenPipeError):
                self.writer.stdin.close()
            self.writer.wait()
            self.writer.stdout.close()
        self.writer = None


def started(file: int) -> "subprocess.Popen[str]":
    """Start a writer, which is handed the memory of snapshots."""
    command = [sys.executable, "-m", "gengen.checkpoints.background", str(file), str(os.getpid())]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[file])


def main(argv: Sequence[str]) -> None:
    """Write one snapshot after another, each when a line on the standard input asks for it; answer with a line."""
    file, parent = map(int, argv)
    ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the system was asked
        return
    for number in UNHEEDED:
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # whatever else is said is no answer
        for line in sys.stdin:
            saved = carry_out(read_snapshot(file, Written(**json.loads(line))))
            answers.write(json.dumps(asdict(saved)) + "\n")
            answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
