"""What the scripts of this folder share: a file of rows that grows as they are measured, and windows of steps.

A script is run from the root of a checkout, without a network:

    PYTHONPATH=src:benchmarks python benchmarks/gpu/language.py [device=cuda] [size=full] [seconds=450] [out=gpu.jsonl]

device=cpu size=tiny is its rehearsal: every row, uncompiled and in a size at which the figures mean nothing.
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as L
import torch
from turns import arguments

from gengen.config.train import TrainConfig
from gengen.hardware import wait_for
from gengen.training.build import build_trainer
from gengen.training.objective import Objective

Figures = dict[str, Any]
"""What a row says, by name."""


@dataclass(frozen=True)
class Asked:
    """What a script is asked for on its command line."""

    device: str
    size: str
    seconds: float
    out: Path

    @property
    def tiny(self) -> bool:
        return self.size == "tiny"

    @property
    def compiled(self) -> bool:
        return not self.tiny

    def pick(self, full: Any, tiny: Any) -> Any:
        """Return what is meant in this size."""
        return tiny if self.tiny else full


def read_arguments() -> Asked:
    asked, unknown = arguments(sys.argv[1:], device="cuda", size="full", seconds=450.0, out="gpu.jsonl")
    if unknown or asked["size"] not in ("full", "tiny"):
        raise SystemExit(
            f"not understood: {unknown or asked['size']}; there are device, size (full, tiny), seconds, out"
        )
    return Asked(**asked | {"out": Path(asked["out"])})


class Rows:
    """A file of JSON lines. Each row is on the disk before the next is begun, so that a script may be cut short.

    A row that fails, or whose peer is not installed, says so in its line, and the others go on.
    """

    def __init__(self, asked: Asked):
        self.asked, self.ends = asked, time.monotonic() + asked.seconds
        self.found: dict[str, Figures] = {}
        cuda = asked.device == "cuda"
        device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
        self.write("machine", {"device": device, "torch": torch.__version__, "size": asked.size})

    def write(self, name: str, figures: Figures) -> None:
        self.found[name] = figures
        with self.asked.out.open("a") as file:
            file.write(json.dumps({"row": name} | figures) + "\n")
        print(name, json.dumps(figures), flush=True)

    def measure(self, name: str, act: Callable[[], Figures]) -> None:
        """Write what `act` returns, with the seconds and the memory that it took."""
        start = time.monotonic()
        if start >= self.ends:
            return self.write(name, {"skipped": "no time is left"})
        cuda = self.asked.device == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        try:
            figures = act()
        except ImportError as error:
            figures = {"skipped": f"{error.name} is not installed"}
        except Exception as error:  # whatever it is, the rows to come are worth having
            figures = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        figures |= {"took": round(time.monotonic() - start, 1)}
        if cuda:
            figures |= {"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)}
        self.write(name, figures)
        gc.collect()  # trainer and objective hold each other, and the next row needs their memory
        torch.cuda.empty_cache()

    def ratio(self, name: str, ahead: str, behind: str) -> None:
        """Write how many times `behind` goes into `ahead`, where both have been measured."""
        one, other = (self.found.get(row, {}).get("median") for row in (ahead, behind))
        self.write(
            name, {"times": round(one / other, 3)} if one and other else {"skipped": "one of the two is missing"}
        )

    def close(self) -> None:
        kinds = {
            kind: [row for row, figures in self.found.items() if kind in figures] for kind in ("error", "skipped")
        }
        print(f"{len(self.found)} rows, {len(kinds['error'])} errors, {len(kinds['skipped'])} skipped")


# --- steps


@dataclass(frozen=True)
class Pace:
    """How many steps a contestant makes: those that count for nothing, then windows of steps that are timed."""

    warmup: int = 20
    window: int = 10
    windows: int = 5

    @property
    def steps(self) -> int:
        return self.warmup + self.window * self.windows


TINY = Pace(warmup=1, window=1, windows=2)


class Stopwatch:
    """Times windows of steps. Host and device wait for each other at the ends of windows alone, as each wait leaves
    the device with nothing to do."""

    def __init__(self, pace: Pace):
        self.pace, self.step, self.ends, self.first = pace, 0, list[float](), 0.0

    def start(self, device: torch.device) -> None:
        wait_for(device)
        self.begun = time.perf_counter()

    def tick(self, device: torch.device) -> None:
        """Count a step that the device was told to do."""
        self.step += 1
        timed = self.step - self.pace.warmup
        if self.step > 1 and (timed < 0 or timed % self.pace.window):
            return
        wait_for(device)
        if self.step == 1:
            self.first = time.perf_counter() - self.begun
        if timed >= 0:
            self.ends.append(time.perf_counter())

    def figures(self, unit: str, amount: float) -> Figures:
        """Return units a second, where a step makes `amount` of them."""
        speeds = [amount * self.pace.window / (b - a) for a, b in pairwise(self.ends)]
        return {
            "unit": f"{unit}/s",
            "median": round(median(speeds), 1),
            "least": round(min(speeds), 1),
            "most": round(max(speeds), 1),
            "first_step_seconds": round(self.first, 2),
        }


class Timed(L.Callback):
    """A stopwatch on the steps of our trainer, and what the losses of these steps were."""

    def __init__(self, pace: Pace):
        self.stopwatch, self.losses = Stopwatch(pace), list[torch.Tensor]()

    def on_train_start(self, trainer: L.Trainer, objective: L.LightningModule) -> None:
        self.stopwatch.start(objective.device)

    def on_train_batch_end(self, trainer: L.Trainer, objective: L.LightningModule, *_: Any) -> None:
        assert isinstance(objective, Objective)
        self.losses.append(objective.logged["loss"].detach())
        self.stopwatch.tick(objective.device)


def train(config: TrainConfig, objective: Objective, pace: Pace, **data: Any) -> Timed:
    """Train an objective for a pace's steps by our trainer. data: loader or datamodule, as Lightning names it."""
    timed = Timed(pace)
    build_trainer(config, timed, pace.steps).fit(objective, **data)
    return timed


def loop(step: Callable[[], object], pace: Pace, device: torch.device) -> Stopwatch:
    """Time a peer's steps."""
    stopwatch = Stopwatch(pace)
    stopwatch.start(device)
    for _ in range(pace.steps):
        step()
        stopwatch.tick(device)
    return stopwatch


# --- what the device can do


def best_seconds(act: Callable[[], object], device: torch.device, times: int) -> float:
    """Return the least time of a call, in seconds; the first call does not count."""
    spent = []
    for _ in range(times + 1):
        wait_for(device)
        start = time.perf_counter()
        act()
        wait_for(device)
        spent.append(time.perf_counter() - start)
    return min(spent[1:])


def ceilings(device: torch.device, size: int, megabytes: int) -> Figures:
    """Measure what no program goes beyond here: a product of (size, size) matrices of random bf16, and a copy."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = best_seconds(lambda: a @ b, device, 20)
    copied = best_seconds(lambda: target.copy_(source), device, 20)
    return {"tflops": round(2 * size**3 / product / 1e12, 2), "copy_gb_s": round(2 * source.numel() / copied / 1e9, 1)}
