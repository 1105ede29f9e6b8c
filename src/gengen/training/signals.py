"""SIGTERM and SIGINT ask for a stop; the run saves at the next step boundary. A second one exits at once."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any

CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SIGUSR1: what SLURM sends ahead of a time limit


class Interruption:
    """While entered, holds the first signal that came. The handler only sets a flag, which is polled between steps."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + (self.signal or 0)

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
            os._exit(128 + number)
        self.signal = number

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)
