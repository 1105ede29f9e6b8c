"""What benchmarks of several contestants share: their arguments, turns one after the other, and how figures are
shown."""

from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import torch

from gengen.training.monitor.throughput import matmul_flops

Figures = dict[str, list[float]]
"""Contestant -> its figure of each round."""


def arguments(argv: Iterable[str], **defaults: Any) -> tuple[dict[str, Any], list[str]]:
    """Each key=value in the type of its default, and what has no default here: settings for gengen's own command
    line."""
    asked, settings = dict(defaults), list[str]()
    for argument in argv:
        key, _, text = argument.partition("=")
        if key in defaults:
            asked[key] = type(defaults[key])(text)
        else:
            settings.append(argument)
    return asked, settings


def take_turns(contestants: dict[str, Callable[[], float]], rounds: int) -> Figures:
    figures: Figures = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            figures[name].append(contestant())
    return figures


def spread(values: list[float], digits: int = 0) -> str:
    """Median, least and most."""
    return f"{median(values):9,.{digits}f}   {min(values):,.{digits}f} to {max(values):,.{digits}f}"


def ratio(figures: Figures, ahead: str, behind: str) -> str:
    """How many times `behind` goes into `ahead`, round by round."""
    ratios = [a / b for a, b in zip(figures[ahead], figures[behind], strict=True)]
    return f"  {ahead} / {behind}: {median(ratios):.2f}x   {min(ratios):.2f} to {max(ratios):.2f}"


def measured_peaks(precisions: Iterable[str]) -> dict[str, float]:
    """FLOP/s of a 2048^3 matrix product, by precision: fp32 or bf16."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return {precision: matmul_flops(dtypes[precision], 2048) for precision in sorted(set(precisions))}
