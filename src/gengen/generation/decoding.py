"""From logits to tokens: pure functions over a batch, computed in fp32 or finer."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gengen.generation.noise import stream


def next_token_probabilities(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """The distribution to draw from, (B, V) fp32, for logits (B, V).

    In this order: softmax(logits / temperature), where temperature 0 puts all on the likeliest token; the top_k
    likeliest tokens; the fewest of these that hold top_p of what is left.
    """
    logits = logits.float()
    if temperature == 0:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / max(temperature, 1e-30)  # at most 0: nothing overflows
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(~among_largest(logits, top_k), float("-inf"))
    probabilities = logits.softmax(dim=-1)
    if top_p is not None and top_p < 1:
        probabilities = probabilities * within_nucleus(probabilities, top_p)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return probabilities


def among_largest(x: Tensor, k: int) -> Tensor:
    """Whether each entry of (B, V) is one of its row's k largest: exactly k are, and of equal ones the first."""
    smallest = x.topk(k, dim=-1).values[:, -1:]
    above, level = x > smallest, x == smallest
    return above | (level & (level.cumsum(dim=-1) <= k - above.sum(dim=-1, keepdim=True)))


def within_nucleus(probabilities: Tensor, p: float) -> Tensor:
    """Whether each entry of (B, V) is one of the fewest that together reach p (Holtzman et al. 2020); of equal ones the first."""
    largest, order = probabilities.sort(dim=-1, descending=True, stable=True)
    mass = largest.double().cumsum(dim=-1).float()
    missing = F.pad(mass[:, :-1], (1, 0)) < p  # the likelier tokens fall short; none is likelier than the first
    return torch.zeros_like(missing).scatter(-1, order, missing)


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens (B,) by inverse CDF: the first whose cumulative probability exceeds uniforms (B,), each in [0, 1).

    probabilities (B, V) need not sum to 1 exactly. A token of probability 0 is never drawn; if any is NaN, V is returned.
    """
    cumulative = probabilities.double().cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    token = torch.searchsorted(cumulative, uniforms.double()[:, None] * total, right=True)
    last = torch.searchsorted(cumulative, total)  # where a uniform just below 1 is rounded to 1
    return torch.minimum(token, last)[:, 0]


def uniforms(seed: int, indices: Sequence[int], count: int) -> Tensor:
    """Draws from [0, 1), (n, count) fp64: row i is a function of (seed, indices[i]) alone, and the same for every count."""
    return torch.from_numpy(np.stack([stream(seed, index).random(count) for index in indices]))
