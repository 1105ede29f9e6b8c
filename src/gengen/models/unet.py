"""UNet for diffusion, on pixels or latents: residual blocks told the noise level and the class, attention at coarse
levels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gengen.config.model import UNetConfig

NULL = -1  # the label of an image whose class is not told


def fourier(level: Tensor, width: int) -> Tensor:
    """Sines and cosines of the noise level, (B,) -> (B, width), always fp32: in bf16 near levels would collide."""
    frequencies = torch.exp(torch.linspace(math.log(0.25), math.log(64.0), width // 2, device=level.device))
    angles = 2 * math.pi * level.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class GroupNorm(nn.GroupNorm):
    """Over groups of 16 channels, or of the next larger number that divides them; its sums are fp32 whatever the dtype
    of x.
    """

    def __init__(self, channels: int):
        groups = next(groups for groups in range(max(1, channels // 16), 0, -1) if channels % groups == 0)
        super().__init__(groups, channels)


def zeroed(module: nn.Module) -> nn.Module:
    """The module with weights and biases at 0: what it is added to begins as it is."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResidualBlock(nn.Module):
    """x + conv(silu(film(norm(conv(silu(norm(x))))))), where film scales and shifts by the condition (Dhariwal &
    Nichol 2021).
    """

    def __init__(self, c_in: int, c_out: int, condition: int, dropout: float):
        super().__init__()
        self.norm_in, self.conv_in = GroupNorm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.film = nn.Linear(condition, 2 * c_out)
        setattr(self.film.weight, "stacked_rows", [c_out, c_out])  # for Muon
        self.norm_out, self.conv_out = GroupNorm(c_out), zeroed(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # (B, C, H, W), (B, D) -> (B, C', H, W)
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = F.silu(torch.addcmul(shift, self.norm_out(h), 1 + scale))
        return self.skip(x) + self.conv_out(self.dropout(h))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention, (B, heads, T, D). On a CPU in fp32, whose backward pass is faster there than
    bf16's.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)


class Attention(nn.Module):
    """x + self-attention over positions."""

    def __init__(self, channels: int, head_size: int):
        super().__init__()
        self.heads = channels // head_size
        self.norm, self.qkv, self.out = (
            GroupNorm(channels),
            nn.Linear(channels, 3 * channels),
            zeroed(nn.Linear(channels, channels)),
        )
        setattr(self.qkv.weight, "stacked_rows", [channels] * 3)  # for Muon

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, HW, D) each
        attended = attend(q, k, v).transpose(1, 2).flatten(2)  # (B, HW, C)
        return x + self.out(attended).transpose(1, 2).unflatten(2, x.shape[2:])


class Stage(nn.Module):
    """A residual block, and attention where its level has it."""

    def __init__(self, block: ResidualBlock, attention: Attention | None):
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = self.block(x, condition)
        return x if self.attention is None else self.attention(x)


class UNet(nn.Module):
    """What a diffusion model says of x_t, given the noise level and a class (Ronneberger et al. 2015; Ho et al. 2020).

    The way down leaves its features, the way up reads them, last first. Between levels the resolution is halved by
    averaging and doubled by repeating; the next block's convolutions do the rest.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        c = self.config = config
        assert c.widths and c.blocks and c.patch and c.attention is not None and c.channels and c.resolution
        self.condition = 4 * c.widths[0]
        self.level = nn.Sequential(
            nn.Linear(c.widths[0], self.condition), nn.SiLU(), nn.Linear(self.condition, self.condition)
        )
        self.classes = nn.Embedding(len(c.classes) + 1, self.condition)  # the last one: no class
        nn.init.normal_(self.classes.weight, std=0.02)
        self.conv_in = nn.Conv2d(c.channels * c.patch**2, c.widths[0], 3, padding=1)

        self.down, self.up = (
            nn.ModuleList(),
            nn.ModuleList(),
        )  # a list of stages for each level, finest first and coarsest first
        width, left = c.widths[0], [c.widths[0]]
        for level, wanted in enumerate(c.widths):
            left += [width] * (level > 0)
            self.down.append(stages := nn.ModuleList())
            for _ in range(c.blocks):
                stages.append(self.stage(width, wanted, level in c.attention))
                width = wanted
                left.append(width)
        self.middle = nn.ModuleList([self.stage(width, width, True), self.stage(width, width, False)])
        for level, wanted in reversed(list(enumerate(c.widths))):
            self.up.append(stages := nn.ModuleList())
            for _ in range(c.blocks + 1):
                stages.append(self.stage(width + left.pop(), wanted, level in c.attention))
                width = wanted
        self.norm_out, self.conv_out = (
            GroupNorm(width),
            zeroed(nn.Conv2d(width, c.channels * c.patch**2, 3, padding=1)),
        )

    def stage(self, c_in: int, c_out: int, attends: bool) -> Stage:
        c = self.config
        attention = Attention(c_out, c.head_size) if attends else None
        return Stage(ResidualBlock(c_in, c_out, self.condition, c.dropout), attention)

    def forward(self, x: Tensor, level: Tensor, labels: Tensor | None = None) -> Tensor:
        """x: (B, C, R, R), of variance about 1; level: (B,), a number of order one that says how noisy x is; labels:
        (B,), NULL where no class is told. Returns (B, C, R, R), fp32."""
        c = self.config
        assert c.patch
        condition = F.silu(self.level(fourier(level, c.widths[0])) + self.told(labels, len(x)))  # type: ignore[index]
        x = self.conv_in(F.pixel_unshuffle(x, c.patch).contiguous(memory_format=torch.channels_last))
        left = [x]
        for number, stages in enumerate(self.down):
            if number:
                x = F.avg_pool2d(x, 2)
                left.append(x)
            for stage in stages:  # type: ignore[attr-defined]
                x = self.through(stage, x, condition)
                left.append(x)
        for stage in self.middle:
            x = self.through(stage, x, condition)
        for number, stages in enumerate(self.up):
            if number:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            for stage in stages:  # type: ignore[attr-defined]
                x = self.through(stage, torch.cat([x, left.pop()], dim=1), condition)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))).float(), c.patch)

    def told(self, labels: Tensor | None, rows: int) -> Tensor:
        """The embedding of each row's class, (rows, D)."""
        none = self.classes.num_embeddings - 1
        if labels is None:
            labels = torch.full((rows,), NULL, device=self.classes.weight.device)
        return self.classes(torch.where(labels < 0, none, labels))

    def through(self, stage: nn.Module, x: Tensor, condition: Tensor) -> Tensor:
        if self.config.activation_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(stage, x, condition, use_reentrant=False)
        return stage(x, condition)
