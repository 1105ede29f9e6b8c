"""SIGTERM and SIGINT ask for a stop, SIGUSR1 and SIGUSR2 for one that is gone on from; the run saves at the next step
boundary. A second signal exits at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

REQUEUED = (signal.SIGUSR1, signal.SIGUSR2)  # what SLURM sends ahead of a time limit
CAUGHT = (signal.SIGTERM, signal.SIGINT, *REQUEUED)


class Interruption:
    """While entered, holds the first signal that came. The handler only sets a flag, which is polled between steps."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.polls = 0  # how often it was asked: while training goes on, this grows
        self.waits = False  # for other ranks
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        self.polls += 1
        return self.signal is not None

    def beats(self) -> int:
        """A number that stands still if this rank is stuck; not while it waits for others, which are watched, too."""
        self.polls += self.waits
        return self.polls

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, this rank waits for others."""
        self.waits = True
        try:
            yield
        finally:
            self.waits = False

    @property
    def exit_code(self) -> int:
        """128 + the signal: 143 for SIGTERM, 130 for SIGINT; 75, to be tried again, for SIGUSR1 and SIGUSR2."""
        return 75 if self.signal in REQUEUED else 128 + (self.signal or 0)

    def __enter__(self) -> "Interruption":
        self._before = {s: signal.getsignal(s) for s in CAUGHT}
        self.install()
        return self

    def install(self) -> None:
        """Take the signals; called again when training starts, in place of the handlers Lightning has put there."""
        for s in CAUGHT:
            signal.signal(s, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os.write(2, b"error: a second signal came; ended at once, and nothing more is saved\n")
            os._exit(128 + number)
        self.signal = number

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)
