"""From logits to tokens: pure functions over a batch, computed in fp32 or finer."""

import torch
import torch.nn.functional as F
from torch import Tensor


def penalized(
    logits: Tensor, prompted: Tensor, drawn: Tensor, repetition: float, presence: float, frequency: float
) -> Tensor:
    """Return logits (B, V) that make tokens less likely which are there already.

    prompted: whether a token is in the prompt; drawn: how often it was drawn; both (B, V).

    repetition (CTRL, Keskar et al. 2019, section 4.1): positive logits of tokens in the prompt or drawn are divided by
    it, negative ones multiplied. presence and frequency: taken from the logits of drawn tokens, once and once for each
    time.
    """
    harder = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(prompted | (drawn > 0), harder, logits)
    return logits - presence * (drawn > 0) - frequency * drawn


def next_token_probabilities(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Return the distribution to draw from, (B, V) fp32, for logits (B, V).

    In this order: softmax(logits / temperature), where temperature 0 puts all on the likeliest token; the top_k
    likeliest tokens; the fewest of these that hold top_p of what is left; those at least min_p times as likely as the
    likeliest.
    """
    logits = logits.float()
    if temperature == 0:
        likeliest, token = logits.max(dim=-1, keepdim=True)
        return torch.zeros_like(logits).scatter(-1, token, torch.where(likeliest.isfinite(), 1.0, float("nan")))
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / max(temperature, 1e-30)  # at most 0: nothing overflows
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(~among_largest(logits, top_k), float("-inf"))
    probabilities = logits.softmax(dim=-1)
    if top_p is not None and top_p < 1:
        probabilities = probabilities * within_nucleus(probabilities, top_p)
    if min_p is not None:
        probabilities = probabilities * (probabilities >= min_p * probabilities.amax(dim=-1, keepdim=True))
    if top_p is not None or min_p is not None:
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return probabilities


def among_largest(x: Tensor, k: int) -> Tensor:
    """Return whether each entry of (B, V) is one of its row's k largest: exactly k are; of equal ones the first."""
    smallest = x.topk(k, dim=-1).values[:, -1:]
    kept = x >= smallest
    if int(kept.sum()) == k * len(x):
        return kept
    above, level = x > smallest, x == smallest
    return above | (level & (level.cumsum(dim=-1) <= k - above.sum(dim=-1, keepdim=True)))


def within_nucleus(probabilities: Tensor, p: float) -> Tensor:
    """Return whether each entry of (B, V) is one of the fewest that together reach p (Holtzman et al. 2020); of equal
    ones the first."""
    largest, order = probabilities.sort(dim=-1, descending=True, stable=True)
    mass = largest.double().cumsum(dim=-1).float()
    missing = F.pad(mass[:, :-1], (1, 0)) < p  # the likelier tokens fall short; none is likelier than the first
    return torch.zeros_like(missing).scatter(-1, order, missing)


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Draw tokens (B,) by inverse CDF: the first whose cumulative probability exceeds uniforms (B,), each in [0, 1).

    probabilities (B, V) need not sum to 1 exactly. A token of probability 0 is never drawn; if any is NaN, V is
    returned.
    """
    cumulative = probabilities.double().cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    token = torch.searchsorted(cumulative, uniforms.double()[:, None] * total, right=True)
    last = torch.searchsorted(cumulative, total)  # where a uniform just below 1 is rounded to 1
    return torch.minimum(token, last)[:, 0]
