"""Parameter groups, the optimizer, and the learning rate as a function of the step."""

import math
import re
from typing import Any

import torch
from torch import nn

from gengen.config.train import OptimConfig
from gengen.hardware import pick_precision
from gengen.training.optim.muon import Muon


def parameter_groups(model: nn.Module, c: OptimConfig, hidden_maps: str = "") -> list[dict[str, object]]:
    """Put every trainable parameter in exactly one group: matrices decay, vectors (norms, biases) do not.

    hidden_maps: a regular expression for the weights that map features to features (ModelConfig.hidden_maps). With
    optim=muon they are a group of their own; embeddings, first layers and heads are no such maps.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]  # a tied parameter comes once
    muon = c.name == "muon" and hidden_maps
    hidden = {name for name, p in named if muon and p.dim() >= 2 and re.search(hidden_maps, name)}
    groups: list[dict[str, object]] = [
        {
            "params": [(name, p) for name, p in named if p.dim() >= 2 and name not in hidden],
            "weight_decay": c.weight_decay,
        },
        {"params": [(name, p) for name, p in named if p.dim() < 2], "weight_decay": 0.0},
        {
            "params": [(name, p) for name, p in named if name in hidden],
            "weight_decay": c.muon_weight_decay,
            "muon": True,
        },
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, c: OptimConfig, hidden_maps: str = "") -> torch.optim.Optimizer:
    """Fused AdamW (Loshchilov & Hutter 2019), or Muon with it; learning rates are set at every step from `rate`.

    Raises ValueError for optim=muon where `hidden_maps` names no weight: it would be AdamW without a word.
    """
    groups, betas = parameter_groups(model, c, hidden_maps), (c.beta1, c.beta2)
    if c.name == "muon" and not any(group.get("muon") for group in groups):
        raise ValueError(f"optim=muon finds no hidden maps in {type(model).__name__} by {hidden_maps!r}")
    optimizer: torch.optim.Optimizer
    if c.name == "muon":
        precision = pick_precision(c.muon_precision, next(model.parameters()).device.type)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        optimizer = Muon(groups, lr=c.peak_lr, momentum=c.momentum, betas=betas, eps=c.eps, dtype=dtype)
    else:
        optimizer = torch.optim.AdamW(groups, lr=c.peak_lr, betas=betas, eps=c.eps, fused=True)
    optimizer.register_load_state_dict_pre_hook(fitting)
    return optimizer


def fitting(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Check an optimizer's state, which anyone may have written, before it is loaded.

    Raises ValueError unless its moments have their weights' names and shapes, and its hyper-parameters the types of
    our own.
    """
    for own, old in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        moments = [saved["state"].get(i, {}) for i in old["params"]]
        names = {name for one in moments for name in one}
        for weight, one in zip(own["params"], moments, strict=True):  # none, where a weight has had no gradient
            shapes = {name: t.shape if t.dim() or name != "step" else weight.shape for name, t in one.items()}
            if shapes not in ({}, dict.fromkeys(names, weight.shape)) or own["param_names"] != old["param_names"]:
                raise ValueError("moments that are not those of the weights")
        if form(own | {"params": 0}) != form(old | {"params": 0}):
            raise ValueError("hyper-parameters of other types than ours")


def form(value: object) -> object:
    """Return the tree with the type of each leaf in its place; numbers are all "number"."""
    if isinstance(value, dict):
        return {key: form(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [form(part) for part in value]
    return "number" if type(value) is float or (type(value) is int and abs(value) < 2**53) else type(value)


def rate(step: int, max_steps: int, c: OptimConfig) -> float:
    """Return the share of the peak learning rate for update number `step` (from 0), in (0, 1].

    All schedules rise linearly over the first `warmup_ratio` share of max_steps. Then
    wsd (Hu et al. 2024): 1, and over the last `decay_ratio` share linearly down to final_lr_ratio;
    cosine (Loshchilov & Hutter 2017): half a cosine from 1 to final_lr_ratio;
    constant: 1.
    """
    rise = min(1.0, (step + 1) / max(1, round(c.warmup_ratio * max_steps)))
    if c.schedule == "wsd":
        left = min(1.0, (max_steps - step) / max(1, round(c.decay_ratio * max_steps)))
    elif c.schedule == "cosine":
        start = round(c.warmup_ratio * max_steps)
        progress = max(0, step - start) / max(1, max_steps - start)
        left = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    else:
        left = 1.0
    return rise * (c.final_lr_ratio + (1 - c.final_lr_ratio) * left)
