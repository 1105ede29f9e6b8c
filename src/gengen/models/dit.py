"""Diffusion transformer (Peebles & Xie 2023; as SiT, Ma et al. 2024): patches of pixels or latents as tokens.

The noise level and the class enter through adaLN-zero: each block's norms have no weights of their own, but are scaled
and shifted, and each branch is gated, by a linear map of their embedding. That map and the last layer begin at 0, so
that a new network is the identity on its tokens and answers 0.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gengen.config.model.dit import DiTConfig
from gengen.models.kernels.dropout import Dropout
from gengen.models.layers import NO_CLASS, ClassEmbedding, LevelEmbedding, attend, with_known, zeroed
from gengen.models.text_encoder import CrossAttention, TextCondition, TextFeatures

FREQUENCIES = 256  # sines and cosines of the noise level


class DiT(nn.Module):
    """What a diffusion model says of x_t, given the noise level and a class. A `DiffusionNetwork`."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        c = config.shape()
        self.patch, self.side = c.patch, c.resolution // c.patch
        self.embed = nn.Linear(config.input_channels() * c.patch**2, c.width)
        self.level = LevelEmbedding(FREQUENCIES, c.width)
        self.classes = ClassEmbedding(len(config.classes), c.width)
        reads = range(c.layers) if config.text_attention is None else config.text_attention
        self.blocks = nn.ModuleList(
            Block(c.width, c.heads, config.dropout, config.text_width if config.text and i in reads else None)
            for i in range(c.layers)
        )
        self.modulation_out = nn.Linear(c.width, 2 * c.width)
        self.out = nn.Linear(c.width, c.channels * c.patch**2)
        self.register_buffer("positions", sines_2d(self.side, c.width), persistent=False)
        self.initialise()
        self.text = TextCondition(config, c.width) if config.text else None

    positions: Tensor

    def units(self) -> list[nn.Module]:
        """Return the parts that weights are sharded by: the blocks."""
        return list(self.blocks)

    def initialise(self) -> None:
        """Start as the paper does: Xavier matrices, small embeddings, and 0 where a branch or the answer begins."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for weight in (self.classes.weight, *(p for p in self.level.parameters() if p.dim() == 2)):
            nn.init.normal_(weight, std=0.02)
        for block in self.blocks:
            zeroed(block.modulation)  # type: ignore[arg-type]
            if block.reading is not None:
                zeroed(block.reading.out)  # type: ignore[union-attr, arg-type]
        zeroed(self.modulation_out)
        zeroed(self.out)

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
        condition, words = self.level(level) + self.classes(labels), None  # (B, D)
        if self.text is not None:
            words = self.text(text, len(x))
            condition = condition + self.text.pooled(words.pooled)
        condition = F.silu(condition)
        if self.config.inpaint:
            x = with_known(x, known)
        tokens = self.embed(to_patches(x, self.patch)) + self.positions  # (B, T, D)
        for block in self.blocks:
            if self.config.activation_checkpointing and self.training and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, condition, words, use_reentrant=False)
            else:
                tokens = block(tokens, condition, words)
        shift, scale = self.modulation_out(condition).chunk(2, dim=1)
        return from_patches(self.out(modulated(tokens, shift, scale)).float(), self.side, self.patch)


class Block(nn.Module):
    """x + gate * attention(norm(x)), then x + gate * mlp(norm(x)): six vectors of the condition modulate both.

    Between them, where it reads captions, cross-attention to these, without a gate (Chen et al. 2024, PixArt-alpha).
    """

    def __init__(self, width: int, heads: int, dropout: float, text_width: int | None = None):
        super().__init__()
        self.attention = Attention(width, heads)
        self.reading = CrossAttention(width, text_width, width // heads) if text_width else None
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.dropout = Dropout(dropout)
        self.modulation = nn.Linear(width, 6 * width)
        setattr(self.modulation.weight, "stacked_rows", [width] * 6)  # for Muon

    def forward(self, x: Tensor, condition: Tensor, words: TextFeatures | None = None) -> Tensor:
        """x: (B, T, D), condition: (B, D). Returns (B, T, D)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition).chunk(6, dim=1)
        x = x + gate_a[:, None] * self.dropout(self.attention(modulated(x, shift_a, scale_a)))
        if self.reading is not None:
            assert words is not None
            x = x + self.reading(F.layer_norm(x, x.shape[-1:], eps=1e-6), words)
        return x + gate_m[:, None] * self.dropout(self.mlp(modulated(x, shift_m, scale_m)))


class Attention(nn.Module):
    """Self-attention of all positions."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        setattr(self.qkv.weight, "stacked_rows", [width] * 3)  # for Muon

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, D / H) each
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return norm(x) * (1 + scale) + shift: x (B, T, D), normalised over D without weights; shift and scale (B, D)."""
    return torch.addcmul(shift[:, None], F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale[:, None])


def to_patches(x: Tensor, patch: int) -> Tensor:
    """Return square patches, row by row, as vectors: (B, C, R, R) -> (B, (R / patch)^2, C patch^2)."""
    return F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def from_patches(tokens: Tensor, side: int, patch: int) -> Tensor:
    """Return the image of side^2 patches, the inverse of `to_patches`: (B, T, C patch^2) -> (B, C, R, R)."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (side, side)), patch)


def sines_2d(side: int, width: int) -> Tensor:
    """Return an embedding of each position of a square, row by row, (side^2, width): sines and cosines of its row in
    one half of the features, of its column in the other, of wavelengths from 2 pi to 20,000 pi positions.
    """
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies  # (side, width / 4)
    sines = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width / 2)
    rows, columns = sines[:, None].expand(-1, side, -1), sines[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)
