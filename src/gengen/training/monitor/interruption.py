"""Stops that are asked for from outside. The run saves at the next step boundary and ends.

SIGTERM and SIGINT ask for a stop, SIGUSR1 and SIGUSR2 for one after which the job is started again. A second signal
ends the process at once.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

REQUEUED = (signal.SIGUSR1, signal.SIGUSR2)  # what SLURM sends ahead of a time limit
CAUGHT = (signal.SIGTERM, signal.SIGINT, *REQUEUED)
Handler = Callable[[int, FrameType | None], object] | int | None
"""What `signal.getsignal` returns: a function, SIG_DFL or SIG_IGN, or None for a handler that C code has set."""


class Interrupted(Exception):
    """A stop was asked for before there was anything to save."""

    def __init__(self, exit_code: int):
        super().__init__("interrupted")
        self.exit_code = exit_code


class Interruption:
    """A flag that is polled between steps and inside evaluation, rollouts and previews.

    While entered, the first of `signals` sets it. With signals=() no handler is ever installed, and `stop` alone sets
    it: so it is in Python and notebooks, and in threads that are not the main one.
    """

    def __init__(self, signals: tuple[signal.Signals, ...] = CAUGHT) -> None:
        self.signals = signals
        self.signal: int | None = None
        self.polls = 0  # how often it was asked: while training goes on, this grows
        self.waits = False  # for other ranks
        self._before: dict[signal.Signals, Handler] = {}

    def __call__(self) -> bool:
        self.polls += 1
        return self.signal is not None

    def stop(self, number: int = signal.SIGINT) -> None:
        """Ask for a stop, as that signal would."""
        self.signal = number

    def beats(self) -> int:
        """Return a number that stands still if this rank is stuck.

        It moves while the rank waits for others, which are watched, too.
        """
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
        self._before = {s: signal.getsignal(s) for s in self.signals}
        self.install()
        return self

    def install(self) -> None:
        """Take the signals; called again when training starts, in place of the handlers Lightning has put there."""
        for s in self.signals:
            signal.signal(s, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os.write(2, b"error: a second signal came; ended at once, and nothing more is saved\n")
            os._exit(128 + number)
        self.stop(number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)
