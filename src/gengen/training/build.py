"""The parts of a training run, from its config."""

import logging
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import lightning.pytorch as L
import torch
from lightning.pytorch.profilers import Profiler

from gengen.checkpoints.background import BackgroundSaver
from gengen.checkpoints.layout import nbytes
from gengen.checkpoints.saving import Saver, SaverInTurn
from gengen.config.model import GPTConfig
from gengen.config.train import TrainConfig, seconds
from gengen.data import loader
from gengen.data.loader import StepData
from gengen.data.prepared import PreparedData
from gengen.errors import UserError
from gengen.generation.load import adapt, base_checkpoint, start_from
from gengen.hardware import pick_compile
from gengen.models.lora import add_adapters
from gengen.registry import CALLBACKS, MODELS, imported
from gengen.training.checkpointing import SafeCheckpointIO
from gengen.training.environment import PlaceEnvironment
from gengen.training.objective import Objective
from gengen.training.ranks import Ranks
from gengen.training.rng import seed_everything
from gengen.training.sharded_saving import carry_out_together
from gengen.training.strategy import build_strategy


def build_objective(config: TrainConfig, prepared: PreparedData | None, init_from: Path | None = None) -> Objective:
    """The seeded model in its objective; with the weights of another run's checkpoint, if named.

    An adapted model has those of its base in any case; None as `prepared`: it is to be counted, not trained.
    """
    entry = MODELS[config.model.name]
    seed_everything(config.seed)
    model = entry.load_for("model", config.stage.name)(config.model)
    if isinstance(config.model, GPTConfig) and config.model.is_adapted:
        if prepared is None:
            add_adapters(model, config.model.lora)
        else:
            adapt(model, base_checkpoint(config.model.lora, Path(config.runs_dir)))
    elif init_from is not None:
        start_from(model, init_from)
    objective: Objective = entry.load(f"objective:{config.stage.name}")(config, model, prepared)
    return objective


def build_datamodule(config: TrainConfig, prepared: PreparedData, rank: int = 0) -> StepData:
    """Return the LightningDataModule of a rank."""
    return loader.build_datamodule(
        config.data, prepared, config.model, seed=config.seed, rank=rank, world=config.trainer.world
    )


def build_callbacks(names: Sequence[str]) -> list[L.Callback]:
    """The user's own callbacks, by registered name. Raises UserError for what is no callback."""
    callbacks = []
    for name in names:
        callback = imported(CALLBACKS[name])()
        if not isinstance(callback, L.Callback):
            raise UserError(
                f"trainer.callbacks={name}: {CALLBACKS[name]} returned {callback!r}, not a Lightning Callback"
            )
        callbacks.append(callback)
    return callbacks


def build_trainer(
    config: TrainConfig,
    callback: L.Callback,
    max_steps: int,
    more_callbacks: Sequence[L.Callback] = (),
    profiler: Profiler | None = None,
    ranks: Ranks | None = None,
    saver: Saver | None = None,
) -> L.Trainer:
    """Lightning's Trainer, stripped to devices, strategy and loop: rhythm, logs and checkpoints are ours.

    more_callbacks: the user's, each of which is called after `callback`. ranks: None for a process alone.
    saver: None = training waits for its saves.
    """
    c, ranks = config.trainer, ranks or Ranks()
    if c.threads:
        torch.set_num_threads(c.threads)
    # what is not under autocast is meant to be fp32: penalties, samplers, statistics
    torch.backends.cudnn.allow_tf32 = False
    quiet_lightning()
    patience = timedelta(seconds=max(1800, seconds("trainer.watchdog", c.watchdog)))  # of ranks with each other
    return L.Trainer(
        accelerator="gpu" if c.device == "cuda" else "cpu",
        devices=c.devices,
        num_nodes=ranks.place.nodes,
        strategy=build_strategy(config, ranks.store, patience),
        precision="32-true",
        max_steps=max_steps,
        callbacks=[callback, *more_callbacks],
        plugins=[SafeCheckpointIO(saver or SaverInTurn()), PlaceEnvironment(ranks.place)],
        profiler=profiler,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def build_saver(config: TrainConfig) -> Saver:
    if config.trainer.sharded_save:
        return SaverInTurn(carry_out_together)
    return BackgroundSaver() if config.trainer.saves_in_background else SaverInTurn()


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


COMPILING_PAYS = {"seconds": 180.0, "flops": 3e13}
"""Training on a CPU from which on half a minute of compiling is won back."""


def compile_where_it_pays(
    objective: Objective, config: TrainConfig, say: Callable[[str], None] = lambda line: None
) -> bool:
    """Compile the objective's network, if that is asked for or `auto` finds it pays; returns whether it was done.

    It pays on CUDA, and on a CPU in a run of some minutes, by its budget or by its FLOPs: a resumed run decides as it
    did before.
    """
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


def size_line(config: TrainConfig) -> str:
    """The model, its parameters (each tied one once, none allocated), and the memory of all that is kept of each of
    them, in fp32. Of an adapted model the base is kept once, in its own precision.
    """
    with torch.device("meta"):
        model = MODELS[config.model.name].load_for("model", config.stage.name)(config.model)
        n = trained = sum(p.numel() for p in model.parameters())
        frozen, share = 0, ""  # bytes, words
        if isinstance(config.model, GPTConfig) and config.model.is_adapted:
            add_adapters(model, config.model.lora)
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            frozen = nbytes([p for p in (*model.parameters(), *model.buffers()) if not p.requires_grad])
            share = f", {trained / 1e6:.2f} M of them trained ({trained / (n + trained):.2%})"
            n += trained
    copies = 4 + (1 if config.optim.ema or config.optim.ema_ratio else 0)  # weights, gradients, two moments, EMA
    name = " ".join(filter(None, (config.model.name, config.model.size_name())))
    memory = f"{(4 * copies * trained + frozen) / 1e6:.0f} MB for weights, gradients and optimizer"
    return f"{name}  {n / 1e6:.2f} M parameters{share}  {memory}"
