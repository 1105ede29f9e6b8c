"""Parameter groups, the optimizer, and the learning rate as a function of the step."""

import math

import torch
from torch import nn

from gengen.config.train import OptimConfig
from gengen.training.muon import Muon


def parameter_groups(model: nn.Module, c: OptimConfig) -> list[dict[str, object]]:
    """Every trainable parameter in exactly one group: matrices decay, vectors (norms, biases) do not. For Muon, the matrices
    inside blocks are a group of their own: it is for maps between features, which embeddings and heads are not."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]  # a tied parameter comes once
    hidden = {name for name, p in named if c.name == "muon" and p.dim() == 2 and ".blocks." in f".{name}"}
    groups: list[dict[str, object]] = [
        {"params": [(name, p) for name, p in named if p.dim() >= 2 and name not in hidden], "weight_decay": c.weight_decay},
        {"params": [(name, p) for name, p in named if p.dim() < 2], "weight_decay": 0.0},
        {"params": [(name, p) for name, p in named if name in hidden], "weight_decay": c.muon_weight_decay, "muon": True},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, c: OptimConfig) -> torch.optim.Optimizer:
    """Fused AdamW (Loshchilov & Hutter 2019), or Muon with it; learning rates are set at every step from `rate`."""
    groups = parameter_groups(model, c)
    if c.name == "muon":
        return Muon(groups, lr=c.lr, momentum=c.momentum, betas=(c.beta1, c.beta2), eps=c.eps)
    return torch.optim.AdamW(groups, lr=c.lr, betas=(c.beta1, c.beta2), eps=c.eps, fused=True)


def rate(step: int, max_steps: int, c: OptimConfig) -> float:
    """The share of the peak learning rate for update number `step` (from 0), in (0, 1].

    All schedules rise linearly over the first `warmup` share of max_steps. Then
    wsd (Hu et al. 2024): 1, and over the last `decay` share linearly down to final_lr;
    cosine (Loshchilov & Hutter 2017): half a cosine from 1 to final_lr;
    constant: 1.
    """
    rise = min(1.0, (step + 1) / max(1, round(c.warmup * max_steps)))
    if c.schedule == "wsd":
        left = min(1.0, (max_steps - step) / max(1, round(c.decay * max_steps)))
    elif c.schedule == "cosine":
        start = round(c.warmup * max_steps)
        progress = max(0, step - start) / max(1, max_steps - start)
        left = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    else:
        left = 1.0
    return rise * (c.final_lr + (1 - c.final_lr) * left)
