"""A network of your own for diffusion: register it, and everything else is there.

    python scripts/train.py model=convmixer data=animals plugins=[examples.own_network] --config-dir=examples/configs
    python scripts/sample.py runs/NAME n=16 plugins=[examples.own_network]

What diffusion asks of a network is `gengen.models.diffusion_network.DiffusionNetwork`. Its config adds dimensions to
`DiffusionConfig`, which has the process (path, prediction, ...) and what the data fixes (resolution, channels,
classes).
With a field `codec: str | None = run_of("...")` in the config it would be trained on latents.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gengen.config.fields import option, positive
from gengen.config.model import DiffusionConfig, register_diffusion
from gengen.models.layers import NO_CLASS, ClassEmbedding, GroupNorm, LevelEmbedding, zeroed


@register_diffusion("convmixer", model=f"{__name__}:ConvMixer")
@dataclass
class ConvMixerConfig(DiffusionConfig):
    """Large convolutions a channel, and linear maps between channels, on patches (Trockman & Kolter 2022)."""

    name: str = option("convmixer", "registered name of the model family")
    width: int = positive(96, "features of a patch")
    layers: int = positive(6, "residual blocks")
    patch: int = positive(4, "pixels a side that are one patch")
    kernel: int = positive(5, "patches a side that a block looks at; odd")

    hidden_maps: ClassVar[str] = r"^blocks\."  # for optim=muon

    def largest_width(self) -> int:
        return self.width


class ConvMixer(nn.Module):
    def __init__(self, config: ConvMixerConfig):
        super().__init__()
        self.config = config
        pixels = config.sample_shape()[0] * config.patch**2
        self.embed = nn.Conv2d(pixels, config.width, 1)
        self.level, self.classes = LevelEmbedding(64, config.width), ClassEmbedding(len(config.classes), config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.kernel) for _ in range(config.layers))
        self.norm, self.out = GroupNorm(config.width), zeroed(nn.Conv2d(config.width, pixels, 1))

    def forward(self, x: Tensor, level: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            labels = torch.full((len(x),), NO_CLASS, device=x.device)
        condition = F.silu(self.level(level) + self.classes(labels))[:, :, None, None]  # (B, D, 1, 1)
        h = self.embed(F.pixel_unshuffle(x, self.config.patch))
        for block in self.blocks:
            h = block(h, condition)
        return F.pixel_shuffle(self.out(self.norm(h)).float(), self.config.patch)


class Block(nn.Module):
    """x + mix(gelu(look(norm(x) + condition)))"""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.norm, self.condition = GroupNorm(width), nn.Conv2d(width, width, 1)
        self.look = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.mix = zeroed(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # (B, D, h, w), (B, D, 1, 1) -> (B, D, h, w)
        return x + self.mix(F.gelu(self.look(self.norm(x) + self.condition(condition))))
