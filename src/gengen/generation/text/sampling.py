"""From logits to tokens: pure functions over a batch, computed in fp32 or finer."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gengen.config.commands import DecodingSettings
from gengen.errors import UserError
from gengen.generation.noise import stream


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


class Controls:
    """The logit bias and the penalties of a batch, and the counts they need."""

    def __init__(self, c: DecodingSettings, prompts: Sequence[Sequence[int]], vocab_size: int, device: torch.device):
        self.penalties = (c.repetition_penalty, c.presence_penalty, c.frequency_penalty)
        self.bias = self.prompted = self.drawn = None
        if bias := c.bias():
            if outside := [token for token in bias if not 0 <= token < vocab_size]:
                raise UserError(f"logit_bias: there is no token {outside[0]}; the vocabulary has 0..{vocab_size - 1}")
            self.bias = torch.zeros(vocab_size, device=device)
            self.bias[list(bias)] = torch.tensor(list(bias.values()), device=device)
        if self.penalties != (1, 0, 0):
            self.prompted = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=device)
            for row, prompt in zip(self.prompted, prompts, strict=True):
                row[[token for token in prompt if token < vocab_size]] = True
            self.drawn = torch.zeros(len(prompts), vocab_size, device=device)

    def applied(self, logits: Tensor) -> Tensor:
        """Return logits (B, V) with the bias and the penalties."""
        if self.bias is not None:
            logits = logits + self.bias
        if self.prompted is not None and self.drawn is not None:
            logits = penalized(logits, self.prompted, self.drawn, *self.penalties)
        return logits

    def add(self, tokens: Tensor) -> None:
        """Count tokens (B,) that were drawn."""
        if self.drawn is not None:
            self.drawn.scatter_add_(1, tokens[:, None], torch.ones_like(tokens[:, None], dtype=torch.float32))

    def rows(self, index: Sequence[int]) -> "Controls":
        """Return those of some rows."""
        part = copy.copy(self)
        if self.prompted is not None and self.drawn is not None:
            part.prompted, part.drawn = self.prompted[index], self.drawn[index]
        return part


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


def uniforms(seed: int, indices: Sequence[int], count: int, first: int = 0) -> Tensor:
    """Return draws from [0, 1), (n, count) fp64, the first of them number `first` of its row; row i is a function of
    (seed, indices[i]) alone."""
    streams = [stream(seed, index) for index in indices]
    for generator in streams:
        bits = generator.bit_generator
        assert isinstance(bits, np.random.PCG64)
        bits.advance(first)  # a draw takes one step
    return torch.from_numpy(np.stack([generator.random(count) for generator in streams]))
