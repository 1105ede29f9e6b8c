"""The trainer and everything around it, from a config."""

import gc
import json
import logging
import math
import secrets
import time
import warnings
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from gengen.checkpoints import store
from gengen.checkpoints.files import Damaged, replace_text
from gengen.checkpoints.metrics_csv import Logger
from gengen.checkpoints.run import Run
from gengen.config.redact import redact
from gengen.config.resume import stored
from gengen.config.train import TrainConfig, TrainerConfig, seconds
from gengen.data import loader
from gengen.data.loader import StepData
from gengen.data.prepared import PreparedData
from gengen.generation.load import start_from
from gengen.hardware import pick_compile, wait_for
from gengen.registry import MODELS
from gengen.training.checkpointing import SafeCheckpointIO
from gengen.training.loop import Cadence, RollBack, TrainingFailed
from gengen.training.monitor.console import Console
from gengen.training.monitor.guards import Watchdog
from gengen.training.monitor.interruption import Interruption
from gengen.training.monitor.throughput import peak_flops
from gengen.training.objective import TRIAL_STEPS, Objective
from gengen.training.rng import seed_everything


def build_objective(config: TrainConfig, prepared: PreparedData, init_from: Path | None = None) -> Objective:
    """The seeded model in its objective; with the weights of another run's checkpoint, if named."""
    entry = MODELS[config.model.name]
    seed_everything(config.seed)
    model = entry.load_for("model", config.stage.name)(config.model)
    if init_from is not None:
        start_from(model, init_from)
    objective: Objective = entry.load(f"objective:{config.stage.name}")(config, model, prepared)
    return objective


def build_datamodule(config: TrainConfig, prepared: PreparedData, rank: int = 0) -> StepData:
    return loader.build_datamodule(
        config.data, prepared, config.model, seed=config.seed, rank=rank, world=config.trainer.devices
    )


