"""Decoder-only transformer, pre-norm throughout. What GPT-2, Llama and Qwen3 differ in are fields of its config.

Notable features:
- rotary positions, stretched as Llama 3 or linearly, or learned ones
- grouped-query attention with RMSNorm of queries and keys (`qk_norm`) where asked for
- a sliding window in some layers (`window`, `window_pattern`), documents that do not see each other (`document_token`)
- SwiGLU, squared ReLU or GELU; RMSNorm or LayerNorm; norms, rotary angles, softmax and loss in fp32
- head and cross-entropy in one, so that no logits of a batch are ever held; z-loss, softcap of the logits
- a KV cache whose rows have lengths of their own, so that prompts of any lengths share a batch

How weights begin (`GPT.reset_parameters`):
| weight | at first |
|---|---|
| embedding, learned positions, head | N(0, 0.02^2) |
| attention.qkv, mlp.gate_up, mlp.up | N(0, 1 / fan_in) |
| attention.out, mlp.out, which add to the residual stream | 0; N(0, 0.02^2 / (2 layers)) with residual_init=scaled |
| norms; biases | 1; 0 |

Shapes: B rows, T tokens, C = width, H = heads, KV = kv_heads, D = head_size, S = slots of a cache, V = tokens known.
"""

import copy
import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gengen.config.model import GPTConfig
from gengen.models.kernels.attention import AttentionMask, attend, cached_mask, packed_mask
from gengen.models.kernels.cross_entropy import linear_cross_entropy
from gengen.models.kernels.dropout import Dropout
from gengen.models.kernels.linear import Linear
from gengen.models.kv_cache import Cache, LayerCache

Masks = dict[int | None, AttentionMask]
"""The mask of each window that a layer may have; None = without one."""


