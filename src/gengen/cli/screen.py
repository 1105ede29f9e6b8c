"""The screen of a command: what it cannot show is replaced or left out, and never ends the command."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Screen:
    """A text stream over another one (sys.stdout, or None for none): a character it does not know becomes `?`, and
    what it does not take, as a closed pipe, a terminal that is gone or a full disk, is lost. All else is the stream's
    own."""

    def __init__(self, stream: Any):
        self._stream = stream if stream is not None else os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")

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
        """Flush; a stream that cannot be flushed goes nowhere from now on, so that Python's own flush at exit does not
        fail either.
        """
        try:
            self._stream.flush()
        except OSError:
            with suppress(OSError, ValueError):  # a stream of no file
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def screened() -> Iterator[None]:
    """While entered, sys.stdout and sys.stderr are Screens."""
    before = sys.stdout, sys.stderr
    screens = sys.stdout, sys.stderr = Screen(before[0]), Screen(before[1])
    try:
        yield
    finally:
        for screen in screens:
            screen.leave()
        sys.stdout, sys.stderr = before
