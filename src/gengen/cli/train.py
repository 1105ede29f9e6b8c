"""`train`: from a command line to a trained run. Everything that can be wrong is found before torch is imported."""

import os
import shutil
import subprocess
from collections.abc import Callable

from gengen.config.compose import read_command_line
from gengen.config.help import train_help
from gengen.config.schema import plain
from gengen.registry import MODELS, PLUGINS
from gengen.training.monitor.console import Console
from gengen.training.monitor.interruption import Interrupted, Interruption
from gengen.training.place import find_place
from gengen.training.plan import Outcome, Session
from gengen.training.ranks import TRY_AGAIN, Ranks
from gengen.training.request import placed, read_request
from gengen.training.run import execute_as_rank, run_training


def main(argv: list[str]) -> int:
    """Run the command. The exit code is 0, or 128 + the signal that stopped the run, or 75 where it is requeued."""
    place = find_place(os.environ)
    if place.rank > 0:
        return execute_as_rank(place)
    with Ranks(place) as ranks:
        return train_as_rank_0(argv, ranks)


def train_as_rank_0(argv: list[str], ranks: Ranks) -> int:
    """Run the command as the rank that reads it."""
    line = placed(read_command_line(argv), ranks.place)
    if line.show == "help":
        print(train_help(line))
        return 0
    if line.multirun:
        from gengen.cli.sweep import sweep

        return sweep(line)
    request = read_request(line)
    if line.show == "cfg":
        import yaml

        print(yaml.safe_dump(plain(request.config), sort_keys=False, allow_unicode=True), end="")
        return 0
    if request.config.dry_run:
        from gengen.cli.dry_run import describe

        print(describe(request.config))
        return 0
    session = Session(Console(), Interruption(), ranks)
    try:
        outcome = run_training(request, session)
    except Interrupted as stop:
        return stop.exit_code
    with session.interruption:
        say_what_is_next(outcome, session)
    return session.interruption.exit_code if outcome.interrupted else 0


def say_what_is_next(outcome: Outcome, session: Session) -> None:
    """The last words: what to type to go on, and to sample."""
    say, config, run = session.console.say, outcome.config, outcome.run
    if outcome.was_finished:
        return
    if not outcome.is_finished:
        where = "" if config.runs_dir == "runs" else f" runs_dir={config.runs_dir}"
        say(f"to go on:  python scripts/train.py run={run.name}{where}{with_plugins()}")
    if outcome.interrupted and session.interruption.exit_code == TRY_AGAIN:
        requeue(say)
    if outcome.step:
        generator = MODELS[config.model.name].load_for("generator", config.stage.name)
        say(generator.command_hint.format(run=run.path) + with_plugins())


def with_plugins() -> str:
    """Return what a command needs for this run beside its name: the user's own modules, which no run records."""
    return f" plugins=[{','.join(sorted(PLUGINS))}]" if PLUGINS else ""


def requeue(say: Callable[[str], None]) -> None:
    """Have SLURM start this job again; of an array, this task alone. Does nothing where there is no SLURM."""
    where = os.environ
    own = (
        f"{where['SLURM_ARRAY_JOB_ID']}_{where['SLURM_ARRAY_TASK_ID']}"
        if "SLURM_ARRAY_TASK_ID" in where
        else where.get("SLURM_JOB_ID")
    )
    if own and (scontrol := shutil.which("scontrol")):
        done = subprocess.run([scontrol, "requeue", own], capture_output=True, encoding="utf8", errors="replace")
        failure = done.stderr.strip() or f"exit {done.returncode}"
        say(f"warning: scontrol requeue {own}: {failure}" if done.returncode else f"requeued as SLURM job {own}")
