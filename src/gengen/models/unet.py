"""UNet for diffusion, on pixels or latents: residual blocks that are given the noise level, the class and the mean of
a caption; attention, and cross-attention to the caption, at chosen levels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gengen.config.model import UNetConfig
from gengen.models.kernels.dropout import Dropout
from gengen.models.layers import NO_CLASS, ClassEmbedding, GroupNorm, LevelEmbedding, attend, with_known, zeroed
from gengen.models.text_encoder import CrossAttention, TextCondition, TextFeatures


class UNet(nn.Module):
    """What a diffusion model says of x_t, given the noise level and a class (Ronneberger et al. 2015; Ho et al. 2020).

    The way down leaves its features, the way up reads them, last first. Between levels the resolution is halved by
    averaging and doubled by repeating; the next block's convolutions do the rest. A `DiffusionNetwork`.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        c = config.shape()
        self.patch, self.condition = c.patch, 4 * c.widths[0]
        self.level = LevelEmbedding(c.widths[0], self.condition)
        self.classes = ClassEmbedding(len(config.classes), self.condition)
        nn.init.normal_(self.classes.weight, std=0.02)
        self.text = TextCondition(config, self.condition) if config.text else None
        self.conv_in = nn.Conv2d(config.input_channels() * c.patch**2, c.widths[0], 3, padding=1)

        # a list of stages for each level: on the way down finest first, on the way up coarsest first
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        reads = c.attention if config.text_attention is None else config.text_attention
        width, skips = c.widths[0], [c.widths[0]]
        for level, wanted in enumerate(c.widths):
            skips += [width] * (level > 0)
            self.down.append(stages := nn.ModuleList())
            for _ in range(c.blocks):
                stages.append(self.stage(width, wanted, level in c.attention, level in reads))
                width = wanted
                skips.append(width)
        self.middle = nn.ModuleList([self.stage(width, width, True, True), self.stage(width, width, False, False)])
        for level, wanted in reversed(list(enumerate(c.widths))):
            self.up.append(stages := nn.ModuleList())
            for _ in range(c.blocks + 1):
                stages.append(self.stage(width + skips.pop(), wanted, level in c.attention, level in reads))
                width = wanted
        self.norm_out = GroupNorm(width)
        self.conv_out = zeroed(nn.Conv2d(width, c.channels * c.patch**2, 3, padding=1))

    def units(self) -> list[nn.Module]:
        """Return the parts that weights are sharded by: the stages."""
        levels = [*self.down, self.middle, *self.up]
        return [stage for stages in levels for stage in stages]

    def stage(self, c_in: int, c_out: int, attends: bool, reads: bool) -> "Stage":
        c = self.config
        attention = Attention(c_out, c.head_size) if attends else None
        reading = Reading(c_out, c.text_width, c.head_size) if reads and c.text else None
        return Stage(ResidualBlock(c_in, c_out, self.condition, c.dropout), attention, reading)

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        labels: Tensor | None = None,
        text: Tensor | TextFeatures | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """x: (B, C, R, R), of variance about 1; level: (B,), a number of order one that says how noisy x is; labels:
        (B,), NO_CLASS where no class is given; text, known: see `DiffusionNetwork`. Returns (B, C, R, R), fp32."""
        if labels is None:
            labels = torch.full((len(x),), NO_CLASS, device=x.device)
        condition, words = self.level(level) + self.classes(labels), None
        if self.text is not None:
            words = self.text(text, len(x))
            condition = condition + self.text.pooled(words.pooled)
        condition = F.silu(condition)
        if self.config.inpaint:
            x = with_known(x, known)
        x = self.conv_in(F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last))
        skips = [x]
        for number, stages in enumerate(self.down):
            if number:
                x = F.avg_pool2d(x, 2)
                skips.append(x)
            for stage in stages:  # type: ignore[attr-defined]
                x = self.through(stage, x, condition, words)
                skips.append(x)
        for stage in self.middle:
            x = self.through(stage, x, condition, words)
        for number, stages in enumerate(self.up):
            if number:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            for stage in stages:  # type: ignore[attr-defined]
                x = self.through(stage, torch.cat([x, skips.pop()], dim=1), condition, words)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))).float(), self.patch)

    def through(self, stage: nn.Module, x: Tensor, condition: Tensor, words: TextFeatures | None) -> Tensor:
        if self.config.activation_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(stage, x, condition, words, use_reentrant=False)
        return stage(x, condition, words)


class Stage(nn.Module):
    """A residual block, and attention to the image and to its caption where its level has them."""

    def __init__(self, block: "ResidualBlock", attention: "Attention | None", reading: "Reading | None"):
        super().__init__()
        self.block, self.attention, self.reading = block, attention, reading

    def forward(self, x: Tensor, condition: Tensor, words: TextFeatures | None) -> Tensor:
        x = self.block(x, condition)
        if self.attention is not None:
            x = self.attention(x)
        if self.reading is not None:
            assert words is not None
            x = self.reading(x, words)
        return x


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
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # (B, C, H, W), (B, D) -> (B, C', H, W)
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = F.silu(torch.addcmul(shift, self.norm_out(h), 1 + scale))
        return self.skip(x) + self.conv_out(self.dropout(h))


class Attention(nn.Module):
    """x + self-attention over positions."""

    def __init__(self, channels: int, head_size: int):
        super().__init__()
        self.heads = channels // head_size
        self.norm, self.qkv = GroupNorm(channels), nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))
        setattr(self.qkv.weight, "stacked_rows", [channels] * 3)  # for Muon

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, HW, D) each
        attended = attend(q, k, v).transpose(1, 2).flatten(2)  # (B, HW, C)
        return x + self.out(attended).transpose(1, 2).unflatten(2, x.shape[2:])


class Reading(nn.Module):
    """x + cross-attention of positions to a caption."""

    def __init__(self, channels: int, text_width: int, head_size: int):
        super().__init__()
        self.norm, self.attention = GroupNorm(channels), CrossAttention(channels, text_width, head_size)

    def forward(self, x: Tensor, words: TextFeatures) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        read = self.attention(self.norm(x).flatten(2).transpose(1, 2), words)  # (B, HW, C)
        return x + read.transpose(1, 2).unflatten(2, x.shape[2:])
