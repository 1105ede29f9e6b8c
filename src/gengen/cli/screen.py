"""The streams of a command: what they cannot show is replaced or left out, and never ends the command."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class Screen:
    """A text stream over another one (sys.stdout, or None for none). A character that this one does not know becomes
    `?`; what it does not take (a closed pipe, a terminal that is gone, a full disk) is lost. All else is its own."""

    def __init__(self, stream: TextIO | None):
        self._stream: TextIO = stream if stream is not None else os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")

    def write(self, text: str) -> int:
        with suppress(OSError):
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(text.encode(error.encoding, "replace").decode(error.encoding))
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def leave(self) -> None:
        """Flush. A stream that cannot be flushed goes nowhere from now on, so that Python's own flush at exit does not
        fail either."""
        try:
            self._stream.flush()
        except OSError:
            with suppress(OSError, ValueError):  # a stream of no file
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def screened() -> Iterator[None]:
    """Make sys.stdout and sys.stderr Screens while this is entered."""
    before = sys.stdout, sys.stderr
    screens = sys.stdout, sys.stderr = Screen(before[0]), Screen(before[1])
    try:
        yield
    finally:
        for screen in screens:
            screen.leave()
        sys.stdout, sys.stderr = before
