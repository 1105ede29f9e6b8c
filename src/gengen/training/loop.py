"""The life of a run. Lightning's Trainer turns the wheel and calls these hooks, in this order:

    restore         on_load_checkpoint, on_fit_start, on_train_start     (Lightning loads weights and moments)
    for each step
        batch, micro-batches, clip, check, update, EMA                   Objective.training_step, in objective.py
        log, evaluate, sample, save, stop                                on_train_batch_end -> `between_steps`

A save calls on_save_checkpoint, which collects what `restore` will need. What is not about the life of a run lies
beside this file: what a checkpoint holds (state.py), who watches and shows it (monitor/), how the parts are built
(build.py), how it is started and gone on with (run.py).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch

from gengen.checkpoints import store
from gengen.checkpoints.layout import nbytes, unique_state
from gengen.checkpoints.metrics_csv import Metrics
from gengen.checkpoints.saving import Keeping, Saver
from gengen.config.train import seconds
from gengen.faults import fault
from gengen.training.monitor.monitors import Monitors
from gengen.training.monitor.progress import progress_line
from gengen.training.objective import Objective
from gengen.training.plan import Plan, Session
from gengen.training.state import Evaluated, RunPart, collect, restore, run_data
from gengen.training.vote import LateVote

Row = dict[str, float]
"""Columns of metrics.csv."""


class TrainingLoop(L.Callback):
    """What happens before the first step and between steps, always in the same order."""

    def __init__(self, plan: Plan, session: Session, monitors: Monitors, saver: Saver):
        c = plan.config
        assert c.trainer.max_steps
        self.plan, self.config, self.run = plan, c, plan.run
        self.console, self.interruption = session.console, session.interruption
        self.monitors, self.clock, self.laps = monitors, monitors.clock, monitors.laps
        self.max_steps = c.trainer.max_steps
        self.max_seconds = seconds("max_time", c.max_time) if c.max_time else math.inf
        self.metrics: Metrics | None = None  # rank 0 alone writes metrics.csv
        self.flops_per_row: float | None = None
        self.evaluated = Evaluated()
        self.restored: RunPart | None = None  # what the checkpoint holds
        self.begun = False  # everything that the checkpoint holds is in its place
        self.vote = LateVote()
        self.saver = saver
        self.saving: int | None = None  # the step of a save that may still go on
        self.failed_saves = 0  # in a row
        self.saved_step = -1  # of the last save that this rank took part in
        self.micro_batch_size = c.data.micro_batch_size  # as last said
        self.eval_batch_size: int | None = None  # likewise

    # --- restore

    def on_load_checkpoint(self, trainer: L.Trainer, objective: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep gengen's part of the checkpoint, and say where in the data the run is."""
        self.restored = checkpoint["gengen"]
        skipped = self.plan.skipped_batches
        run_data(trainer).skipped_batches = self.restored.state.get("passed_over", 0) if skipped is None else skipped

    def on_fit_start(self, trainer: L.Trainer, objective: L.LightningModule) -> None:
        """Let the objective speak through the run's console, and decide on the columns of metrics.csv."""
        assert isinstance(objective, Objective)
        objective.say = self.console.say
        if not trainer.is_global_zero:
            return
        if self.monitors.peak_flops:
            self.flops_per_row = objective.flops_per_row()
        quality, update = ["train/loss", *objective.metrics], ["lr", "grad_norm", *objective.logged_metrics]
        speed = [f"{objective.unit}_per_second", *(["mfu"] if self.flops_per_row else [])]
        self.metrics = Metrics(self.run.path / "metrics.csv", ["step", "seconds", *quality, *update, *speed])

    def on_train_start(self, trainer: L.Trainer, objective: L.LightningModule) -> None:
        """Put back what the checkpoint holds, and start the clocks; the first step comes next."""
        assert isinstance(objective, Objective)
        self.interruption.install()  # Lightning has put its own handlers there
        self.interruption.waits = False
        if trainer.is_global_zero:
            self.check_space(objective)
            self.saver.start()
            self.drop_what_lies_beyond(trainer.global_step)
        if self.restored is not None:
            self.clock.before = restore(self.restored, objective, self.evaluated)
            self.monitors.bad_steps.count = int(objective.all_bad_steps)
            self.micro_batch_size = objective.micro_batch_size
            if trainer.is_global_zero:
                self.mark_restored_best()
        self.begun = True
        self.clock.restart()
        self.laps.start(trainer.global_step)
        if trainer.global_step:
            self.between_steps(trainer, objective)  # what an interruption may have left undone at this step
        elif not objective.ready(self.poll(trainer)):
            self.save(trainer, is_best=False, stop=True)
            trainer.should_stop = True

    def check_space(self, objective: Objective) -> None:
        """Raise SaveFailed if the disk has no room for the checkpoints that will lie beside each other."""
        there = store.all_steps(self.run.checkpoints)
        weights = nbytes(unique_state(objective.model))
        size = weights * 3 + nbytes(objective.ema)  # weights and two moments
        store.check_space(self.run.path, size * max(1, self.config.trainer.keep + 2 - len(there)), size)

    def drop_what_lies_beyond(self, step: int) -> None:
        """Remove rows and samples of steps after the checkpoint's: they come again."""
        assert self.metrics is not None
        self.metrics.start(step)
        for path in self.run.samples.glob("step-*"):
            if int(path.stem.removeprefix("step-").split("-")[0]) > step:
                path.unlink()

    def mark_restored_best(self) -> None:
        """Let BEST name what the checkpoint knows as the best."""
        if self.evaluated.best:
            best = self.run.checkpoints / f"step-{self.evaluated.best[0]:09d}"
            if best.is_dir():
                store.mark_best(self.run.checkpoints, best)

    # --- after each step: log, evaluate, sample, save, stop

    def on_train_batch_end(
        self, trainer: L.Trainer, objective: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        assert isinstance(objective, Objective)
        self.between_steps(trainer, objective)

    def on_train_end(self, trainer: L.Trainer, objective: L.LightningModule) -> None:
        """Save what a user's own callback has stopped; where we stop, that is done already."""
        assert isinstance(objective, Objective)
        if objective.logged and self.saved_step != trainer.global_step:
            self.save(trainer, is_best=False, stop=True)
        self.end_save(trainer, stop=True)

    def on_exception(self, trainer: L.Trainer, objective: L.LightningModule, exception: BaseException) -> None:
        """Wait for a save that goes on: a roll-back begins with it."""
        saved = self.saver.ended(wait=True) if trainer.is_global_zero else None
        if saved and saved.failure:
            self.console.say(f"warning: {saved.failure}")

    def between_steps(self, trainer: L.Trainer, objective: Objective) -> None:
        """Do what is due at this step, in this order. Right after a resume, what an interruption left undone."""
        c, step = self.config.trainer, trainer.global_step
        last = step >= self.max_steps
        trained = bool(objective.logged)  # False right after a resume
        row: Row = {}
        if trained and (step % c.log_every == 0 or step % c.eval_every == 0 or last):
            row |= self.training_row(trainer, objective)
        if (step % c.eval_every == 0 or last) and self.evaluated.step != step:
            row |= self.evaluate(trainer, objective)
        if row and self.metrics:
            self.write_row(step, row, last)
        if step % c.sample_every == 0 or last:
            self.sample(trainer, objective, step)
        if step % c.log_every == 0:
            self.end_save(trainer, wait=False)
        stop = last or self.is_to_stop(trainer, step)
        is_best = self.evaluated.best is not None and self.evaluated.best[0] == step
        retry = self.failed_saves > 0 and self.saving is None and step % c.log_every == 0
        is_new = trained or self.evaluated.step == step  # else the checkpoint of this step is as it would be
        saves = is_new and (step % c.save_every == 0 or stop or is_best or retry)
        if saves:
            self.save(trainer, is_best, stop)
        if not stop and not objective.ready(self.poll(trainer)):
            stop = True
            if trained and not saves:
                self.save(trainer, is_best, stop)
        trainer.should_stop = trainer.should_stop or stop

    # --- log

    def training_row(self, trainer: L.Trainer, objective: Objective) -> Row:
        """The numbers of the step just done; this is where the host waits for the device."""
        logged = {name: value.item() for name, value in objective.logged.items()}
        self.monitors.bad_steps.look(
            trainer.global_step,
            int(objective.bad_steps),
            int(objective.all_bad_steps),
            run_data(trainer).skipped_batches,
        )
        if objective.micro_batch_size != self.micro_batch_size:
            self.micro_batch_size = objective.micro_batch_size
            self.console.say(
                "warning: memory ran out; from now on "
                f"data.micro_batch_size={self.micro_batch_size}, and the same steps"
            )
        steps, spent = self.laps.lap(trainer.global_step)
        speed = steps * logged["count"] / max(spent, 1e-9)
        row = {"train/loss": logged["loss"], "grad_norm": logged["grad_norm"], f"{objective.unit}_per_second": speed}
        row |= {name: logged[name] for name in objective.logged_metrics}
        row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        if self.monitors.peak_flops and self.flops_per_row:
            rows = steps * self.config.data.batch_size / trainer.world_size
            row["mfu"] = rows * self.flops_per_row / spent / self.monitors.peak_flops
        return row

    def write_row(self, step: int, row: Row, last: bool) -> None:
        """Write the row to metrics.csv, hand it to the loggers, and show it."""
        assert self.metrics is not None
        with self.spared("metrics.csv"):
            self.metrics.write({"step": step, "seconds": self.clock()} | row)
        self.monitors.loggers.log(row, step)
        line = progress_line(step, self.max_steps, self.clock(), row, self.evaluated.latest)
        if step == self.evaluated.step and not last:
            self.console.say(line)
        else:
            self.console.progress(line, last)

    # --- evaluate

    def evaluate(self, trainer: L.Trainer, objective: Objective) -> Row:
        """The metrics of this step's weights; empty if interrupted, then nothing has changed."""
        with self.laps.paused(objective.device):
            fault("evaluate")
            metrics = objective.evaluate(run_data(trainer).val_batches(), self.poll(trainer))
        if metrics is None:
            return {}
        if (rows := objective.eval_batch_size) != self.eval_batch_size:
            self.eval_batch_size = rows
            self.console.say(f"warning: memory ran out; from now on {rows} rows are evaluated at once")
        self.evaluated.step, self.evaluated.latest = trainer.global_step, metrics
        if warning := objective.warning(metrics):
            self.console.say(f"warning: step {trainer.global_step}: {warning}")
        value, best = metrics[objective.monitor], self.evaluated.best
        better = math.isfinite(value) and (best is None or value < best[1])
        if self.any_rank(trainer, better and trainer.is_global_zero):  # whose buffers and rounding are the saved ones
            self.evaluated.best = (trainer.global_step, value)
        return metrics

    # --- sample

    def sample(self, trainer: L.Trainer, objective: Objective, step: int) -> None:
        """Have rank 0 write samples of this step, unless they are there. Draws from no generator of the training."""
        stem = self.run.samples / f"step-{step:09d}"
        is_missing = trainer.is_global_zero and next(self.run.samples.glob(stem.name + ".*"), None) is None
        wanted = is_missing and not self.interruption()
        if objective.sharding:  # each rank has a share of the weights
            wanted = self.any_rank(trainer, wanted)
        if not wanted:
            return
        with self.spared("samples"), self.laps.paused(objective.device), objective.sampled_weights():
            if trainer.is_global_zero:
                self.write_samples(objective, stem)

    def write_samples(self, objective: Objective, stem: Path) -> None:
        self.run.samples.mkdir(exist_ok=True)
        fault("sample")
        with torch.random.fork_rng(devices=[]):  # an ldm loads its codec here, which draws
            line = objective.write_samples(stem, self.interruption)
        if line:
            self.console.say(f"sample {line}")

    # --- save

    def save(self, trainer: L.Trainer, is_best: bool, stop: bool) -> None:
        """Save a checkpoint of this step, and prune older ones.

        One that cannot be written is tried again with the next row, unless training stops here. Raises SaveFailed.
        """
        with self.laps.paused(trainer.strategy.root_device):
            self.end_save(trainer)  # one at a time
            self.saving = self.saved_step = trainer.global_step
            trainer.lightning_module.before_save()  # type: ignore[operator]
            with nullcontext() if trainer.is_global_zero else self.interruption.waiting():
                keeping = Keeping(is_best, self.config.trainer.keep)
                trainer.save_checkpoint(self.run.checkpoints, storage_options=keeping)  # calls on_save_checkpoint
            if stop or not self.config.trainer.saves_in_background:
                self.end_save(trainer, stop)

    def end_save(self, trainer: L.Trainer, stop: bool = False, wait: bool = True) -> None:
        """Wait for the save that goes on, if one does, and heed how it ended; without `wait`, if it has."""
        if self.saving is None:
            return
        saved = self.saver.ended(wait) if trainer.is_global_zero else None  # rank 0 alone writes
        if not self.any_rank(trainer, saved is not None):
            return
        step, self.saving = self.saving, None
        if saved and saved.left:
            self.console.say(f"warning: what is left of older checkpoints: {saved.left}")
        failure = saved.failure if saved else None
        if self.any_rank(trainer, failure is not None):
            self.bear(store.SaveFailed(failure or f"step {step} could not be written by rank 0"), stop)
        else:
            self.failed_saves = 0

    def bear(self, failure: store.SaveFailed, stop: bool) -> None:
        """Warn of a save that failed; raise it where it is one too many, or the last."""
        self.failed_saves += 1
        if stop or self.failed_saves > self.config.trainer.max_failed_saves:
            raise failure
        self.console.say(
            f"warning: {failure}; training goes on, and it is tried again ({self.failed_saves} failed in a row)"
        )

    def on_save_checkpoint(self, trainer: L.Trainer, objective: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(objective, Objective)
        checkpoint["gengen"] = collect(trainer, objective, self.evaluated, self.plan, self.clock())

    # --- stop

    def is_to_stop(self, trainer: L.Trainer, step: int) -> bool:
        """Whether all ranks stop after this step. What one of several was asked to is heeded a step later, so that
        none waits for its device here."""
        if self.config.stop_at is not None and step >= self.config.stop_at:
            return True
        wish = self.interruption() or self.clock.here() >= self.max_seconds
        if trainer.world_size == 1:
            return wish
        with self.interruption.waiting():
            return self.vote(wish, trainer.strategy.root_device)

    def poll(self, trainer: L.Trainer) -> Callable[[], bool]:
        """What evaluation polls: with several ranks none may leave it alone, but each shows that it is not stuck."""
        return self.interruption if trainer.world_size == 1 else lambda: self.interruption() and False

    def any_rank(self, trainer: L.Trainer, wish: bool) -> bool:
        """Whether any rank wishes it: the same answer on every rank.

        What decides which collective comes next passes through here, or is a function of the step, the config and
        what was reduced.
        """
        if trainer.world_size == 1:
            return wish
        with self.interruption.waiting():
            wishes = torch.tensor(float(wish), device=trainer.strategy.root_device)
            return bool(trainer.strategy.reduce(wishes, reduce_op="sum") > 0)

    @contextmanager
    def spared(self, what: str) -> Iterator[None]:
        """Inside, a full disk or memory is a warning: training goes on without what could not be written."""
        try:
            yield
        except (OSError, torch.OutOfMemoryError) as error:
            self.console.say(f"warning: {what}: {error}")
