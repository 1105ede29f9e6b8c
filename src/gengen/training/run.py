"""Start a run, or go on with one: what the command line, Python and notebooks share.

Importing this imports no torch, and what can be refused without it is refused before it is imported.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING

from gengen.checkpoints.files import copy_folder, replace_text
from gengen.checkpoints.run import Run, create, find
from gengen.config.compose import import_plugins
from gengen.config.resume import stored
from gengen.config.schema import build
from gengen.config.train import TrainConfig
from gengen.data.prepared import PreparedData
from gengen.errors import NoCheckpoint, UserError
from gengen.training.data import brought_tokenizer, prepare_data
from gengen.training.monitor.console import Console
from gengen.training.monitor.interruption import Interruption
from gengen.training.place import Place
from gengen.training.plan import Outcome, Plan, Session
from gengen.training.ranks import Ranks, job
from gengen.training.request import Request, Sources, check_paths, check_registered, find_sources

if TYPE_CHECKING:
    from gengen.training.loop import TrainingLoop

Say = Callable[[str], None]


def run_training(request: Request, session: Session) -> Outcome:
    """Start what is asked for, or go on with it, until the last step, a stop or a signal.

    Everything a resume needs is on the disk when this returns. Raises UserError; Interrupted where a stop was asked
    for before there was a run.
    """
    c = request.config.trainer
    if c.world > 1 and not session.owns_process:
        raise UserError(
            f"trainer.devices={c.devices}: other ranks are processes of the command's; run "
            f"python scripts/train.py, or `gengen train`, with the same settings for it"
        )
    if (c.nodes or 1) > session.ranks.place.nodes:
        raise UserError(f"trainer.nodes={c.nodes}: this starts ranks on one node; torchrun and srun do so on several")
    return begin(request, session) if request.run is None else resume(request.run, request, session)


# --- a new run


def begin(request: Request, session: Session) -> Outcome:
    """Start a new run: settle what its config leaves open, make its directory, train."""
    named = find_sources(request)
    from gengen.training import settle
    from gengen.training.strategy import check_sharding

    say = session.console.say
    sources = settle.verified(named, request.config, say)
    config = settle.settle_source(request.config, sources.init_from)
    check_sharding(config)
    tokenizer = brought_tokenizer(sources.init_from) if sources.init_from else None
    config = settle.settle_device(config)
    config = settle.settle_model(config)
    source_run = sources.init_from.parent.parent if sources.init_from else None
    prepared = prepare_data(config, say, tokenizer, sources.checkpoint, source_run)
    config = settle.settle_data(config, prepared)
    config = settle.settle_rates(config)
    config = settle.settle_steps(config, prepared, session)
    with new_run(config) as run:
        config = replace(config, run=run.name)
        keep_sources(run, config, prepared, sources, tokenizer)
        run.write_config(stored(config))
        return execute(Plan(config, run, prepared, sources.init_from, sources.checkpoint), session)


@contextmanager
def new_run(config: TrainConfig) -> Iterator[Run]:
    """Make and lock the directory of a new run; it goes if training fails before it has left anything there."""
    run = create(Path(config.runs_dir), config.run, f"{config.model.name}-{config.data.name}")
    empty = not any(run.path.iterdir())
    run.lock()
    if (run.path / "config.json").exists():
        run.unlock()
        raise UserError(f"{run.path} was begun by another process meanwhile; run={run.name} goes on with it")
    try:
        yield run
    except BaseException:
        run.unlock()
        if empty and not has_begun(run):  # the mended command may have its name
            shutil.rmtree(run.path, ignore_errors=True)
        raise


def has_begun(run: Run) -> bool:
    """Whether a run holds what training has made of it: a checkpoint or a row of its curve."""
    from gengen.checkpoints import store
    from gengen.checkpoints.metrics_csv import read_metrics

    return bool(store.all_steps(run.checkpoints) or read_metrics(run.path / "metrics.csv"))


def keep_sources(
    run: Run, config: TrainConfig, prepared: PreparedData, sources: Sources, tokenizer: str | None
) -> None:
    """Copy into a run what it depends on: folders of its data, frozen models, a tokenizer that was brought along."""
    from gengen.checkpoints.layout import copy_weights
    from gengen.checkpoints.migrate import read_config
    from gengen.generation.load import whole_config, whole_weights

    for name, folder in prepared.dependencies.items():
        copy_folder(folder, run.path / name)
    frozen = {}
    if config.stage.needs_reference and sources.init_from and not config.model.is_adapted:
        frozen = {"reference": sources.init_from}
    for name, checkpoint in (frozen | sources.rewards).items():
        copy_weights(checkpoint, run.path / name, whole_config(read_config(checkpoint)), whole_weights(checkpoint))
    if tokenizer is not None:
        replace_text(run.path / "tokenizer.json", tokenizer)


# --- a run that exists


def resume(run: Run, request: Request, session: Session) -> Outcome:
    """Go on with a run, with the changes that are asked for, from its newest checkpoint that verifies."""
    config, say = request.config, session.console.say
    check_paths(config)
    check_registered(config)
    took_over = run.lock()
    from gengen.checkpoints import store
    from gengen.hardware import pick_device
    from gengen.training.strategy import check_sharding

    session.console.open(run.path / "log.txt")
    try:
        check_sharding(config)
        for change in [took_over, *(f"changed on resume: {change}" for change in request.changes)]:
            if change:
                say(change)
        device = pick_device(config.trainer.device, config.trainer.devices)
        config = replace(config, trainer=replace(config.trainer, device=device))
        checkpoint = checkpoint_of(run, config.resume, say)
        step = store.step_of(checkpoint) if checkpoint else 0
        if step >= (config.trainer.max_steps or 0):
            say(f"{run.path} is finished: step {step} of {config.trainer.max_steps}")
            run.unlock()
            return Outcome(run, step, config, was_finished=True)
        prepared = prepare_data(config, say, brought_tokenizer(run.path), checkpoint, run.path)
        if checkpoint:
            store.set_aside_after(run.checkpoints, step, say)
        run.write_config(stored(config))
    except BaseException:
        run.unlock()
        raise
    return execute(Plan(config, run, prepared, initial_weights(config), checkpoint), session)


def checkpoint_of(run: Run, resume: str, say: Say) -> Path | None:
    """The verified checkpoint that a run goes on from, None for none yet; `resume`: auto, must, or a path in the run.

    Raises NoCheckpoint.
    """
    from gengen.checkpoints import store
    from gengen.checkpoints.layout import verify

    store.sweep(run.checkpoints)
    if resume in ("auto", "must"):
        checkpoint = store.newest(run.checkpoints, say, quarantine=True)
    else:
        checkpoint = find(resume, run.checkpoints)
        verify(checkpoint)
    if checkpoint is None and resume == "must":
        raise NoCheckpoint(f"resume=must: {run.path} has no checkpoint that verifies")
    say(
        f"resume {checkpoint.name}, verified"
        if checkpoint
        else f"resume {run.path}: no checkpoint yet, from the start"
    )
    return checkpoint


def initial_weights(config: TrainConfig) -> Path | None:
    """The checkpoint whose weights a run started from."""
    return Path(config.init_from) if config.init_from else None


# --- either


def execute(plan: Plan, session: Session) -> Outcome:
    """Hand the job to the other ranks and train as rank 0; then write the report."""
    from gengen.training.fit import fit_with_rollbacks

    config, run, console = plan.config, plan.run, session.console
    console.open(run.path / "log.txt")
    introduce(plan, console.say)
    try:
        with session.interruption:
            session.ranks.hand(job(config, run.path, plan.checkpoint, plan.init_from, plan.prepared.fingerprint))
            loop = fit_with_rollbacks(plan, session)
            return conclude(plan, session, loop)
    finally:
        run.unlock()


def introduce(plan: Plan, say: Say) -> None:
    """Say what is trained on what."""
    from gengen.training.build import size_line

    config, c = plan.config, plan.config.trainer
    say(f"run    {plan.run.path}")
    say(f"model  {size_line(config)}")
    for line in plan.prepared.describe():
        say(f"data   {line}")
    say(
        f"train  {c.max_steps} steps of {config.data.batch_size} rows on {c.world} x {c.device}, "
        f"{c.precision}, seed {config.seed}"
    )


def conclude(plan: Plan, session: Session, loop: "TrainingLoop") -> Outcome:
    """Say what came out, and write the report of a run that was not interrupted."""
    from gengen.checkpoints import store
    from gengen.evaluation.report import write_report

    run, say = plan.run, session.console.say
    newest = store.all_steps(run.checkpoints)
    step = store.step_of(newest[0]) if newest else 0
    outcome = Outcome(run, step, plan.config, session.interruption())
    words = "interrupted" if outcome.interrupted else "done" if outcome.is_finished else "stopped"
    figures = "  ".join(f"{name} {value:.4f}" for name, value in loop.evaluated.latest.items())
    say(f"{words}   step {step}/{outcome.max_steps}  {figures}  in {loop.clock():.0f} s of training")
    if not outcome.interrupted:
        say(f"report {write_report(run.path, plan.prepared.describe())}")
    return outcome


def execute_as_rank(place: Place) -> int:
    """Train as a rank above 0, which says nothing. Returns the exit code; a UserError of all ranks is rank 0's to say.

    Its node may have a disk of its own: then the data is prepared there, by the first rank that looks for it.
    """
    with Ranks(place) as ranks:
        from gengen.checkpoints.store import SaveFailed
        from gengen.hardware import pick_device
        from gengen.training.failures import TrainingFailed
        from gengen.training.fit import fit

        handed = ranks.handed()
        if handed is None:
            return 0
        import_plugins(handed.config["plugins"])
        config: TrainConfig = build(TrainConfig, handed.config)
        pick_device(config.trainer.device, config.trainer.devices)  # are they there, on this node, too?
        session = Session(Console(quiet=True), Interruption(), ranks)
        checkpoint, init_from = (Path(path) if path else None for path in (handed.checkpoint, handed.init_from))
        run = Run(Path(handed.run))
        prepared = prepare_data(config, session.console.say, brought_tokenizer(run.path), checkpoint, run.path)
        if prepared.fingerprint != handed.data:
            raise UserError(
                f"rank {place.rank} on {gethostname()} has other data than rank 0: its fingerprint is "
                f"{prepared.fingerprint[:16]}, not {handed.data[:16]}"
            )
        try:
            with session.interruption:
                fit(Plan(config, run, prepared, init_from, checkpoint), session)
        except (TrainingFailed, SaveFailed) as failure:  # all ranks end so together
            return failure.exit_code
        return 0 if session.interruption.signal is None else session.interruption.exit_code
