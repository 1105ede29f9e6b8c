"""How many steps fit in a time budget, by the times of a few steps of a copy that is thrown away."""

import gc
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as L
import torch

from gengen.checkpoints import store
from gengen.config.train import TrainConfig, TrainerConfig, seconds
from gengen.data.prepared import PreparedData
from gengen.hardware import wait_for
from gengen.training.build import build_datamodule, build_objective, build_trainer, compile_where_it_pays
from gengen.training.objective import TRIAL_STEPS, Batch, Objective
from gengen.training.state import RunPart

Say = Callable[[str], None]


class StepTimes(L.Callback):
    """When training began, and when the device had done each step."""

    def __init__(self) -> None:
        self.begun, self.ends = 0.0, list[float]()

    def on_train_start(self, trainer: L.Trainer, objective: L.LightningModule) -> None:
        wait_for(objective.device)
        self.begun = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, objective: L.LightningModule, *_: object) -> None:
        wait_for(objective.device)
        self.ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of each step."""
        return [b - a for a, b in pairwise([self.begun, *self.ends])]


@dataclass(frozen=True)
class Costs:
    """Seconds that a step and what comes between steps take."""

    step: float
    evaluation: float = 0.0
    samples: float = 0.0
    save: float = 0.0


class Trial(StepTimes):
    """Steps that are timed, and after them an evaluation, samples and a save, as a run has between its steps."""

    def __init__(self, val_batches: Callable[[], Iterable[Batch]], folder: Path, interrupted: Callable[[], bool]):
        super().__init__()
        self.val_batches, self.folder, self.interrupted = val_batches, folder, interrupted
        self.costs = Costs(0.0)

    def on_train_end(self, trainer: L.Trainer, objective: L.LightningModule) -> None:
        assert isinstance(objective, Objective)
        moments = [time.perf_counter()]
        objective.evaluate(self.val_batches(), self.interrupted)
        wait_for(objective.device)
        moments.append(time.perf_counter())
        with objective.sampled_weights():
            objective.write_samples(self.folder / "step-000000000", self.interrupted)
        wait_for(objective.device)
        moments.append(time.perf_counter())
        trainer.save_checkpoint(self.folder)
        store.prune(self.folder, 1)
        moments.append(time.perf_counter())
        evaluation, samples, save = (b - a for a, b in pairwise(moments))
        self.costs = Costs(objective.seconds_a_step(self.seconds()), evaluation, samples, save)

    def on_save_checkpoint(self, trainer: L.Trainer, objective: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(objective, Objective)
        checkpoint["gengen"] = RunPart(ema=objective.ema, extra=objective.extra_state())


def steps_within(budget: float, c: TrainerConfig, costs: Costs) -> int:
    """How many steps fit in a budget in seconds, with what comes between them.

    Each evaluation is taken for the best so far, which is saved.
    """

    def spent(n: int) -> float:
        evaluations, previews = math.ceil(n / c.eval_every), math.ceil(n / c.sample_every)  # the last step has both
        saves = math.ceil(n / c.save_every) + n // c.eval_every - n // math.lcm(c.save_every, c.eval_every)
        between = evaluations * costs.evaluation + previews * costs.samples + saves * costs.save
        return n * costs.step + between

    return bisect_right(range(int(budget / costs.step) + 2), budget, key=spent) - 1


def fitted_to_budget(
    config: TrainConfig, prepared: PreparedData, say: Say, interrupted: Callable[[], bool] = lambda: False
) -> TrainConfig:
    """Settle `max_steps` to what fits in trainer.budget here, and `compile`: the two then repeat the run."""
    steps, compiled = trial(config, prepared, say, interrupted)
    gc.collect()  # trainer and objective hold each other, and the run needs their memory
    torch.cuda.empty_cache()
    return replace(config, trainer=replace(config.trainer, max_steps=steps, compile=str(compiled).lower()))


def trial(config: TrainConfig, prepared: PreparedData, say: Say, interrupted: Callable[[], bool]) -> tuple[int, bool]:
    """Train a copy for TRIAL_STEPS. Returns how many steps the budget has room for, and whether they are compiled.

    The trial is part of the budget, and so is what the first steps take longer than others, which comes again.
    """
    begun = time.perf_counter()
    objective = build_objective(replace(config, optim=config.optim.for_steps(TRIAL_STEPS)), prepared)
    objective.say = say
    compiled = compile_where_it_pays(objective, config, say)
    datamodule = build_datamodule(config, prepared)
    Path(config.runs_dir).mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".trial-", dir=config.runs_dir) as folder:
        times = Trial(datamodule.val_batches, Path(folder), interrupted)
        build_trainer(config, times, TRIAL_STEPS).fit(objective, datamodule=datamodule)
    first = TRIAL_STEPS // 4
    warm_up = max(0.0, sum(times.seconds()[:first]) - first * times.costs.step)
    left = seconds("trainer.budget", config.trainer.budget) - warm_up - (time.perf_counter() - begun)
    return max(TRIAL_STEPS, steps_within(left, config.trainer, times.costs)), compiled
