"""How fast a run is, and how fast its machine could be."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from gengen.hardware import wait_for

DENSE_BF16 = {  # TFLOP/s without sparsity, from the vendors' data sheets
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125,
    "V100": 125, "T4": 65, "RTX 5090": 210, "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip


def peak_flops(device: str, precision: str) -> float | None:
    """Peak FLOP/s of one device: from the table for a known GPU, measured on a CPU, None where neither is known."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        return next((1e12 * peak for key, peak in DENSE_BF16.items() if key in name and precision == "bf16"), None)
    return matmul_flops(torch.bfloat16 if precision == "bf16" else torch.float32)


def matmul_flops(dtype: torch.dtype, n: int = 1024, for_s: float = 0.3) -> float:
    """The best FLOP/s of the (n, n) x (n, n) products that the CPU makes in `for_s` seconds, of three at least: the
    first ones, before threads run and the clock has risen, may take twice as long."""
    a = torch.ones(n, n, dtype=dtype)
    seconds: list[float] = []
    until = time.perf_counter() + for_s
    while len(seconds) < 3 or time.perf_counter() < until:
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


@dataclass
class Clock:
    """Training wall-clock in seconds, summed over resumes."""

    before: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def __call__(self) -> float:
        return self.before + self.here()

    def restart(self) -> None:
        """Count the seconds of this process from now."""
        self.started = time.monotonic()

    def here(self) -> float:
        """Seconds in this process."""
        return time.monotonic() - self.started


class Laps:
    """Steps, and the seconds they took, since the last row; evaluations, samples and saves do not count."""

    def __init__(self) -> None:
        self.start(0)

    def start(self, step: int) -> None:
        self._step, self._since = step, time.monotonic()

    def lap(self, step: int) -> tuple[int, float]:
        """Return the steps and seconds since the last lap, and begin the next."""
        steps, seconds = step - self._step, time.monotonic() - self._since
        self.start(step)
        return steps, seconds

    @contextmanager
    def paused(self, device: torch.device) -> Iterator[None]:
        """Inside, once the device has done the steps before, time does not count."""
        wait_for(device)
        start = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - start
