"""gengen trains and samples generative models. Importing it imports no torch."""

from collections.abc import Callable, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gengen.generation.base import Generator
    from gengen.training.monitor.console import Console
    from gengen.training.python import TrainedRun

__version__ = "0.1.0"


def train(
    *settings: str,
    run: str | None = None,
    runs_dir: "str | PathLike[str] | None" = None,
    seed: int | None = None,
    resume: str | None = None,
    init_from: "str | PathLike[str] | None" = None,
    stop_at: int | None = None,
    max_time: str | None = None,
    plugins: Sequence[str] = (),
    console: "Console | None" = None,
) -> "TrainedRun":
    """Start a run or go on with one, as `scripts/train.py` does; returns the run.

        run = gengen.train("model=gpt", "data=storybook", max_time="1m")
        run = gengen.train(run=run.name)                 # goes on with it
        run.load().generate("Once upon a time")

    settings: as on the command line, such as "trainer.max_steps=200"; the keywords are the same keys without groups.
    console: what says the run's lines; by default one that prints them, with one line that moves in a notebook or on a
    terminal.

    It works in scripts, notebooks and threads: it installs no signal handlers and never ends the process. It seeds
    the global random generators, as a run's draws are a function of its seed. Raises gengen.errors.UserError where the
    command would exit with a message. On a KeyboardInterrupt (the stop button of a notebook) the run stops after the
    step at hand with a checkpoint, and the KeyboardInterrupt is raised; a second one does not wait for the checkpoint.
    Several devices (trainer.devices) are the command line's.
    """
    from gengen.training.monitor.console import Console
    from gengen.training.python import train as train_in_python

    keys: dict[str, object] = {"run": run, "runs_dir": runs_dir, "seed": seed, "resume": resume}
    keys |= {"init_from": init_from, "stop_at": stop_at, "max_time": max_time}
    return train_in_python([*settings, *_as_settings(keys, plugins)], console or Console())


def load(
    run: "str | PathLike[str]", *, checkpoint: str = "latest", weights: str | None = None, device: str = "auto"
) -> "Generator":
    """Return the generator of a run, from nothing but its run or checkpoint directory.

    checkpoint: latest, best, or the number of a step; weights: ema, raw, or None for EMA where the run has it.
    Text: `load("runs/NAME").generate("Once upon a time", n=4)`. Images: `load("runs/NAME").generate(16, ["cat",
    "dog"])`.
    """
    from gengen.generation.load import load_generator

    return load_generator(fspath(run), checkpoint=checkpoint, weights=weights, device=device)


def evaluate(
    run: "str | PathLike[str]",
    *settings: str,
    checkpoint: str = "latest",
    weights: str | None = None,
    device: str = "auto",
    plugins: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure a run's saved weights, as `scripts/evaluate.py` does.

    Returns what it writes to evaluation.json: the checkpoint's name, metrics of held-out data such as "val/loss", and
    a dict for each further group of figures.

    settings: as on the command line, such as "samples=0"; checkpoint, weights, device: as of `load`; say: takes the
    lines of the command, by default nothing does. Raises gengen.errors.UserError.
    """
    from gengen.training.python import evaluate as evaluate_in_python

    keys: dict[str, object] = {"run": run, "checkpoint": checkpoint, "weights": weights, "device": device}
    return evaluate_in_python([*settings, *_as_settings(keys, plugins)], say or (lambda line: None))


def _as_settings(keys: dict[str, object], plugins: Sequence[str]) -> list[str]:
    """Keywords as on the command line; None states nothing."""
    stated = {key: value for key, value in keys.items() if value is not None}
    texts = {key: fspath(value) if isinstance(value, PathLike) else str(value) for key, value in stated.items()}
    return [*(f"{key}={text}" for key, text in texts.items()), *(f"plugins={module}" for module in plugins)]


__all__ = ["__version__", "evaluate", "load", "train"]
