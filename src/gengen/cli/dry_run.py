"""`dry_run=true`: what a run would be, without a file written."""

from dataclasses import replace

import torch
import yaml

from gengen.config.schema import plain
from gengen.config.train import TrainConfig
from gengen.registry import MODELS


def parameters(config: TrainConfig) -> int:
    """Parameters of the model, each tied one once; counted without allocating them."""
    with torch.device("meta"):
        model = MODELS[config.model.name].load("model")(config.model)
    return sum(p.numel() for p in model.parameters())


def size_line(config: TrainConfig) -> str:
    n = parameters(config)
    copies = 4 + (1 if config.optim.ema else 0)  # weights, gradients, two moments, EMA; all fp32
    size = getattr(config.model, "size", "")
    return f"{config.model.name} {size}  {n / 1e6:.2f} M parameters  {4 * copies * n / 1e6:.0f} MB for weights, gradients and optimizer"


def describe(config: TrainConfig) -> str:
    """Config, parameters, memory and FLOPs."""
    config = replace(config, model=config.model.resolved())
    with torch.device("meta"):
        entry = MODELS[config.model.name]
        objective = entry.load(f"objective:{config.stage.name}")(config, entry.load("model")(config.model), None)
    flops = config.data.batch_size * objective.flops_per_row()
    return (
        yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
        + f"\n{size_line(config)}, without activations"
        + f"\n{flops:.3g} FLOPs a step"
        + (f"; {steps * flops:.3g} in {steps:,} steps" if (steps := config.trainer.max_steps) else f", for {config.trainer.budget}")
    )