class GPT(nn.Module):
    """Tokens in, logits of each next token out."""

    new_parts: tuple[str, ...] = ()
    """Parts that no language model has: beside an adapter they are trained as a whole."""
    base_names: frozenset[str] = frozenset()
    """Weights that are another checkpoint's, once the model is adapted (models/lora.py)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = c = config.resolved()
        assert c.layers and c.width and c.vocab_size and c.context
        self.vocab_size, self.is_compiled = c.vocab_size, False
        self.embedding = nn.Embedding(padded(c.vocab_size), c.width)
        self.positions = nn.Embedding(c.context, c.width) if c.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = build_norm(c)
        self.head = Linear(c.width, padded(c.vocab_size), bias=False)
        self.reset_parameters()
        if c.tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, cache: Cache | None = None, labels: Tensor | None = None) -> Tensor:
        """Return logits (B, T, V) of the token after each of tokens (B, T); for the cache see `features`.

        With labels (B, T): their summed cross-entropy in nats instead, without the logits of the whole batch.
        """
        features = self.features(tokens, cache)
        if labels is None:
            return self.logits(features)
        c, weight, on_cuda = self.config, self.head.weight, features.device.type == "cuda"
        if not on_cuda:  # there, products are faster with rows in whole vectors, padding and all
            weight = weight[: self.vocab_size]
        return linear_cross_entropy(
            features.flatten(0, 1), weight, labels.flatten(), c.logit_softcap, c.z_loss, self.vocab_size,
            compile=on_cuda and self.is_compiled,
        )  # fmt: skip

    def logits(self, features: Tensor) -> Tensor:
        """Apply the head to features (..., C): (..., V)."""
        logits: Tensor = self.head(features)[..., : self.vocab_size]
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits.float() / cap)

    def features(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Return what the head reads, (B, T, C), for tokens (B, T).

        With a cache, row b's tokens follow the lengths[b] it holds, in the same document; the caller then adds to
        `lengths` how many were real.
        """
        if cache is None:
            positions, masks = self.positions_and_masks(tokens)
            return self.trunk(tokens, positions, masks, [None] * len(self.blocks))
        positions = cache.lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)  # (B, T)
        masks = {window: cached_mask(positions, cache.slots, window) for window in set(self.config.windows())}
        return self.trunk(tokens, positions, masks, cache.layers(positions))

    def positions_and_masks(self, tokens: Tensor) -> tuple[Tensor, Masks]:
        """Return the position of each token in its document, (T,) or (B, T), and the mask of each window."""
        c, positions, documents = self.config, torch.arange(tokens.shape[1], device=tokens.device), None
        if c.document_token is not None:
            begins = tokens == c.document_token
            documents = begins.cumsum(dim=1)  # (B, T)
            positions = positions - (positions * begins).cummax(dim=1).values  # from each document's first token
        blocks = self.uses_flex_attention(tokens.device)
        return positions, {window: packed_mask(tokens, documents, window, blocks) for window in set(c.windows())}

    def trunk(self, tokens: Tensor, positions: Tensor, masks: Masks, caches: Sequence[LayerCache | None]) -> Tensor:
        """Embed tokens (B, T), run all blocks, and return their normed result, (B, T, C)."""
        c, rotary = self.config, None
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions(positions)
        else:
            by_row = positions if positions.dim() == 1 else positions[:, None]  # (B, 1, T): the same for all heads
            rotary = rotary_table(by_row, rotary_frequencies(c, tokens.device))
        for block, cache, window in zip(self.blocks, caches, c.windows(), strict=True):
            if c.activation_checkpointing and self.training:
                x = checkpoint(block, x, rotary, masks[window], cache, use_reentrant=False)
            else:
                x = block(x, rotary, masks[window], cache)
        return self.norm(x)

    # --- made, adapted, compiled, sharded

    def units(self) -> Sequence[nn.Module]:
        """Return the parts that weights are sharded by: the blocks."""
        return list(self.blocks)

    def reset_parameters(self) -> None:
        """Set the weights as the table above says. Where what joins the residual stream begins at 0, each block is the
        identity."""
        c = self.config
        assert c.layers
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                (nn.init.zeros_ if name.endswith("bias") else nn.init.ones_)(parameter)
            elif name.endswith("out.weight"):
                nn.init.zeros_(parameter)
                if c.residual_init == "scaled":
                    nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * c.layers))
            elif name.startswith(("embedding", "positions", "head")):
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)

    def adapt_weights(self, weights: dict[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
        """Return the weights of a model that knows `vocab_size` tokens, ours or fewer, as ours: each token new to it
        begins as the mean of its own."""
        for name in ("embedding.weight", "head.weight"):
            if name in weights and vocab_size < self.vocab_size:
                known = weights[name][:vocab_size]
                new = known.mean(0).expand(padded(self.vocab_size) - vocab_size, -1)
                weights = weights | {name: torch.cat([known, new])}
        return weights

    def compiled(self) -> "GPT":
        """Return the same weights in a model whose blocks are compiled: the code of one, made once, serves all, in a
        fraction of the time that compiling the whole takes."""
        twin = copy.copy(self)
        twin.is_compiled = True
        blocks = [cast(nn.Module, torch.compile(block)) for block in self.blocks]
        twin._modules = self._modules | {"blocks": nn.ModuleList(blocks)}
        return twin

    def uses_flex_attention(self, device: torch.device) -> bool:
        """Return whether masks are blocks for FlexAttention, which is fast as compiled CUDA code alone."""
        return self.is_compiled and device.type == "cuda"

    def empty_cache(self, rows: int, slots: int, dtype: torch.dtype | None = None) -> Cache:
        """Return a cache for `rows` texts of at most `slots` tokens.

        dtype: of its keys and values; None = of the weights.
        """
        c, weight = self.config, self.embedding.weight
        assert c.layers and c.kv_heads and c.head_size
        shape = (rows, c.kv_heads, slots, c.head_size)
        keys = [weight.new_zeros(shape, dtype=dtype) for _ in range(c.layers)]
        values = [weight.new_zeros(shape, dtype=dtype) for _ in range(c.layers)]
        return Cache(keys, values, torch.zeros(rows, dtype=torch.long, device=weight.device))


class Block(nn.Module):
    """Two residual branches: attention, which mixes tokens, and an MLP, which works on each alone."""

    def __init__(self, c: GPTConfig):
        super().__init__()
        assert c.width and c.ff
        self.attention_norm, self.attention = build_norm(c), Attention(c)
        self.mlp_norm = build_norm(c)
        self.mlp = SwiGLU(c.width, c.ff, c.bias) if c.mlp == "swiglu" else MLP(c.width, c.ff, c.mlp, c.bias)
        self.dropout = Dropout(c.dropout)

    def forward(
        self, x: Tensor, rotary: Tensor | None, mask: AttentionMask, cache: LayerCache | None = None
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, mask, cache))  # (B, T, C)
        x = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return x


class Attention(nn.Module):
    """Causal self-attention in which `heads / kv_heads` query heads share each key and value head."""

    def __init__(self, c: GPTConfig):
        super().__init__()
        assert c.width and c.heads and c.kv_heads and c.head_size
        self.heads, self.kv_heads, self.head_size = c.heads, c.kv_heads, c.head_size
        rows = [c.heads * c.head_size, c.kv_heads * c.head_size, c.kv_heads * c.head_size]
        self.qkv = Linear(c.width, sum(rows), bias=c.bias)
        setattr(self.qkv.weight, "stacked_rows", rows)  # for Muon
        self.query_norm = RMSNorm(c.head_size, c.norm_eps) if c.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(c.head_size, c.norm_eps) if c.qk_norm else nn.Identity()
        self.out = Linear(c.heads * c.head_size, c.width, bias=c.bias)

    def forward(
        self, x: Tensor, rotary: Tensor | None, mask: AttentionMask, cache: LayerCache | None = None
    ) -> Tensor:
        B, T, _ = x.shape  # (B, T, C) -> (B, T, C)
        heads = self.qkv(x).view(B, T, -1, self.head_size).transpose(1, 2)  # (B, H + 2 KV, T, D)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        q, k = self.query_norm(q.float()), self.key_norm(k.float())
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        q, k = q.to(v.dtype), k.to(v.dtype)  # normed and turned in fp32, rounded once
        if cache is not None:
            k, v = cache.append(k, v)
        return self.out(attend(q, k, v, mask).transpose(1, 2).reshape(B, T, -1))


class SwiGLU(nn.Module):
    """W_out (silu(W_gate x) * W_up x) (Shazeer 2020)."""

    def __init__(self, width: int, ff: int, bias: bool = False):
        super().__init__()
        self.gate_up = Linear(width, 2 * ff, bias=bias)
        setattr(self.gate_up.weight, "stacked_rows", [ff, ff])  # for Muon
        self.out = Linear(ff, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * up)


class MLP(nn.Module):
    """W_out f(W_up x), where f is GELU in its tanh form or the square of ReLU (So et al. 2021)."""

    def __init__(self, width: int, ff: int, activation: str, bias: bool = False):
        super().__init__()
        self.up = Linear(width, ff, bias=bias)
        self.out = Linear(ff, width, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        x = self.up(x)
        return self.out(F.gelu(x, approximate="tanh") if self.activation == "gelu" else F.relu(x).square())


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean x^2 + eps) * weight, computed in fp32, returned in the dtype of x."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(var + eps) * weight + bias, computed in fp32, returned in the dtype of x."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), bias, self.eps).to(x.dtype)


