"""`dry_run=true`: what a run would be, without a file written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from gengen.checkpoints.migrate import read_config
from gengen.checkpoints.run import find
from gengen.config.model import ModelConfig
from gengen.config.schema import build, plain
from gengen.config.stage import TuningConfig
from gengen.config.train import TrainConfig
from gengen.training.build import build_objective, size_line
from gengen.training.request import check_model_runs
from gengen.training.settle import with_adapter


def describe(config: TrainConfig) -> str:
    """Return the settled config, the parameters, memory and FLOPs of a run."""
    config = settled(config)
    settings = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
    return f"{settings}\n{size_line(config)}, without activations\n{work_line(config)}"


def settled(config: TrainConfig) -> TrainConfig:
    """Settle what can be without data or a machine. A run that starts from another has its model."""
    if config.init_from:
        brought = read_config(find(config.init_from, Path(config.runs_dir)))["model"]
        config = replace(config, model=with_adapter(build(ModelConfig, brought), config.model))
    config = replace(config, model=config.model.resolved().with_data(known_facts(config)))
    config.model.check()
    config = replace(config, optim=config.optim.for_model(config.model.largest_width()))
    if steps := config.trainer.max_steps:
        config = replace(config, optim=config.optim.for_steps(steps))
    return config


def known_facts(config: TrainConfig) -> dict[str, Any]:
    """What data and the runs that the model is built on fix of it, as far as their configs say."""
    known = config.data.facts()
    for path in check_model_runs(config):
        known |= build(ModelConfig, read_config(path)["model"]).latents()
    return known


def work_line(config: TrainConfig) -> str:
    """FLOPs of a step and of the run."""
    with torch.device("meta"):
        per_row = build_objective(config, None).flops_per_row()
    if not per_row:
        return f"FLOPs are not counted for stage={config.stage.name}"
    flops, steps = config.data.batch_size * per_row, config.trainer.max_steps
    if steps:
        return f"{flops:.3g} FLOPs a step; {steps * flops:.3g} in {steps:,} steps"
    length = f"{config.stage.epochs:g} epochs" if isinstance(config.stage, TuningConfig) else config.trainer.budget
    return f"{flops:.3g} FLOPs a step, for {length}"
