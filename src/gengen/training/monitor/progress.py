"""The line that a run shows of its progress."""

from collections.abc import Mapping


def duration(s: float) -> str:
    """Seconds in words: 59s, 1m01s, 2h05m."""
    s = round(s)
    return f"{s // 3600}h{s % 3600 // 60:02}m" if s >= 3600 else f"{s // 60}m{s % 60:02}s" if s >= 60 else f"{s}s"


def speed(rate: float) -> str:
    """A rate in three digits: 9.87, 31, 987, 9.9k."""
    return f"{rate / 1000:.1f}k" if rate >= 1000 else f"{rate:.0f}" if rate >= 10 else f"{rate:.2f}"


def progress_line(
    step: int, max_steps: int, seconds: float, row: Mapping[str, float], evaluation: Mapping[str, float]
) -> str:
    """Step, loss, the metrics of the last evaluation, speed, and how long it has taken and will take.

    row: the columns of metrics.csv that are new; seconds: of training so far.
    """
    parts = [f"step {step}/{max_steps}"]
    if "train/loss" in row:
        parts.append(f"loss {row['train/loss']:.3f}")
    parts += [f"{name} {value:.4f}" for name, value in evaluation.items() if name != "val/loss"]
    parts += [
        f"{speed(value)} {name.removesuffix('_per_second')}/s"
        for name, value in row.items()
        if name.endswith("_per_second")
    ]
    if "mfu" in row:
        parts.append(f"MFU {row['mfu']:.0%}")
    left = seconds / max(step, 1) * (max_steps - max(step, 1))
    parts.append(f"{duration(seconds)} done, {duration(left)} to go")
    return "  ".join(parts)
