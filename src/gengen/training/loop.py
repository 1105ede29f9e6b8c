"""What happens between steps, always in the same order: log, evaluate, sample, save, stop."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as L
import torch

from gengen.checkpoints import store
from gengen.checkpoints.layout import nbytes
from gengen.checkpoints.metrics_csv import Logger, Metrics
from gengen.checkpoints.run import Run
from gengen.config.resume import stored
from gengen.config.train import TrainConfig, seconds
from gengen.data.prepared import PreparedData
from gengen.errors import UserError
from gengen.faults import fault
from gengen.hardware import wait_for
from gengen.training.monitor.console import Console
from gengen.training.monitor.interruption import Interruption
from gengen.training.objective import Objective
from gengen.training.rng import get_rng, set_rng


class TrainingFailed(UserError):
    """Training cannot go on; the checkpoints are as they were."""

    exit_code = 1


class RollBack(TrainingFailed):
    """Training is to go on from the newest checkpoint, with other data than those of the steps since."""

    def __init__(self, step: int, passed_over: int, message: str):
        super().__init__(message)
        self.step, self.passed_over = step, passed_over


def duration(s: float) -> str:
    s = round(s)
    return f"{s // 3600}h{s % 3600 // 60:02}m" if s >= 3600 else f"{s // 60}m{s % 60:02}s" if s >= 60 else f"{s}s"


def described(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The shape and dtype of each."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


@dataclass
class Clock:
    """Training wall-clock in seconds, summed over resumes."""

    before: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def __call__(self) -> float:
        return self.before + time.monotonic() - self.started


class Cadence(L.Callback):
    """The rhythm of a run. It owns what a resume needs beside weights, moments and Lightning's loop: the last step
    that was evaluated, the best value so far, the streak of non-finite steps, the random generators, the clock."""

    def __init__(
        self,
        config: TrainConfig,
        run: Run,
        console: Console,
        interruption: Interruption,
        prepared: PreparedData,
        val_batches: Callable[[], Any],
        peak_flops: float | None,
        loggers: list[Logger],
        passed_over: int | None = None,
    ):
        self.config, self.run, self.console, self.interruption, self.prepared = (
            config,
            run,
            console,
            interruption,
            prepared,
        )
        self.val_batches, self.peak_flops, self.loggers = val_batches, peak_flops, loggers
        self.clock = Clock()
        assert config.trainer.max_steps
        self.max_steps = config.trainer.max_steps
        self.max_seconds = seconds("max_time", config.max_time) if config.max_time else math.inf
        self.evaluated: int | None = None
        self.best: tuple[int, float] | None = None
        self.latest: dict[str, float] = {}  # metrics of the last evaluation
        self.restored: dict[str, Any] | None = None
        self.passed_over = passed_over  # batches left out so far; null = what the checkpoint says
        self.failed_saves = 0  # in a row
        self._mark = (0, 0.0)  # (step, time) since which throughput is measured
        self.begun = False  # what a checkpoint holds is in its place
        self.bad_steps, self.micro_batch_size = 0, config.data.micro_batch_size  # as last seen
        self.evaluated_at_once: int | None = None  # likewise
        self.flops_per_row: float | None = None
        self.metrics: Metrics | None = None

    # --- Lightning's hooks

    def on_fit_start(self, trainer: L.Trainer, objective: L.LightningModule) -> None:
        assert isinstance(objective, Objective)
        if trainer.is_global_zero:
            quality, update = ["train/loss", *objective.metrics], ["lr", "grad_norm", *objective.signals]
            self.flops_per_row = objective.flops_per_row() if self.peak_flops else None
            speed = [f"{objective.unit}_per_second", *(["mfu"] if self.flops_per_row else [])]
            columns = ["step", "seconds", *quality, *update, *speed]
            self.metrics = Metrics(self.run.path / "metrics.csv", columns)

    def on_train_start(self, trainer: L.Trainer, objective: L.LightningModule) -> None:
        assert isinstance(objective, Objective)
        self.interruption.install()
        self.interruption.waits = False
        if trainer.is_global_zero:
            self.check_space(objective)
        if self.metrics:  # what lies beyond the checkpoint comes again
            self.metrics.start(trainer.global_step)
            for path in self.run.samples.glob("step-*"):
                if int(path.stem.removeprefix("step-").split("-")[0]) > trainer.global_step:
                    path.unlink()
        if self.restored is not None:
            state, own = self.restored["state"], self.restored
            self.evaluated, self.best = state["evaluated"], state["best"] and tuple(state["best"])
            if self.metrics and self.best and (best := self.run.checkpoints / f"step-{self.best[0]:09d}").is_dir():
                store.mark_best(self.run.checkpoints, best)
            objective.bad_steps.fill_(state["bad_steps"])
            objective.all_bad_steps.fill_(state.get("all_bad_steps", 0))
            if halved := state.get("halved"):
                objective.micro_batch_size = min(halved, objective.micro_batch_size or halved)
            self.bad_steps, self.micro_batch_size = int(objective.all_bad_steps), objective.micro_batch_size
            if own["ema"] is not None and objective.ema is not None:
                if described(own["ema"]) != described(objective.ema):
                    raise ValueError("an average that is not one of the weights")
                objective.ema = own["ema"]
            windows = own["extra"].pop("spikes", None)
            if objective.spikes and windows:
                objective.spikes.windows = windows
            objective.load_extra_state(own["extra"])
            set_rng(state["rng"])  # last, so that nothing of the setting up has drawn from it
            self.clock.before = float(own["facts"]["clocks"]["seconds"])
        self.begun = True
        self.clock.started = time.monotonic()
        self._mark = (trainer.global_step, time.monotonic())
        if trainer.global_step:
            self.between_steps(trainer, objective)  # what an interruption may have left undone at this step
        elif not objective.ready(self.poll(trainer)):
            self.save(trainer, improved=False, stop=True)
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: L.Trainer, objective: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(objective, Objective)
        self.between_steps(trainer, objective)

    def on_save_checkpoint(self, trainer: L.Trainer, objective: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(objective, Objective)
        tokenizer = getattr(self.prepared, "tokenizer", None)
        checkpoint["gengen"] = {
            "config": stored(self.config),
            "state": {
                "step": trainer.global_step,
                "evaluated": self.evaluated,
                "best": self.best,
                "bad_steps": int(objective.bad_steps),
                "all_bad_steps": int(objective.all_bad_steps),
                "halved": None
                if objective.micro_batch_size == self.config.data.micro_batch_size
                else objective.micro_batch_size,
                "passed_over": trainer.datamodule.passed_over,  # type: ignore[attr-defined]
                "rng": get_rng(),
            },
            "tokenizer": tokenizer.to_json() if tokenizer else None,
            "ema": objective.ema,
            "extra": objective.extra_state() | ({"spikes": objective.spikes.windows} if objective.spikes else {}),
            "facts": {"data": self.prepared.fingerprint, "clocks": {"seconds": self.clock(), "saved": time.time()}},
        }

    def on_load_checkpoint(self, trainer: L.Trainer, objective: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.restored = checkpoint["gengen"]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        data.passed_over = (
            self.restored["state"].get("passed_over", 0) if self.passed_over is None else self.passed_over
        )

    # --- the rhythm

    def between_steps(self, trainer: L.Trainer, objective: Objective) -> None:
        c, step = self.config.trainer, trainer.global_step
        last = step >= self.max_steps
        fresh = bool(objective.logged)  # False right after a resume
        row: dict[str, Any] = {}
        if fresh and (step % c.log_every == 0 or step % c.eval_every == 0 or last):
            row |= self.training_row(trainer, objective)
        if (step % c.eval_every == 0 or last) and self.evaluated != step:
            row |= self.evaluate(trainer, objective)
        if row and self.metrics:
            with self.spared("metrics.csv"):
                self.metrics.write({"step": step, "seconds": self.clock()} | row)
            self.log_elsewhere(row, step)
            self.show(step, row, last)
        if trainer.is_global_zero and (step % c.sample_every == 0 or last):
            with self.spared("samples"):
                self.sample(objective, step)
        stop = self.any_rank(trainer, last or self.wants_stop(step))
        improved = self.best is not None and self.best[0] == step
        again = self.failed_saves > 0 and step % c.log_every == 0
        due = (step % c.save_every == 0 or stop or improved or again) and (fresh or self.evaluated == step)
        if due:
            self.save(trainer, improved, stop)
        if not stop and not objective.ready(self.poll(trainer)):
            stop = True
            if fresh and not due:
                self.save(trainer, improved, stop)
        trainer.should_stop = trainer.should_stop or stop

    def training_row(self, trainer: L.Trainer, objective: Objective) -> dict[str, float]:
        """The numbers of the step just done; this is where the host waits for the device."""
        logged = {name: value.item() for name, value in objective.logged.items()}
        self.look_at_bad_steps(trainer, int(objective.bad_steps), int(objective.all_bad_steps))
        if objective.micro_batch_size != self.micro_batch_size:
            self.micro_batch_size = objective.micro_batch_size
            self.console.say(
                f"warning: memory ran out; from now on data.micro_batch_size={self.micro_batch_size}, and the same steps"
            )
        steps, spent = trainer.global_step - self._mark[0], time.monotonic() - self._mark[1]
        self._mark = (trainer.global_step, time.monotonic())
        speed = steps * logged["count"] / max(spent, 1e-9)
        row = {"train/loss": logged["loss"], "grad_norm": logged["grad_norm"], f"{objective.unit}_per_second": speed}
        row |= {name: logged[name] for name in objective.signals}
        row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        if self.peak_flops and self.flops_per_row:
            rows = steps * self.config.data.batch_size / trainer.world_size
            row["mfu"] = rows * self.flops_per_row / spent / self.peak_flops
        return row

    def look_at_bad_steps(self, trainer: L.Trainer, streak: int, bad: int) -> None:
        """Warn of steps that were not finite, or spikes, since the last look; or end this, as trainer.on_bad_step
        says.
        """
        c, step, new = self.config.trainer, trainer.global_step, bad - self.bad_steps
        self.bad_steps = bad
        what = f"step {step}: loss or gradient not finite" + (", or a spike" if c.spike else "")
        advice = "A lower optim.lr, optim.clip or trainer.precision=fp32 may help"
        if streak > c.max_bad_steps:
            raise TrainingFailed(f"{what}, for {streak} steps in a row; no weight has changed since. {advice}")
        if new and c.on_bad_step == "stop":
            raise TrainingFailed(f"{what}; no weight was changed by it, and trainer.on_bad_step=stop. {advice}")
        if new and c.on_bad_step == "rollback":
            raise RollBack(step, trainer.datamodule.passed_over, what)  # type: ignore[attr-defined]
        if new:
            self.console.say(f"warning: {what}; such a step changes no weight ({streak} in a row, {bad} in all)")

    def evaluate(self, trainer: L.Trainer, objective: Objective) -> dict[str, float]:
        wait_for(objective.device)  # for the steps, whose time counts
        start = time.monotonic()
        fault("evaluate")
        metrics = objective.evaluate(self.val_batches(), self.poll(trainer))
        self._mark = (self._mark[0], self._mark[1] + time.monotonic() - start)  # evaluation is not training
        if metrics is None:
            return {}
        if (rows := objective.evaluated_at_once) != self.evaluated_at_once:
            self.evaluated_at_once = rows
            self.console.say(f"warning: memory ran out; from now on {rows} rows are evaluated at once")
        self.evaluated, self.latest = trainer.global_step, metrics
        if warning := objective.warning(metrics):
            self.console.say(f"warning: step {trainer.global_step}: {warning}")
        value = metrics[objective.monitor]
        better = math.isfinite(value) and (self.best is None or value < self.best[1])
        if self.any_rank(trainer, better and trainer.is_global_zero):  # whose buffers and rounding are the saved ones
            self.best = (trainer.global_step, value)
        return metrics

    def sample(self, objective: Objective, step: int) -> None:
        stem = self.run.samples / f"step-{step:09d}"
        if next(self.run.samples.glob(stem.name + ".*"), None) is not None or self.interruption():
            return
        wait_for(objective.device)
        start = time.monotonic()
        self.run.samples.mkdir(exist_ok=True)
        fault("sample")
        with objective.averaged(), torch.random.fork_rng(devices=[]):  # an ldm loads its codec here, which draws
            line = objective.write_samples(stem, self.interruption)
        if line:
            self.console.say(f"sample {line}")
        self._mark = (self._mark[0], self._mark[1] + time.monotonic() - start)

    def save(self, trainer: L.Trainer, improved: bool, stop: bool) -> None:
        """A checkpoint of this step. One that cannot be written is tried again with the next row, unless this is where
        training stops.
        """
        wait_for(trainer.strategy.root_device)
        start, step = time.monotonic(), trainer.global_step
        trainer.lightning_module.before_save()  # type: ignore[operator]
        with nullcontext() if trainer.is_global_zero else self.interruption.waiting():
            trainer.save_checkpoint(self.run.checkpoints)
        failure = getattr(trainer.strategy.checkpoint_io, "failure", None)  # rank 0's, which alone writes
        if trainer.is_global_zero and not failure:
            with self.spared("what is left of older checkpoints"):
                if improved:
                    store.mark_best(self.run.checkpoints, self.run.checkpoints / f"step-{step:09d}")
                store.prune(self.run.checkpoints, self.config.trainer.keep)
        if self.any_rank(trainer, failure is not None):
            failure = failure or store.SaveFailed(f"step {step} could not be written by rank 0")
            self.failed_saves += 1
            if stop or self.failed_saves > self.config.trainer.max_failed_saves:
                raise failure
            self.console.say(
                f"warning: {failure}; training goes on, and it is tried again ({self.failed_saves} failed in a row)"
            )
        else:
            self.failed_saves = 0
        self._mark = (self._mark[0], self._mark[1] + time.monotonic() - start)

    @contextmanager
    def spared(self, what: str) -> Iterator[None]:
        """What a full disk or memory keeps from being written here is a warning: training goes on without."""
        try:
            yield
        except (OSError, torch.OutOfMemoryError) as error:
            self.console.say(f"warning: {what}: {error}")

    def check_space(self, objective: Objective) -> None:
        """Raise SaveFailed if the disk has no room for the checkpoints that will lie beside each other."""
        there = store.all_steps(self.run.checkpoints)
        size = nbytes(objective.state_dict()) * 3 + nbytes(objective.ema)  # weights and two moments
        store.check_space(self.run.path, size * max(1, self.config.trainer.keep + 2 - len(there)), size)

    def wants_stop(self, step: int) -> bool:
        """Whether this rank would stop after this step."""
        if self.config.stop_at is not None and step >= self.config.stop_at:
            return True
        return self.interruption() or time.monotonic() - self.clock.started >= self.max_seconds

    def any_rank(self, trainer: L.Trainer, wish: bool) -> bool:
        """Whether any rank wishes it: the same answer on every rank. What decides which collective comes next passes
        through here, or is a function of the step, the config and what was reduced."""
        if trainer.world_size == 1:
            return wish
        with self.interruption.waiting():
            wishes = torch.tensor(float(wish), device=trainer.strategy.root_device)
            return bool(trainer.strategy.reduce(wishes, reduce_op="sum") > 0)

    def poll(self, trainer: L.Trainer) -> Callable[[], bool]:
        """What evaluation polls: with several ranks none may leave it alone, but each shows that it is not stuck."""
        return self.interruption if trainer.world_size == 1 else lambda: self.interruption() and False

    # --- what is shown

    def show(self, step: int, row: dict[str, Any], last: bool) -> None:
        parts = [f"step {step}/{self.max_steps}"]
        if "train/loss" in row:
            parts.append(f"loss {row['train/loss']:.3f}")
        parts += [f"{name} {value:.4f}" for name, value in self.latest.items() if name != "val/loss"]
        speed = next(
            (
                f"{value / 1000:.1f}k {name.removesuffix('_per_second')}/s"
                for name, value in row.items()
                if "_per_second" in name
            ),
            "",
        )
        parts += [speed] if speed else []
        parts += [f"MFU {row['mfu']:.0%}"] if "mfu" in row else []
        done = max(step, 1)
        parts.append(f"{duration(self.clock())} done, {duration(self.clock() / done * (self.max_steps - done))} to go")
        line = "  ".join(parts)
        (self.console.say if step == self.evaluated and not last else lambda text: self.console.progress(text, last))(
            line
        )

    def log_elsewhere(self, row: dict[str, Any], step: int) -> None:
        """Hand the row to the other loggers; one that fails is dropped with a warning and never stops the run."""
        for logger in list(self.loggers):
            try:
                logger.log_metrics(row, step)
            except Exception as error:
                self.loggers.remove(logger)
                self.console.say(f"warning: {type(logger).__name__} failed and is left out from now on: {error}")
