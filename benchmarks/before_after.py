"""Time a step of this checkout beside that of another one, in alternating blocks: what a change costs.

    python benchmarks/before_after.py OTHER_CHECKOUT [blocks=12] [steps=4] [SETTING ...]

Both train the default model (`optim=adamw trainer.compile=false`, or as the settings say) in processes of their own,
of which one waits while the other does a block of steps. Prints the median seconds of a step of either, and the median
ratio of neighbouring blocks with its quartiles.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import IO

ROOT = Path(__file__).parents[1]
QUIET = ["trainer.eval_every=100000", "trainer.sample_every=100000", "trainer.save_every=100000"]
DEFAULT = ["model=gpt", "data=storybook", "optim=adamw", "trainer.compile=false"]
MARK = "BLOCK "


def worker(steps: int, argv: list[str]) -> None:
    """Train; ahead of each block of steps print how long the last one took, and wait for a line."""
    from gengen.cli import main
    from gengen.training.objective import Objective

    right, start = Objective.training_step, time.perf_counter()

    def training_step(self: Objective, *args: object) -> None:
        nonlocal start
        if self.global_step % steps == 0:
            print(f"{MARK}{(time.perf_counter() - start) / steps}", flush=True)
            sys.stdin.readline()
            start = time.perf_counter()
        right(self, *args)  # type: ignore[arg-type]

    setattr(Objective, "training_step", training_step)
    main(["train", *argv])


def begin(checkout: Path, steps: int, argv: list[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, str(Path(__file__).resolve()), "worker", str(steps), *argv]
    env = os.environ | {"PYTHONPATH": str(checkout / "src"), "GOMP_SPINCOUNT": "5000"}  # as the command itself does
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=checkout, env=env, text=True, **pipe)


def next_block(process: "subprocess.Popen[str]") -> float:
    """Return the seconds of a step of the block that has just ended."""
    said: list[str] = []
    out: IO[str] | None = process.stdout
    for line in out or ():
        if line.startswith(MARK):
            return float(line.removeprefix(MARK))
        said.append(line)
    raise SystemExit("".join(said[-20:]) + "ended early")


def main(other: Path, blocks: int, steps: int, settings: list[str]) -> None:
    with tempfile.TemporaryDirectory() as runs:
        length = f"trainer.max_steps={steps * (blocks + 2)}"
        processes = []
        for name, checkout in (("this", ROOT), ("other", other.resolve())):
            argv = [*(settings or DEFAULT), *QUIET, length, f"runs_dir={runs}", f"run={name}"]
            processes.append(begin(checkout, steps, argv))
            next_block(processes[-1])  # it has started
        times: list[list[float]] = [[], []]
        for block in range(blocks + 1):
            for process, found in zip(processes, times, strict=True):
                assert process.stdin
                process.stdin.write("\n")
                process.stdin.flush()
                seconds = next_block(process)
                if block:  # the first one warms up
                    found.append(seconds)
        for process in processes:
            process.kill()
            process.wait()
    ratios = [ours / theirs for ours, theirs in zip(*times, strict=True)]
    low, _, high = quantiles(ratios) if len(ratios) > 1 else ratios * 3
    print(f"this {median(times[0]):.4f} s, other {median(times[1]):.4f} s a step ({blocks} blocks of {steps})")
    print(f"this / other {median(ratios):.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(int(sys.argv[2]), sys.argv[3:])
    else:
        keys = dict(word.split("=", 1) for word in sys.argv[2:] if word.split("=")[0] in ("blocks", "steps"))
        rest = [word for word in sys.argv[2:] if word.split("=")[0] not in ("blocks", "steps")]
        main(Path(sys.argv[1]), int(keys.get("blocks", 12)), int(keys.get("steps", 4)), rest)
