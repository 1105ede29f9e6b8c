"""What another busy process costs training: steps of the default model alone, and beside a process that never rests.

    python benchmarks/busy.py [blocks=6] [steps=4] [SETTING ...]

Blocks of steps take turns, alone and beside it. Two cores of which one is shared can give .75 of their speed at most,
and threads that wait for each other at every operation less. Bar: .4.
"""

import subprocess
import sys
import tempfile
from statistics import median

from before_after import DEFAULT, QUIET, ROOT, begin, next_block
from turns import arguments, spread

NEVER_RESTS = "while True: pass"


def block(process: "subprocess.Popen[str]") -> float:
    """Let the training do a block of steps. Returns the seconds of a step."""
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
    return next_block(process)


def main(blocks: int, steps: int, settings: list[str]) -> None:
    with tempfile.TemporaryDirectory() as runs:
        length = f"trainer.max_steps={steps * (2 * blocks + 3)}"
        process = begin(ROOT, steps, [*(settings or DEFAULT), *QUIET, length, f"runs_dir={runs}", "run=busy"])
        next_block(process)  # it has started
        block(process)  # and is warm
        alone, beside = [], []
        for _ in range(blocks):
            alone.append(block(process))
            busy = subprocess.Popen([sys.executable, "-c", NEVER_RESTS])
            beside.append(block(process))
            busy.kill()
            busy.wait()
        process.kill()
        process.wait()
    print(f"a step alone {spread(alone, 3)} s, beside a busy process {spread(beside, 3)} s")
    shares = [a / b for a, b in zip(alone, beside, strict=True)]
    print(f"share of its speed {median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f}), bar .4")


if __name__ == "__main__":
    asked, rest = arguments(sys.argv[1:], blocks=6, steps=4)
    main(**asked, settings=rest)