def build_norm(c: GPTConfig) -> nn.Module:
    assert c.width
    return RMSNorm(c.width, c.norm_eps) if c.norm == "rmsnorm" else LayerNorm(c.width, c.norm_eps, bias=c.bias)


def rotary_frequencies(c: GPTConfig, device: torch.device) -> Tensor:
    """Return the radians that pair i of a head turns by at each position, theta^(-2i/D), (D/2,) fp32; stretched as
    rope_scaling says.

    linear (Chen et al. 2023): all divided by rope_factor. llama3 (Llama 3.1): those whose wavelength is beyond
    rope_context / rope_low are divided, those within rope_context / rope_high are not, between the two by a linear
    mix.
    """
    assert c.head_size
    exponent = torch.arange(0, c.head_size, 2, dtype=torch.float32, device=device) / c.head_size
    frequencies = c.rope_theta**-exponent
    if c.rope_scaling == "linear":
        return frequencies / c.rope_factor
    if c.rope_scaling == "llama3":
        turns = c.rope_context * frequencies / (2 * math.pi)  # within the former context
        kept = ((turns - c.rope_low) / (c.rope_high - c.rope_low)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / c.rope_factor)
    return frequencies


def rotary_table(positions: Tensor, frequencies: Tensor) -> Tensor:
    """Return cos and sin of the angles of rotary position embedding (Su et al. 2021), always fp32: (2, ..., T, D/2)
    for positions (..., T)."""
    angles = positions.float()[..., None] * frequencies
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + D/2}) by its angle. x: (B, H, T, D) in fp32; rotary: (2, [B, 1,] T, D/2)."""
    cos, sin = rotary
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def padded(vocab_size: int) -> int:
    """Return the rows of the embedding, a multiple of 64: whole vectors. Logits beyond the vocabulary are cut off."""
    return -(-vocab_size // 64) * 64
