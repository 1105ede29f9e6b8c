"""`dry_run=true`: what a run would be, without a file written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from gengen.checkpoints.migrate import read_config
from gengen.checkpoints.run import find
from gengen.cli.train import check_runs
from gengen.config.model import ModelConfig
from gengen.config.schema import build, plain
from gengen.config.stage import TuningConfig
from gengen.config.train import TrainConfig
from gengen.registry import MODELS


def parameters(config: TrainConfig) -> int:
    """Parameters of the model, each tied one once; counted without allocating them."""
    with torch.device("meta"):
        model = MODELS[config.model.name].load_for("model", config.stage.name)(config.model)
    return sum(p.numel() for p in model.parameters())


def size_line(config: TrainConfig) -> str:
    n = parameters(config)
    copies = 4 + (
        1 if config.optim.ema or config.optim.ema_ratio else 0
    )  # weights, gradients, two moments, EMA; all fp32
    name = " ".join(filter(None, (config.model.name, config.model.size_name())))
    return f"{name}  {n / 1e6:.2f} M parameters  {4 * copies * n / 1e6:.0f} MB for weights, gradients and optimizer"


def facts(config: TrainConfig) -> dict[str, Any]:
    """What data and the runs that the model is built on fix of it, as far as their configs say."""
    known = config.data.facts()
    for path in check_runs(config):
        known |= build(ModelConfig, read_config(path)["model"]).latents()
    return known


def describe(config: TrainConfig) -> str:
    """Config, parameters, memory and FLOPs. A run that starts from another has its model."""
    if config.init_from:
        brought = read_config(find(config.init_from, Path(config.runs_dir)))["model"]
        config = replace(config, model=build(ModelConfig, brought))
    config = replace(config, model=config.model.resolved().with_data(facts(config)))
    config.model.check()
    config = replace(config, optim=config.optim.for_model(config.model.largest_width()))
    if steps := config.trainer.max_steps:
        config = replace(config, optim=config.optim.for_steps(steps))
    with torch.device("meta"):
        entry = MODELS[config.model.name]
        objective = entry.load(f"objective:{config.stage.name}")(
            config, entry.load_for("model", config.stage.name)(config.model), None
        )
    per_row, steps = objective.flops_per_row(), config.trainer.max_steps
    length = f"{config.stage.epochs:g} epochs" if isinstance(config.stage, TuningConfig) else config.trainer.budget
    work = f"FLOPs are not counted for stage={config.stage.name}"
    if per_row:
        flops = config.data.batch_size * per_row
        work = f"{flops:.3g} FLOPs a step" + (
            f"; {steps * flops:.3g} in {steps:,} steps" if steps else f", for {length}"
        )
    settings = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
    return f"{settings}\n{size_line(config)}, without activations\n{work}"
