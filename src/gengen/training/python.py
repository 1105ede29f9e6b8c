"""Training and evaluating from Python: no signal handlers, no exit of the process, errors as exceptions."""

import threading
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gengen.checkpoints.metrics_csv import latest_metrics
from gengen.checkpoints.migrate import read_config
from gengen.checkpoints.run import find
from gengen.config.compose import CommandLine, compose_flat, import_plugins, plugins, read_command_line
from gengen.errors import UserError
from gengen.registry import MODELS
from gengen.training.evaluate import evaluate_run, evaluation_config
from gengen.training.monitor.console import Console
from gengen.training.monitor.interruption import Interrupted, Interruption
from gengen.training.plan import Outcome, Session
from gengen.training.request import Request, read_request
from gengen.training.run import run_training


@dataclass(frozen=True)
class TrainedRun:
    """A run, as `gengen.train` returns it. `gengen.load` and `gengen.evaluate` take it as they take its path."""

    path: Path
    step: int
    """Of the newest checkpoint."""
    max_steps: int
    """Where the run is finished."""
    metrics: dict[str, float]
    """The last value of every column of metrics.csv: train/loss, val/loss, seconds, ..."""

    @property
    def name(self) -> str:
        return self.path.name

    def __fspath__(self) -> str:
        return str(self.path)

    def load(self, *, checkpoint: str = "latest", weights: str | None = None, device: str = "auto") -> Any:
        """The generator of the run: see `gengen.load`."""
        import gengen

        return gengen.load(self.path, checkpoint=checkpoint, weights=weights, device=device)


def read_settings(settings: list[str]) -> CommandLine:
    """Settings as on the command line. Raises UserError for what is about a command: --help, -m, --cfg."""
    line = read_command_line(settings)
    if line.show or line.multirun:
        raise UserError("--help, --cfg and -m are the command line's: python scripts/train.py, or `gengen train`")
    return line


def train(settings: list[str], console: Console) -> TrainedRun:
    """Train as `gengen.train` does; settings: as on the command line."""
    request = read_request(read_settings(settings))
    if request.config.dry_run:
        raise UserError("dry_run is the command line's: python scripts/train.py, or `gengen train`")
    session = Session(console, Interruption(signals=()), owns_process=False)
    outcome = stoppable(request, session)
    run = outcome.run
    if not outcome.is_finished:
        where = "" if outcome.config.runs_dir == "runs" else f", runs_dir={outcome.config.runs_dir!r}"
        console.say(f"to go on:  gengen.train(run={run.name!r}{where})")
    return TrainedRun(run.path, outcome.step, outcome.max_steps, latest_metrics(run.path / "metrics.csv"))


def stoppable(request: Request, session: Session) -> Outcome:
    """Train in a thread of its own, so that a KeyboardInterrupt never falls into the middle of a step.

    It arrives here, where nothing is done but waiting: then the run stops at its next step boundary with a checkpoint,
    and the KeyboardInterrupt goes on to the caller. A second one does not wait for that.
    """
    outcomes: list[Outcome] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            outcomes.append(run_training(request, session))
        except BaseException as error:
            errors.append(error)

        finally:
            done.set()

    threading.Thread(target=copy_context().run, args=(work,), name="gengen.train", daemon=True).start()
    try:
        wait(done)
    except KeyboardInterrupt:
        session.interruption.stop()
        wait(done)
        if not errors or isinstance(errors[0], Interrupted):
            raise
    if errors:
        raise errors[0]
    return outcomes[0]


def wait(done: threading.Event) -> None:
    """Wait, looking up now and then: a signal that another thread has received is noticed then."""
    while not done.wait(0.2):
        pass


def evaluate(settings: list[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Evaluate as `gengen.evaluate` does; settings: as on the command line, with run=."""
    line = read_settings(settings)
    import_plugins(plugins(line))
    path = find(line.last("run") or "", Path(line.last("runs_dir") or "runs"))
    try:
        family = MODELS[read_config(path)["model"]["name"]]
    except (KeyError, TypeError):
        raise UserError(f"{path / 'config.json'} names no model") from None
    return evaluate_run(compose_flat(evaluation_config(family), line), say)
