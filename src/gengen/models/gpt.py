"""Decoder-only transformer. Its config says which positions, norms, activations and masks; the residual stream is
always pre-norm.
"""

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gengen.config.model import GPTConfig
from gengen.models.cross_entropy import linear_cross_entropy
from gengen.models.kv_cache import Cache, Past
from gengen.models.linear import Linear

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Visible = Union[Tensor, "BlockMask", None]
"""Which keys a query sees: (B or 1, 1, T, S) bool, or blocks for FlexAttention; None: itself and all before it."""


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
    """Radians that pair i of a head turns by at each position, theta^(-2i/D), (D/2,) fp32; stretched as rope_scaling
    says.

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
    """Angles of rotary position embedding (Su et al. 2021) as cos and sin, always fp32: (2, ..., T, D/2) for positions
    (..., T).
    """
    angles = positions.float()[..., None] * frequencies
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + D/2}) by its angle. x: (B, H, T, D) in fp32; rotary: (2, [B, 1,] T, D/2)."""
    cos, sin = rotary
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def sees(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """Whether a token at position `query` sees one at `key`: itself and those before it, `window` of them where that
    is set.
    """
    seen = key <= query
    return seen if window is None else seen & (query - key < window)


def visible_keys(documents: Tensor | None, window: int | None, tokens: Tensor, blocks: bool = False) -> Visible:
    """Which tokens of the same window of text (B, T) each sees; documents: (B, T), the number of each token's
    document.

    As a mask; or as FlexAttention's blocks, where what is not seen costs nothing.
    """
    if documents is None and window is None:
        return None
    B, T = tokens.shape
    if blocks:
        from torch.nn.attention.flex_attention import create_block_mask

        def seen(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            near = sees(query, key, window)
            return near if documents is None else near & (documents[b, query] == documents[b, key])

        return create_block_mask(seen, B if documents is not None else None, None, T, T, tokens.device)
    place = torch.arange(T, device=tokens.device)
    mask = sees(place[:, None], place, window)[None, None]  # (1, 1, T, T)
    return mask if documents is None else mask & (documents[:, None, :, None] == documents[:, None, None, :])


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Visible) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys that are seen. q: (B, H, T, D); k, v: (B, KV, S, D), each for H / KV
    query heads.
    """
    shared = q.shape[1] != k.shape[1]
    if visible is not None and not isinstance(visible, Tensor):
        from torch.nn.attention.flex_attention import flex_attention

        y: Tensor = flex_attention(q, k, v, block_mask=visible, enable_gqa=shared)
        return y
    if q.device.type == "cpu" and q.shape[2] == 1 and visible is not None and torch.compiler.is_compiling():
        return attend_one(q, k, v, visible)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled() and k.shape[2] <= SHORT:
        return attend_short(q, k, v, visible)
    return F.scaled_dot_product_attention(q, k, v, visible, is_causal=visible is None, enable_gqa=shared)


def attend_one(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """The same for one query a row in compiled code on a CPU, where it is reading keys and values that takes the time:
    sums of products, of which the compiler makes one pass over either (benchmarks/kernels.py)."""
    B, H, _, D = q.shape
    grouped = q.view(B, k.shape[1], -1, 1, D).float()  # (B, KV, H / KV, 1, D)
    scores = (grouped * k[:, :, None]).sum(dim=-1) * D**-0.5  # (B, KV, H / KV, S) fp32
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return (weights[..., None] * v[:, :, None]).sum(dim=-2).to(v.dtype).view(B, H, 1, D)


SHORT = 512  # keys; all scores of a layer are held for the backward pass


def attend_short(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """The same by plain products, all scores at once: faster than torch's fused kernel where bf16 is trained on a CPU
    and texts are short (benchmarks/kernels.py). Scores are rounded to bf16, as under autocast; softmax is fp32 inside.
    """
    B, H, T, D = q.shape
    k, v = (x.repeat_interleave(H // x.shape[1], dim=1).flatten(0, 1) for x in (k, v))
    seen = torch.ones(T, T, dtype=torch.bool).tril() if visible is None else visible.expand(B, H, -1, -1).flatten(0, 1)
    bias = torch.zeros(seen.shape, dtype=q.dtype).masked_fill(~seen, float("-inf"))
    scores = torch.baddbmm(bias, q.flatten(0, 1), k.mT, alpha=D**-0.5)  # (B H, T, S)
    return torch.bmm(scores.softmax(dim=-1), v).view(B, H, T, D)


class Attention(nn.Module):
    """Causal self-attention in which `heads / kv_heads` query heads share each key and value head."""

    def __init__(self, c: GPTConfig):
        super().__init__()
        assert c.width and c.heads and c.kv_heads and c.head_size
        self.heads, self.kv_heads, self.head_size = c.heads, c.kv_heads, c.head_size
        self.qkv = Linear(c.width, (c.heads + 2 * c.kv_heads) * c.head_size, bias=c.bias)
        setattr(
            self.qkv.weight, "parts", [c.heads * c.head_size, c.kv_heads * c.head_size, c.kv_heads * c.head_size]
        )  # for Muon
        self.query_norm, self.key_norm = (
            RMSNorm(c.head_size, c.norm_eps) if c.qk_norm else nn.Identity() for _ in range(2)
        )
        self.out = Linear(c.heads * c.head_size, c.width, bias=c.bias)

    def forward(self, x: Tensor, rotary: Tensor | None, visible: Visible, past: Past | None = None) -> Tensor:
        B, T, _ = x.shape  # (B, T, C) -> (B, T, C)
        heads = self.qkv(x).view(B, T, -1, self.head_size).transpose(1, 2)  # (B, H + 2 KV, T, D)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        q, k = self.query_norm(q.float()), self.key_norm(k.float())
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        q, k = q.to(v.dtype), k.to(v.dtype)  # normed and turned in fp32, rounded once
        if past is not None:
            k, v = past.append(k, v)
        return self.out(attend(q, k, v, visible).transpose(1, 2).reshape(B, T, -1))


class SwiGLU(nn.Module):
    """W_out (silu(W_gate x) * W_up x) (Shazeer 2020)."""

    def __init__(self, width: int, ff: int, bias: bool = False):
        super().__init__()
        self.gate_up = Linear(width, 2 * ff, bias=bias)
        setattr(self.gate_up.weight, "parts", [ff, ff])  # for Muon
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


class Block(nn.Module):
    def __init__(self, c: GPTConfig):
        super().__init__()
        assert c.width and c.ff
        self.attention_norm, self.attention = build_norm(c), Attention(c)
        self.mlp_norm = build_norm(c)
        self.mlp = SwiGLU(c.width, c.ff, c.bias) if c.mlp == "swiglu" else MLP(c.width, c.ff, c.mlp, c.bias)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: Tensor, rotary: Tensor | None, visible: Visible, past: Past | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, visible, past))  # (B, T, C)
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

    def reset_parameters(self) -> None:
        """Matrices from N(0, 1/fan_in). What is added to the residual stream starts at zero, so each block is the
        identity; or scaled by depth, as in GPT-2."""
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

    def adopted(self, weights: dict[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
        """The weights of a model of `vocab_size` tokens or fewer than ours, as ours: each token new to it starts as
        the mean of its own.
        """
        for name in ("embedding.weight", "head.weight"):
            if name in weights and vocab_size < self.vocab_size:
                known = weights[name][:vocab_size]
                weights = weights | {
                    name: torch.cat([known, known.mean(0).expand(padded(self.vocab_size) - vocab_size, -1)])
                }
        return weights

    def compiled(self) -> "GPT":
        """The same weights in a model whose blocks are compiled: the code of one, made once, serves all, in a fraction
        of the time that compiling the whole takes."""
        twin = copy.copy(self)
        twin.is_compiled = True
        blocks: list[Any] = [torch.compile(block) for block in self.blocks]
        twin._modules = self._modules | {"blocks": nn.ModuleList(blocks)}
        return twin

    def takes_blocks(self, device: torch.device) -> bool:
        """FlexAttention is fast as compiled CUDA code alone."""
        return self.is_compiled and device.type == "cuda"

    def empty_cache(self, rows: int, slots: int, dtype: torch.dtype | None = None) -> Cache:
        """For `rows` texts of at most `slots` tokens. dtype: that of the keys and values, null = of the weights."""
        c, weight = self.config, self.embedding.weight
        assert c.layers and c.kv_heads and c.head_size
        shape = (rows, c.kv_heads, slots, c.head_size)
        keys, values = ([weight.new_zeros(shape, dtype=dtype) for _ in range(c.layers)] for _ in range(2))
        return Cache(keys, values, torch.zeros(rows, dtype=torch.long, device=weight.device))

    def features(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """What the head reads, (B, T, C), for tokens (B, T).

        With a cache, row b's tokens follow the lengths[b] it holds, in the same document; the caller then adds to
        `lengths` how many were real.
        """
        c = self.config
        places = torch.arange(tokens.shape[1], device=tokens.device)
        pasts: Sequence[Past | None] = [None] * len(self.blocks)
        if cache is not None:
            positions = cache.lengths[:, None] + places  # (B, T)
            pasts = cache.layers(positions)
            slots = torch.arange(cache.slots, device=tokens.device)
            masks: dict[int | None, Visible] = {
                w: sees(positions[:, None, :, None], slots, w) for w in set(c.windows())
            }
        else:
            positions, documents = places, None
            if c.document_token is not None:
                begins = tokens == c.document_token
                documents = begins.cumsum(dim=1)  # (B, T)
                positions = places - (places * begins).cummax(dim=1).values  # from each document's first token
            masks = {w: visible_keys(documents, w, tokens, self.takes_blocks(tokens.device)) for w in set(c.windows())}
        x = self.embedding(tokens)
        rotary = None
        if self.positions is not None:
            x = x + self.positions(positions)
        else:
            rotary = rotary_table(
                positions if positions.dim() == 1 else positions[:, None], rotary_frequencies(c, tokens.device)
            )
        for block, past, window in zip(self.blocks, pasts, c.windows(), strict=True):
            if c.activation_checkpointing and self.training:
                x = checkpoint(block, x, rotary, masks[window], past, use_reentrant=False)
            else:
                x = block(x, rotary, masks[window], past)
        return self.norm(x)

    def forward(self, tokens: Tensor, cache: Cache | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of tokens (B, T); for the cache see `features`.

        With labels (B, T), their summed cross-entropy in nats instead, for which no logits of the whole batch are
        held.
        """
        features = self.features(tokens, cache)
        if labels is None:
            return self.logits(features)
        weight = self.head.weight[: self.vocab_size]
        return linear_cross_entropy(
            features.flatten(0, 1), weight, labels.flatten(), self.config.logit_softcap, self.config.z_loss
        )

    def logits(self, features: Tensor) -> Tensor:
        """What the head makes of features (..., C): (..., V)."""
        logits: Tensor = self.head(features)[..., : self.vocab_size]
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits.float() / cap)
