"""What watches over a run that is left alone: spikes of loss and gradient, memory that runs out, and a process that
hangs.
"""

import faulthandler
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from gengen.errors import UserError

T = TypeVar("T")

WINDOW = 128  # updates that a spike is measured against


class Spikes:
    """Loss and norm of the gradient of each network's last WINDOW finite updates, all on the device (after OLMo's
    skip-step optimizer).
    """

    def __init__(self, sigmas: float):
        self.sigmas = sigmas
        self.windows: dict[str, Tensor] = {}  # network -> (WINDOW, 2) fp64, NaN where there was no update yet

    def beyond(self, network: str, loss: Tensor, norm: Tensor) -> Tensor:
        """Whether either lies more than `sigmas` deviations above its mean; not before half of the window is known."""
        new = torch.stack([loss.detach(), norm.detach()]).double()
        window = self.windows.get(network, torch.full((WINDOW, 2), torch.nan)).to(new)
        n = (~window[:, 0].isnan()).sum()
        mean = window.nanmean(0)
        deviation = (window - mean).square().nanmean(0).sqrt()
        self.windows[network] = torch.where(new.isfinite().all(), torch.cat([window[1:], new[None]]), window)
        return (new > mean + self.sigmas * deviation).any() & (n >= WINDOW // 2)


def in_halves(act: Callable[[int], T], rows: int, what: str) -> tuple[T, int]:
    """act(rows), begun again with half as many rows at once where memory runs out; and how many it then was. Raises
    UserError where one row is too many."""
    while True:
        try:
            return act(rows), rows
        except torch.OutOfMemoryError:
            if rows == 1:
                raise UserError(
                    f"out of memory {what}, one row at a time: a smaller model, or a smaller context"
                ) from None
        rows //= 2  # not above, where the error still holds what was computed
        torch.cuda.empty_cache()


class Watchdog:
    """While entered: if `beats` stands still for `limit` seconds, writes the stacks of all threads to a file and to
    stderr, and ends the process with exit code 70. Time in which the process itself was stopped does not count."""

    def __init__(self, limit: float, beats: Callable[[], int], path: Path):
        self.limit, self.beats, self.path = limit, beats, path
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
        print(
            f"error: nothing has moved for {self.limit:.0f} s (trainer.watchdog); the stacks of all threads are in {self.path}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(70)
