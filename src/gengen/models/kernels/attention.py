"""Attention: which keys a query sees, and which kernel computes it where."""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Union

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

AttentionMask = Union[Tensor, "BlockMask", None]
"""Which keys a query sees: (B or 1, 1, T, S) bool, or blocks for FlexAttention; None: itself and all before it."""

FEWEST_QUERIES = 4
"""Queries a row that attention with a cache has at least on a CPU: torch's kernel sums in another order for fewer, so
that a token read alone would get other bits than in a prompt.
"""

BF16_CPU_KEYS = 512  # up to which attend_bf16_cpu is taken: it holds all scores of a layer for the backward pass


def attend(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v over the keys that each query sees: (B, H, T, D).

    q: (B, H, T, D); k, v: (B, KV, S, D), each for H / KV query heads. This is the one place that chooses a kernel.
    """
    shared = q.shape[1] != k.shape[1]
    if mask is not None and not isinstance(mask, Tensor):  # blocks that no query sees cost nothing
        from torch.nn.attention.flex_attention import flex_attention

        y: Tensor = flex_attention(q, k, v, block_mask=mask, enable_gqa=shared)
        return y
    if q.device.type == "cuda" and shared and (mask is not None or q.dtype == torch.float32):
        # only kernels that take neither share heads: torch would take plain products, T x S of them, and not say so
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        shared = False
    if q.device.type == "cpu":
        if q.shape[2] == 1 and mask is not None and torch.compiler.is_compiling():
            return attend_decode_cpu(q, k, v, mask)
        if q.dtype == torch.bfloat16 and torch.is_grad_enabled() and k.shape[2] <= BF16_CPU_KEYS:
            return attend_bf16_cpu(q, k, v, mask)
        if q.shape[2] < FEWEST_QUERIES and mask is not None and not torch.is_grad_enabled():
            T, repeats = q.shape[2], -(-FEWEST_QUERIES // q.shape[2])
            q, mask = q.repeat(1, 1, repeats, 1), mask.expand(-1, -1, T, -1).repeat(1, 1, repeats, 1)
            return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=shared)[:, :, :T]
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=shared)


def attend_decode_cpu(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Compute `attend` for one query a row in compiled code on a CPU, where reading keys and values takes the time: as
    sums of products, of which the compiler makes one pass over either (benchmarks/kernels.py)."""
    B, H, _, D = q.shape
    grouped = q.view(B, k.shape[1], -1, 1, D).float()  # (B, KV, H / KV, 1, D)
    scores = (grouped * k[:, :, None]).sum(dim=-1) * D**-0.5  # (B, KV, H / KV, S) fp32
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return (weights[..., None] * v[:, :, None]).sum(dim=-2).to(v.dtype).view(B, H, 1, D)


def attend_bf16_cpu(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Compute `attend` by plain products, all scores at once: faster than torch's fused kernel where bf16 is trained
    on a CPU and texts are short (benchmarks/kernels.py). Scores are rounded to bf16, as under autocast; softmax is
    fp32 inside."""
    B, H, T, D = q.shape
    k, v = (x.repeat_interleave(H // x.shape[1], dim=1).flatten(0, 1) for x in (k, v))
    visible = torch.ones(T, T, dtype=torch.bool).tril() if mask is None else mask.expand(B, H, -1, -1).flatten(0, 1)
    bias = torch.zeros(visible.shape, dtype=q.dtype).masked_fill(~visible, float("-inf"))
    scores = torch.baddbmm(bias, q.flatten(0, 1), k.mT, alpha=D**-0.5)  # (B H, T, S)
    return torch.bmm(scores.softmax(dim=-1), v).view(B, H, T, D)


# --- masks


def is_visible(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """Return whether a token at position `query` sees one at `key`: itself and those before it, `window` of them where
    that is set."""
    before = key <= query
    return before if window is None else before & (query - key < window)


def packed_mask(tokens: Tensor, documents: Tensor | None, window: int | None, blocks: bool = False) -> AttentionMask:
    """Return which tokens of the same row (B, T) each token sees: those of its own document, within the window.

    documents: (B, T), the number of each token's document; None = a row is one. blocks: for FlexAttention.
    """
    if documents is None and window is None:
        return None
    B, T = tokens.shape
    if blocks:
        from torch.nn.attention.flex_attention import create_block_mask

        def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            near = is_visible(query, key, window)
            return near if documents is None else near & (documents[b, query] == documents[b, key])

        rows = B if documents is not None else None
        blocked: BlockMask = compiled(create_block_mask)(visible, rows, None, T, T, tokens.device)
        return blocked
    place = torch.arange(T, device=tokens.device)
    mask = is_visible(place[:, None], place, window)[None, None]  # (1, 1, T, T)
    return mask if documents is None else mask & (documents[:, None, :, None] == documents[:, None, None, :])


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return torch.compile of a function, made once. Uncompiled, the blocks of a mask would hold all of (B, T, T)."""
    return torch.compile(function)


def cached_mask(positions: Tensor, slots: int, window: int | None) -> Tensor:
    """Return which slots of a cache the new tokens at positions (B, T) see: (B, 1, T, S)."""
    return is_visible(positions[:, None, :, None], torch.arange(slots, device=positions.device), window)
