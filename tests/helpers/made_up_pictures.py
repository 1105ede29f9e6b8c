"""Three classes of made-up pictures, enough for a judge of a second's training."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor

CLASSES = ["across", "down", "dot"]


def draw(labels: Tensor, seed: int, channels: int = 1, side: int = 28) -> Tensor:
    """uint8 (N, C, side, side): a bar across, a bar down or a dot, anywhere, in some brightness, on a little noise."""
    generator = torch.Generator().manual_seed(seed)
    n = len(labels)
    low, high = side / 4, 3 * side / 4
    y0, x0 = (low + (high - low) * torch.rand(n, 1, 1, generator=generator) for _ in "yx")
    y, x = torch.arange(side)[None, :, None] - y0, torch.arange(side)[None, None, :] - x0
    thick = 1.5 + 1.5 * torch.rand(n, 1, 1, generator=generator)
    shapes = torch.stack([y.abs().expand(n, side, side), x.abs().expand(n, side, side), (y**2 + x**2).sqrt() - thick])
    inside = shapes[labels, torch.arange(n)] < thick
    bright = 120 + 100 * torch.rand(n, 1, 1, generator=generator)
    noise = 20 * torch.rand(n, channels, side, side, generator=generator)
    return ((inside * bright)[:, None] + noise).round().to(torch.uint8)


@dataclass
class Split:
    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Prepared:
    """Prepared image data, as far as evaluation reads it."""

    config: SimpleNamespace
    train: Split
    val: Split
    classes: list[str] = field(default_factory=lambda: list(CLASSES))
    fingerprint: str = "0123456789abcdef" * 4


def made_up(folder, train: int = 300, val: int = 150, channels: int = 1, side: int = 28) -> Prepared:
    labels = torch.arange(train) % 3, torch.arange(val) % 3
    splits = [Split(draw(each, seed, channels, side), each) for seed, each in enumerate(labels)]
    return Prepared(SimpleNamespace(dir=str(folder), flip=False), *splits)
