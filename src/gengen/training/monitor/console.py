"""What a run says: lines on the screen and in log.txt, and one progress line where there is a terminal."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gengen.config.redact import redact

PLAIN_EVERY = 10.0  # seconds between progress lines where there is no terminal


class Console:
    """Lines said before the run has a directory are kept until `open`."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet  # ranks above 0
        self._early: list[str] = []
        self._path: Path | None = None
        self._status: Any = None
        self._last = 0.0

    def open(self, path: Path) -> None:
        """Append to this log.txt from now on."""
        self._path = path
        self._write("".join(self._early))

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.quiet:
            return
        line = redact(line)
        if self._status is not None:
            self._status.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)
        self._early.append(line + "\n") if self._path is None else self._write(line + "\n")

    def progress(self, line: str, last: bool = False) -> None:
        """The line that moves: redrawn in place on a terminal, printed now and then elsewhere."""
        if self.quiet:
            return
        if sys.stdout.isatty():
            from rich.console import Console as Rich

            if self._status is None:
                self._status = Rich().status(line, refresh_per_second=2)
                self._status.start()
            self._status.update(line)
        elif last or time.monotonic() - self._last >= PLAIN_EVERY:
            self._last = time.monotonic()
            print(line, flush=True)
        if last:
            self.close()
            self._write(line + "\n")

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _write(self, text: str) -> None:
        if self._path is not None:
            with (
                suppress(OSError),
                self._path.open("a", encoding="utf8", errors="replace") as file,
            ):  # if not, the screen still has it
                file.write(text)
