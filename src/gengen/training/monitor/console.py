"""What a run says: lines on the screen and in log.txt, and one progress line that is drawn anew in place."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from gengen.config.redact import redact

PLAIN_EVERY = 10.0  # seconds between progress lines where none can be redrawn


def last_words(line: str) -> None:
    """Print a line to stderr for a process that ends at once, past the console, which another thread may be using."""
    print(line, file=sys.stderr, flush=True)


class MovingLine(Protocol):
    """A line that is redrawn in place."""

    def update(self, line: str) -> None:
        """Show this instead."""

    def print(self, line: str) -> None:
        """Print a line that stays, apart from the moving one."""

    def close(self) -> None:
        """Leave the line as it is; it moves no more."""


class TerminalLine:
    """The moving line of a terminal, by Rich."""

    def __init__(self) -> None:
        from rich.console import Console as Rich

        self._status = Rich().status("", refresh_per_second=2)
        self._status.start()

    def update(self, line: str) -> None:
        self._status.update(line)

    def print(self, line: str) -> None:
        self._status.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._status.stop()


class NotebookLine:
    """The moving line of a notebook: one output of the cell, replaced by IPython's display."""

    def __init__(self) -> None:
        from IPython.display import display

        self._handle: Any = display({"text/plain": ""}, raw=True, display_id=True)

    def update(self, line: str) -> None:
        self._handle.update({"text/plain": line}, raw=True)

    def print(self, line: str) -> None:
        print(line, flush=True)

    def close(self) -> None:
        pass


def moving_line() -> MovingLine | None:
    """A new moving line, where this process has a terminal or is a notebook's kernel."""
    if in_notebook():
        return NotebookLine()
    return TerminalLine() if sys.stdout.isatty() else None


def in_notebook() -> bool:
    """Whether IPython runs this process as a notebook's kernel. IPython itself is never imported for this."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class Console:
    """The screen and log.txt of one run. Lines said before the run has a directory are kept until `open`."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet  # ranks above 0
        self._early: list[str] = []
        self._path: Path | None = None
        self._line: MovingLine | None = None
        self._last = 0.0  # time of the last progress line that was printed

    def open(self, path: Path) -> None:
        """Append to this log.txt from now on."""
        self._path = path
        self._write("".join(self._early))
        self._early.clear()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self.quiet:
            return
        line = redact(line)
        if self._line is not None:
            self._line.print(line)
        else:
            print(line, flush=True)
        self._early.append(line + "\n") if self._path is None else self._write(line + "\n")

    def progress(self, line: str, last: bool = False) -> None:
        """Show the line that moves: redrawn in place, or printed every PLAIN_EVERY seconds where that cannot be."""
        if self.quiet:
            return
        if self._line is None:
            self._line = moving_line()
        if self._line is not None:
            self._line.update(line)
        elif last or time.monotonic() - self._last >= PLAIN_EVERY:
            self._last = time.monotonic()
            print(line, flush=True)
        if last:
            self.close()
            self._write(line + "\n")

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def _write(self, text: str) -> None:
        if self._path is None:
            return
        lost = suppress(OSError)  # the screen still has it
        with lost, self._path.open("a", encoding="utf8", errors="replace") as file:
            file.write(text)
