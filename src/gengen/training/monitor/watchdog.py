"""A thread that ends a process which hangs, and says where it hung."""

import faulthandler
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from gengen.training.monitor.console import last_words


class Watchdog:
    """While entered, ends the process with exit code 70 if `beats` stands still for `limit` seconds.

    Before that it writes the stacks of all threads to a file and to stderr. Time in which the process itself was
    stopped does not count. end: ends the process with an exit code.
    """

    def __init__(self, limit: float, beats: Callable[[], int], path: Path, end: Callable[[int], object] | None = None):
        self.limit, self.beats, self.path, self.end = limit, beats, path, end or os._exit
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        tick, idle, last = self.limit / 20, 0.0, self.beats()
        while not self._done.wait(tick):
            idle, last = idle + tick if self.beats() == last else 0.0, self.beats()
            if idle >= self.limit:
                self._bark()

    def _bark(self) -> None:
        with self.path.open("a", encoding="utf8") as file:
            for target in (file, sys.__stderr__ or file):
                faulthandler.dump_traceback(target, all_threads=True)
        last_words(
            f"error: nothing has moved for {self.limit:.0f} s (trainer.watchdog); "
            f"the stacks of all threads are in {self.path}"
        )
        self.end(70)
