"""Decoder-only transformer: pre-norm RMSNorm, rotary positions, SwiGLU, grouped-query attention, QK-norm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gengen.config.model import GPTConfig


class Past(NamedTuple):
    """One layer's part of a cache, and where in it the T new tokens of a forward pass stand."""

    keys: Tensor  # (B, KV, S, D)
    values: Tensor  # (B, KV, S, D)
    positions: Tensor  # (B, T)
    visible: Tensor  # (B, 1, T, S): whether a new token sees a slot

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys and values, (B, KV, T, D) each, in their slots; return those of all slots."""
        slots = self.positions[:, None, :, None].expand_as(k)
        return self.keys.scatter_(2, slots, k.to(self.keys.dtype)), self.values.scatter_(2, slots, v.to(self.values.dtype))


@dataclass
class Cache:
    """Keys and values of every token a batch has seen: a fixed block of memory, each row with a length of its own.

    Rows are right-padded: row b's token number p lies in slot p, and its next token goes to slot lengths[b]. What lies
    at or beyond a row's length is padding that no query of the row ever sees, so prompts of any lengths share a batch.
    """

    keys: Tensor  # (L, B, KV, S, D)
    values: Tensor  # (L, B, KV, S, D)
    lengths: Tensor  # (B,) tokens seen so far

    @classmethod
    def empty(cls, model: "GPT", rows: int, slots: int, dtype: torch.dtype | None = None) -> "Cache":
        """dtype: that of the keys and values, null = of the weights."""
        c, weight = model.config, model.embedding.weight
        assert c.layers and c.kv_heads
        keys, values = weight.new_zeros((2, c.layers, rows, c.kv_heads, slots, model.head_size), dtype=dtype)
        return cls(keys, values, torch.zeros(rows, dtype=torch.long, device=weight.device))

    def first(self, slots: int) -> "Cache":
        """The same memory up to a slot: attention costs what is in use rather than what there is room for."""
        return Cache(self.keys[..., :slots, :], self.values[..., :slots, :], self.lengths)

    def rows(self, index: Sequence[int]) -> "Cache":
        """A copy of some rows; a row may be taken several times."""
        return Cache(self.keys[:, index], self.values[:, index], self.lengths[index])

    def replace(self, index: Sequence[int], other: "Cache") -> None:
        """Put the rows of another cache with as many slots in the place of these rows."""
        self.keys[:, index], self.values[:, index], self.lengths[index] = other.keys, other.values, other.lengths

    def layers(self, positions: Tensor) -> list[Past]:
        """What each layer needs for new tokens at positions (B, T)."""
        visible = torch.arange(self.keys.shape[3], device=positions.device) <= positions[:, None, :, None]
        return [Past(keys, values, positions, visible) for keys, values in zip(self.keys, self.values, strict=True)]


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean x^2 + 1e-6) * weight, computed in fp32, returned in the dtype of x."""

    def __init__(self, width: int):
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(x.dtype)


def rotary_table(positions: Tensor, head_size: int, theta: float) -> Tensor:
    """Angles of rotary position embedding (Su et al. 2021) as cos and sin, always fp32.

    positions: (..., T) integers. Returns (2, ..., T, D/2): pair i turns by positions * theta^(-2i/D).
    """
    exponent = torch.arange(0, head_size, 2, dtype=torch.float32, device=positions.device) / head_size
    angles = positions.float()[..., None] * theta**-exponent
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + D/2}) by its angle. x: (B, H, T, D) in fp32; rotary: (2, [B, 1,] T, D/2)."""
    cos, sin = rotary
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    """Causal self-attention in which `heads / kv_heads` query heads share each key and value head."""

    def __init__(self, width: int, heads: int, kv_heads: int):
        super().__init__()
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, width // heads
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.head_size, bias=False)
        self.query_norm, self.key_norm = RMSNorm(self.head_size), RMSNorm(self.head_size)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, rotary: Tensor, past: Past | None = None) -> Tensor:  # (B, T, C) -> (B, T, C)
        B, T, C = x.shape
        heads = self.qkv(x).view(B, T, -1, self.head_size).transpose(1, 2)  # (B, H + 2 KV, T, D)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        q = rotate(self.query_norm(q.float()), rotary).to(v.dtype)  # normed and turned in fp32, rounded once
        k = rotate(self.key_norm(k.float()), rotary).to(v.dtype)
        visible = None
        if past is not None:
            k, v = past.append(k, v)
            visible = past.visible
        shared = self.heads != self.kv_heads
        y = F.scaled_dot_product_attention(q, k, v, visible, is_causal=visible is None, enable_gqa=shared)  # (B, H, T, D)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class SwiGLU(nn.Module):
    """W_out (silu(W_gate x) * W_up x) (Shazeer 2020)."""

    def __init__(self, width: int, ff: int):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * ff, bias=False)
        self.out = nn.Linear(ff, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, c: GPTConfig):
        super().__init__()
        assert c.width and c.heads and c.kv_heads and c.ff
        self.attention_norm, self.attention = RMSNorm(c.width), Attention(c.width, c.heads, c.kv_heads)
        self.mlp_norm, self.mlp = RMSNorm(c.width), SwiGLU(c.width, c.ff)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: Tensor, rotary: Tensor, past: Past | None = None) -> Tensor:  # (B, T, C) -> (B, T, C)
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, past))
        x = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return x


def padded(vocab_size: int) -> int:
    """Rows of the embedding, a multiple of 64: whole vectors. The logits beyond the vocabulary are cut off."""
    return -(-vocab_size // 64) * 64


class GPT(nn.Module):
    """Tokens in, logits of each next token out."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = c = config.resolved()
        assert c.layers and c.width and c.heads and c.vocab_size
        self.vocab_size, self.head_size = c.vocab_size, c.width // c.heads
        self.embedding = nn.Embedding(padded(c.vocab_size), c.width)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = RMSNorm(c.width)
        self.head = nn.Linear(c.width, padded(c.vocab_size), bias=False)
        self.reset_parameters()
        if c.tied:
            self.head.weight = self.embedding.weight

    def reset_parameters(self) -> None:
        """Matrices from N(0, 1/fan_in); what is added to the residual stream starts at zero, so each block is the identity."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                nn.init.ones_(parameter)
            elif name.endswith("out.weight"):
                nn.init.zeros_(parameter)
            elif name.startswith(("embedding", "head")):
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)

    def features(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """What the head reads, (B, T, C), for tokens (B, T).

        With a cache, row b's tokens follow the lengths[b] it holds; the caller then adds to `lengths` how many were real.
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        pasts: Sequence[Past | None] = [None] * len(self.blocks)
        if cache is not None:
            positions = cache.lengths[:, None] + positions  # (B, T)
            pasts = cache.layers(positions)
            positions = positions[:, None]  # (B, 1, T): one axis for the heads
        rotary = rotary_table(positions, self.head_size, self.config.rope_theta)
        x = self.embedding(tokens)
        for block, past in zip(self.blocks, pasts, strict=True):
            x = block(x, rotary, past)
        return self.norm(x)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of tokens (B, T); for the cache see `features`."""
        return self.head(self.features(tokens, cache))[..., : self.vocab_size]
