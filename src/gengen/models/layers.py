"""Layers that networks of images share."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NO_CLASS = -1
"""The label of a sample whose class is not given."""


class ClassEmbedding(nn.Embedding):
    """A vector for each class, and a last one for samples whose class is not given (their label is negative)."""

    def __init__(self, classes: int, width: int):
        super().__init__(classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:  # (B,) -> (B, width)
        return super().forward(torch.where(labels < 0, self.num_embeddings - 1, labels))


def fourier(level: Tensor, width: int) -> Tensor:
    """Return sines and cosines of the noise level, (B,) -> (B, width), always fp32: in bf16 near levels would
    collide.
    """
    frequencies = torch.exp(torch.linspace(math.log(0.25), math.log(64.0), width // 2, device=level.device))
    angles = 2 * math.pi * level.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class LevelEmbedding(nn.Sequential):
    """An MLP on the sines and cosines of a noise level."""

    def __init__(self, frequencies: int, width: int):
        super().__init__(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.frequencies = frequencies

    def forward(self, level: Tensor) -> Tensor:  # (B,) -> (B, width)
        return super().forward(fourier(level, self.frequencies))


class GroupNorm(nn.GroupNorm):
    """Normalise groups of 16 channels, or of the next larger number that divides them; sums are fp32 whatever the
    dtype of x.
    """

    def __init__(self, channels: int):
        groups = next(groups for groups in range(max(1, channels // 16), 0, -1) if channels % groups == 0)
        super().__init__(groups, channels)


def with_known(x: Tensor, known: Tensor | None) -> Tensor:
    """Return x (B, C, R, R) beside what is known of it, (B, C + 1, R, R), None = nothing: (B, 2 C + 1, R, R)."""
    if known is None:
        known = x.new_zeros(len(x), x.shape[1] + 1, *x.shape[2:])
    return torch.cat([x, known.to(x.dtype)], dim=1)


def zeroed(module: nn.Module) -> nn.Module:
    """Set a module's weights and biases to 0, so that what it is added to begins unchanged. Returns the module."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention, (B, heads, T, D). On a CPU in fp32, whose backward pass is faster there than
    bf16's.

    mask: (B, S) bool, which of the S keys may be attended to; None = all.
    """
    allowed = None if mask is None else mask[:, None, None]  # (B, 1, 1, S)
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, allowed)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), allowed).to(q.dtype)