def build_trainer(config: TrainConfig, callback: L.Callback, max_steps: int) -> L.Trainer:
    """Lightning's Trainer, stripped to devices, strategy and loop: the rhythm, the logs and the checkpoints are ours."""
    c = config.trainer
    if c.threads:
        torch.set_num_threads(c.threads)
    torch.backends.cudnn.allow_tf32 = (
        False  # what is not under autocast is meant to be fp32: penalties, samplers, statistics
    )
    quiet_lightning()
    patience = timedelta(seconds=max(1800, seconds("trainer.watchdog", c.watchdog)))  # of ranks with each other
    return L.Trainer(
        accelerator="gpu" if c.device == "cuda" else "cpu",
        devices=c.devices,
        strategy=DDPStrategy(timeout=patience) if c.devices > 1 or c.strategy == "ddp" else "auto",
        precision="32-true",
        max_steps=max_steps,
        callbacks=[callback],
        plugins=[
            SafeCheckpointIO(),
            LightningEnvironment(),
        ],  # never SLURM's: requeueing is done by our own checkpoint
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def quiet_lightning() -> None:
    """Leave out Lightning's notes on hardware and loaders, which do not apply here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    for note in (
        ".*does not have many workers.*",
        ".*`IterableDataset` has `__len__`.*",
        ".*srun.*",
        ".*GPU available but not used.*",
        ".*LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=note)


def build_loggers(config: TrainConfig, run: Run, console: Console) -> list[Logger]:
    """wandb or TensorBoard where chosen; one that cannot start is a warning."""
    c = config.logger
    try:
        if c.name == "wandb":
            from lightning.pytorch.loggers import WandbLogger

            logger = WandbLogger(
                name=run.name,
                id=wandb_id(run),
                project=c.project,
                save_dir=str(run.path),
                offline=c.mode == "offline",
                resume="allow",
                config=json.loads(redact(json.dumps(stored(config)))),
            )
            _ = logger.experiment  # starts it here, where a failure is caught
            return [logger]
        if c.name == "tensorboard":
            from lightning.pytorch.loggers import TensorBoardLogger

            return [TensorBoardLogger(str(run.path), name="", version="tensorboard")]
    except Exception as error:
        console.say(f"warning: logger={c.name} cannot start, metrics.csv goes on: {error}")
    return []


def wandb_id(run: Run) -> str:
    """What wandb knows a run by: chosen once for its directory, so that a run of the same name elsewhere is another.
    A run that wandb has known by its name keeps it."""
    path = run.path / "wandb-id.txt"
    if not path.exists():
        replace_text(path, run.name if (run.path / "wandb").exists() else f"{run.name}-{secrets.token_hex(4)}")
    return path.read_text(encoding="utf8")


class StepTimes(L.Callback):
    """When training began, and when the device had done each step."""

    def __init__(self) -> None:
        self.begun, self.ends = 0.0, list[float]()

    def on_train_start(self, trainer: L.Trainer, objective: L.LightningModule) -> None:
        wait_for(objective.device)
        self.begun = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, objective: L.LightningModule, *_: Any) -> None:
        wait_for(objective.device)
        self.ends.append(time.perf_counter())


ROLLBACKS = 3  # within one command
COMPILING_PAYS = {
    "seconds": 180.0,
    "flops": 3e13,
}  # of training on a CPU, from which on half a minute of compiling is won back


def compile_where_it_pays(
    objective: Objective, config: TrainConfig, say: Callable[[str], None] = lambda line: None
) -> bool:
    """Compile the objective's network, if that is asked for or `auto` finds it pays: on CUDA; on a CPU in a run of
    some minutes, by its budget or by its FLOPs, so that a resumed run decides as it did before. Returns whether it was
    done."""
    c = config.trainer
    pays = c.device == "cuda"
    if not pays and objective.compiles_on_cpu:
        if c.max_steps is None:
            pays = seconds("trainer.budget", c.budget) >= COMPILING_PAYS["seconds"]
        else:
            pays = c.max_steps * config.data.batch_size * objective.work_per_row() >= COMPILING_PAYS["flops"]
    if compiled := pick_compile(c, pays, say):
        objective.use_compiled()
    return compiled


class Trial(StepTimes):
    """Steps that are timed, and after them an evaluation, samples and a save, as a run has between its steps."""

    def __init__(self, val_batches: Callable[[], Any], folder: Path, interrupted: Callable[[], bool]):
        super().__init__()
        self.val_batches, self.folder, self.interrupted = val_batches, folder, interrupted
        self.evaluation = self.samples = self.save = 0.0  # seconds

    def on_train_end(self, trainer: L.Trainer, objective: L.LightningModule) -> None:
        assert isinstance(objective, Objective)
        moments = [time.perf_counter()]
        objective.evaluate(self.val_batches(), self.interrupted)
        wait_for(objective.device)
        moments.append(time.perf_counter())
        with objective.averaged():
            objective.write_samples(self.folder / "step-000000000", self.interrupted)
        wait_for(objective.device)
        moments.append(time.perf_counter())
        trainer.save_checkpoint(self.folder)
        store.prune(self.folder, 1)
        moments.append(time.perf_counter())
        self.evaluation, self.samples, self.save = (b - a for a, b in pairwise(moments))

    def on_save_checkpoint(self, trainer: L.Trainer, objective: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(objective, Objective)
        weights = {"ema": objective.ema, "extra": objective.extra_state()}
        checkpoint["gengen"] = weights | {"config": {}, "state": {}, "tokenizer": None, "facts": {}}


def steps_within(budget: float, c: TrainerConfig, step: float, evaluation: float, samples: float, save: float) -> int:
    """How many steps fit in a budget with what comes between them; all in seconds. Each evaluation is taken for the
    best so far, which is saved."""

    def spent(n: int) -> float:
        evaluations, previews = math.ceil(n / c.eval_every), math.ceil(n / c.sample_every)  # the last step has both
        saves = math.ceil(n / c.save_every) + n // c.eval_every - n // math.lcm(c.save_every, c.eval_every)
        return n * step + evaluations * evaluation + previews * samples + saves * save

    return bisect_right(range(int(budget / step) + 2), budget, key=spent) - 1


def fitted_to_budget(
    config: TrainConfig,
    prepared: PreparedData,
    say: Callable[[str], None],
    interrupted: Callable[[], bool] = lambda: False,
) -> TrainConfig:
    """The config with the steps that fit in trainer.budget on this machine, by the times of a few steps of a copy that
    is thrown away, of an evaluation, samples and a save; and with `compile` settled, so that it repeats the run."""
    steps, compiled = trial(config, prepared, say, interrupted)
    gc.collect()  # trainer and objective hold each other, and the run needs their memory
    torch.cuda.empty_cache()
    return replace(config, trainer=replace(config.trainer, max_steps=steps, compile=str(compiled).lower()))


def trial(
    config: TrainConfig, prepared: PreparedData, say: Callable[[str], None], interrupted: Callable[[], bool]
) -> tuple[int, bool]:
    """Train a copy for TRIAL_STEPS: how many steps the budget has room for, and whether they are compiled. The trial
    is part of the budget, and so is what the first steps take longer than others, which comes again."""
    begun = time.perf_counter()
    objective = build_objective(replace(config, optim=config.optim.for_steps(TRIAL_STEPS)), prepared)
    compiled = compile_where_it_pays(objective, config, say)
    datamodule = build_datamodule(config, prepared)
    Path(config.runs_dir).mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".trial-", dir=config.runs_dir) as folder:
        times = Trial(datamodule.val_batches, Path(folder), interrupted)
        build_trainer(config, times, TRIAL_STEPS).fit(objective, datamodule=datamodule)
    steps = [b - a for a, b in pairwise([times.begun, *times.ends])]
    spent = objective.seconds_a_step(steps)
    warm_up = max(0.0, sum(steps[: TRIAL_STEPS // 4]) - TRIAL_STEPS // 4 * spent)
    left = seconds("trainer.budget", config.trainer.budget) - warm_up - (time.perf_counter() - begun)
    within = steps_within(left, config.trainer, spent, times.evaluation, times.samples, times.save)
    return max(TRIAL_STEPS, within), compiled


def with_rollbacks(
    train: Callable[[Path | None, int | None], Cadence], run: Run, console: Console, checkpoint: Path | None
) -> Cadence:
    """Train from a checkpoint, or from the start. A roll-back is a resume within this process, from the newest
    checkpoint, that leaves out the batches since. Raises TrainingFailed if ROLLBACKS of them are not enough."""
    rollbacks, passed_over = 0, None
    while True:
        try:
            return train(checkpoint, passed_over)
        except RollBack as why:
            checkpoint, rollbacks = store.newest(run.checkpoints, console.say), rollbacks + 1
            if checkpoint is None or rollbacks > ROLLBACKS:
                raise TrainingFailed(
                    f"{why}; rolled back {rollbacks - 1} times, and there is nothing more to try"
                ) from None
            step = store.step_of(checkpoint)
            passed_over = why.step + why.passed_over - step
            console.say(
                f"warning: {why}; going on from {checkpoint.name}, without the data of the {why.step - step} steps since"
            )


def train(
    config: TrainConfig,
    run: Run,
    prepared: PreparedData,
    console: Console,
    interruption: Interruption,
    init_from: Path | None,
    checkpoint: Path | None,
    passed_over: int | None = None,
) -> Cadence:
    """Train until the last step, a stop or a signal. Everything a resume needs is on the disk when this returns.
    passed_over: batches left out so far; null = what the checkpoint says. Raises RollBack, TrainingFailed, SaveFailed,
    Damaged."""
    c = config.trainer
    objective = build_objective(config, prepared, init_from if checkpoint is None else None)
    compile_where_it_pays(objective, config, console.say)
    rank = int(LightningEnvironment().local_rank())
    datamodule = build_datamodule(config, prepared, rank)
    cadence = Cadence(
        config,
        run,
        console,
        interruption,
        prepared,
        datamodule.val_batches,
        peak_flops(c.device, c.precision),
        build_loggers(config, run, console) if rank == 0 else [],
        passed_over,
    )
    trainer = build_trainer(config, cadence, cadence.max_steps)
    interruption.waits = c.devices > 1  # until all ranks have started
    try:
        with Watchdog(seconds("trainer.watchdog", c.watchdog), interruption.beats, run.path / "stacks.txt"):
            trainer.fit(
                objective, datamodule=datamodule, ckpt_path=str(checkpoint) if checkpoint else None, weights_only=True
            )
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if checkpoint is None or cadence.begun or isinstance(error, torch.OutOfMemoryError):
            raise
        raise Damaged(
            checkpoint, f"what it holds is not the state of such a run ({type(error).__name__}: {error})"
        ) from error
    finally:
        console.close()
        for logger in cadence.loggers:
            with suppress(Exception):  # a dead logger stops nothing
                getattr(logger, "finalize", lambda status: None)("finished")
        if torch.distributed.is_initialized():  # a later run of this process makes its own
            torch.distributed.destroy_process_group()
    return cadence
