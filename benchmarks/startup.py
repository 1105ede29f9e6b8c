"""How long until a run trains: seconds from the start of the process to the end of the first step, and what of it are
imports.

    python benchmarks/startup.py [rounds=3] [train.py's own settings ...]

Real processes, one at a time, on data that is prepared already, uncompiled. The first step is over when its row is in
metrics.csv, whose time of change is compared with that of starting the process; `stop_at=1` ends the run there, before
anything else is written to it. Imports are timed in a process that does nothing else: start of Python to the last of
the modules that such a run loads before its first step.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from turns import Figures, arguments, spread, take_turns

TRAIN = str(Path(__file__).parents[1] / "scripts" / "train.py")
MODULES = [
    "hydra", "gengen.cli.train", "gengen.cli.dry_run", "gengen.hardware", "gengen.data.text.windows",
    "gengen.generation.load", "gengen.models.gpt",
    "gengen.training.fit", "gengen.training.monitor.console", "gengen.training.objectives.language",
    "gengen.training.monitor.interruption",
]  # fmt: skip


def process(*arguments: str) -> float:
    """Run Python; returns when it was started, in seconds since 1970."""
    start = time.time()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return start


def first_step(settings: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        fixed = [
            "run=first",
            f"runs_dir={folder}",
            "trainer.max_steps=1000",
            "stop_at=1",
            "trainer.log_every=1",
            "trainer.compile=false",
        ]
        start = process(TRAIN, "model=gpt", "data=storybook", *settings, *fixed)
        metrics = Path(folder) / "first" / "metrics.csv"
        assert metrics.read_text().splitlines()[-1].startswith("1,"), "no row of step 1"
        return metrics.stat().st_mtime - start


def imports() -> float:
    with tempfile.NamedTemporaryFile(mode="r") as file:
        start = process("-c", f"import {', '.join(MODULES)}, time; open({file.name!r}, 'w').write(str(time.time()))")
        return float(file.read()) - start


def whole(*arguments: str) -> float:
    start = process(*arguments)
    return time.time() - start


def main(rounds: int, settings: list[str]) -> None:
    first_step(settings)  # prepares the data, and fills the caches of the disk
    figures: Figures = take_turns(
        {
            "first step done": lambda: first_step(settings),
            "imports alone": imports,
            "import torch alone": lambda: whole("-c", "import torch"),
            "train.py --help": lambda: whole(TRAIN, "--help"),
        },
        rounds,
    )
    figures["first step, imports left out"] = [
        a - b for a, b in zip(figures["first step done"], figures["imports alone"], strict=True)
    ]
    print(f"seconds from the start of a process (median; least and most of {rounds} rounds)")
    for name, values in figures.items():
        print(f"  {name:30}{spread(values, 2)}")


if __name__ == "__main__":
    asked, rest = arguments(sys.argv[1:], rounds=3)
    main(asked["rounds"], rest)
