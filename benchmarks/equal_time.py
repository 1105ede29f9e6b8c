"""Which settings reach the best validation bits-per-byte in the same training time on this machine?

    python benchmarks/equal_time.py seconds=280 model.size=nano model.size=micro model.size=tiny

Each further argument is one candidate: settings joined by "+", laid over `data=storybook`. A candidate's speed is measured in
a short run first; its schedule then spans as many steps as fit into the time. Prints a table in Markdown.
"""

import sys
import tempfile
from pathlib import Path

from gengen.cli import main
from gengen.training.metrics import read_metrics


def run(settings: list[str], runs: str, name: str, steps: int) -> list[dict[str, float]]:
    quiet = [f"trainer.{key}_every={steps}" for key in ("save", "eval", "sample")]
    argv = ["model=gpt", "data=storybook", f"runs_dir={runs}", f"run={name}", f"trainer.max_steps={steps}", *quiet, *settings]
    if main(["train", *argv]) != 0:
        raise SystemExit(f"{name} failed")
    return read_metrics(Path(runs) / name / "metrics.csv")


def candidate(settings: list[str], seconds: float, runs: str, number: int) -> str:
    warm = run([*settings, "trainer.log_every=6"], runs, f"speed-{number}", 18)
    rows = run(settings, runs, f"full-{number}", max(20, round(seconds / (warm[-1]["seconds"] - warm[-2]["seconds"]) * 6)))
    last, speeds = rows[-1], sorted(row["tokens_per_second"] for row in rows if row["tokens_per_second"])
    cells = [" ".join(settings), last["step"], f"{last['seconds']:.0f}", f"{speeds[len(speeds) // 2]:,.0f}", f"{last['val/bpb']:.4f}"]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    seconds = float(next((a.split("=")[1] for a in sys.argv[1:] if a.startswith("seconds=")), "280"))
    with tempfile.TemporaryDirectory() as runs:
        table = [candidate(a.split("+"), seconds, runs, i) for i, a in enumerate(a for a in sys.argv[1:] if not a.startswith("seconds="))]
    print("\n| settings | steps | seconds of training | tokens/s (median) | validation bits per byte |\n|---|---|---|---|---|")
    print("\n".join(table))
