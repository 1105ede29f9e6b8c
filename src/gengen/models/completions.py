"""A language model read at the tokens of answers. Per token all lives on the shifted axis: index i belongs to
tokens[:, i + 1].
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gengen.alignment.log_probs import log_probs
from gengen.models.gpt import GPT
from gengen.models.kernels.cross_entropy import rows_at_once

TokenFunction = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""(logits (n, V), the tokens (n,) drawn from them) -> tensors (n,)."""


def token_values(model: GPT, tokens: Tensor, mask: Tensor, function: TokenFunction) -> tuple[Tensor, ...]:
    """Return what a function computes at each token of the answers, each (B, T - 1), 0 off the mask.

    tokens: (B, T), padded on the right; mask: (B, T - 1), 1 where tokens[:, i + 1] is part of the answer. The head,
    which is most of the work for a large vocabulary, is applied to those places alone, and to a few rows at a time: on
    a CPU that is twice as fast. Where there are more rows, the backward pass computes logits again, a few at a time as
    well, so that no logits of a batch are ever held.
    """
    is_answer = mask > 0
    rows = rows_at_once(model.embedding.weight)
    features = model.features(tokens[:, :-1])[is_answer].split(rows)
    drawn = tokens[:, 1:][is_answer].split(rows)

    def read_rows(part: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        return function(model.logits(part), tokens)

    if len(features) > 1:
        read_rows = partial(checkpoint, read_rows, use_reentrant=False, preserve_rng_state=False)
    parts = [read_rows(part, tokens) for part, tokens in zip(features, drawn, strict=True)]
    return tuple(placed(torch.cat(values), is_answer) for values in zip(*parts, strict=True))


def placed(values: Tensor, where: Tensor) -> Tensor:
    """Put values (N,) where `where` (B, T - 1) holds, row by row; 0 elsewhere."""
    return torch.zeros(where.shape, dtype=values.dtype, device=values.device).masked_scatter(where, values)


def answer_log_probs(model: GPT, tokens: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the log-probability of each answer's token, (B, T - 1) fp32, 0 off the mask; tokens and mask as above."""
    return token_values(model, tokens, mask, lambda logits, drawn: (log_probs(logits, drawn, temperature),))[0]


def at_last_token(values: Tensor, mask: Tensor) -> Tensor:
    """Of values (B, T), one a token, return that of each answer's last token, (B,). mask: (B, T - 1), as above; no
    answer is empty."""
    places = torch.arange(1, values.shape[1], device=values.device)
    return values.gather(1, (places * (mask > 0)).amax(dim=1, keepdim=True))[:, 0]


def right_padded(rows: list[tuple[list[int], list[int]]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return (tokens (B, T) int64, mask (B, T - 1) fp32) of (prompt, answer) pairs of tokens."""
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    tokens, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest - 1)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.tensor([*prompt, *answer])
        mask[row, len(prompt) - 1 : end - 1] = 1
    return tokens.to(device), mask.to(device)
