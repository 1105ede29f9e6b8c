"""One call of Lightning's Trainer, and what may have to be done again around it."""

from contextlib import nullcontext
from dataclasses import replace

import torch

from gengen.checkpoints import store
from gengen.checkpoints.files import Damaged
from gengen.config.train import seconds
from gengen.errors import place
from gengen.registry import CALLBACKS
from gengen.training.build import (
    build_callbacks,
    build_datamodule,
    build_objective,
    build_saver,
    build_trainer,
    compile_where_it_pays,
)
from gengen.training.failures import RollBack, TrainingFailed
from gengen.training.loop import TrainingLoop
from gengen.training.monitor.monitors import build_monitors
from gengen.training.monitor.profilers import build_profiler
from gengen.training.monitor.watchdog import Watchdog
from gengen.training.plan import Plan, Session

ROLLBACKS = 3  # within one command


def fit_with_rollbacks(plan: Plan, session: Session) -> TrainingLoop:
    """Train; a roll-back is a resume within this process that leaves out the batches since the newest checkpoint.

    Raises TrainingFailed if ROLLBACKS of them are not enough.
    """
    rollbacks, say = 0, session.console.say
    while True:
        try:
            return fit(plan, session)
        except RollBack as why:
            checkpoint, rollbacks = store.newest(plan.run.checkpoints, say), rollbacks + 1
            if checkpoint is None or rollbacks > ROLLBACKS:
                raise TrainingFailed(
                    f"{why}; rolled back {rollbacks - 1} times, and there is nothing more to try"
                ) from None
            step = store.step_of(checkpoint)
            plan = replace(plan, checkpoint=checkpoint, skipped_batches=why.step + why.skipped_batches - step)
            say(
                f"warning: {why}; going on from {checkpoint.name}, "
                f"without the data of the {why.step - step} steps since"
            )


def fit(plan: Plan, session: Session) -> TrainingLoop:
    """Train until the last step, a stop or a signal. Everything a resume needs is on the disk when this returns.

    Raises RollBack, TrainingFailed, SaveFailed, Damaged.
    """
    config, c = plan.config, plan.config.trainer
    checkpoint, ranks = plan.checkpoint, session.ranks
    rank = ranks.place.rank
    objective = build_objective(config, plan.prepared, plan.init_from if checkpoint is None else None)
    compile_where_it_pays(objective, config, session.console.say)
    datamodule = build_datamodule(config, plan.prepared, rank)
    monitors = build_monitors(plan, session, rank)
    saver = build_saver(config)
    loop = TrainingLoop(plan, session, monitors, saver)
    trainer = build_trainer(
        config,
        loop,
        loop.max_steps,
        build_callbacks(c.callbacks),
        build_profiler(c.profiler if rank == 0 else None, plan.run.path),
        ranks,
        saver,
    )
    session.interruption.waits = ranks.place.world > 1  # until all ranks have started
    limit, beats = seconds("trainer.watchdog", c.watchdog), session.interruption.beats
    stacks = plan.run.path / "stacks.txt"
    watchdog = Watchdog(limit, beats, stacks, ranks.fail) if session.owns_process else nullcontext()
    try:
        with watchdog:
            trainer.fit(
                objective, datamodule=datamodule, ckpt_path=str(checkpoint) if checkpoint else None, weights_only=True
            )
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        ranks.await_news()
        if checkpoint is None or loop.begun or isinstance(error, torch.OutOfMemoryError) or of_a_callback(error):
            raise
        raise Damaged(
            checkpoint, f"what it holds is not the state of such a run ({type(error).__name__}: {error})"
        ) from error
    finally:
        session.console.close()
        monitors.loggers.close()
        if torch.distributed.is_initialized():  # a later run of this process makes its own
            torch.distributed.destroy_process_group()
    return loop


def of_a_callback(error: BaseException) -> bool:
    """Whether a user's own callback has raised it."""
    return bool(place(error, {path.partition(":")[0].split(".")[0] for path in CALLBACKS.values()}))
