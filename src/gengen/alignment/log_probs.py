"""From logits to log-probabilities: of the distribution the tokens were drawn from, so with the temperature of the
draw.
"""

import torch
from torch import Tensor


def log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The log-probability of every token, (..., V), in fp32 or finer."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # before the division: bf16 has three digits
    return (logits / temperature).log_softmax(-1)


def of_tokens(log_p: Tensor, tokens: Tensor) -> Tensor:
    """log_p (..., V) at tokens (...) of the same places. On the shifted axis these are those of logits[:, :-1] and
    tokens[:, 1:].
    """
    return log_p.gather(-1, tokens[..., None])[..., 0]


def log_probs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature)[tokens], (...), for logits (..., V) and tokens (...) at the same places."""
    return of_tokens(log_softmax(logits, temperature), tokens)


def entropy(log_p: Tensor) -> Tensor:
    """-sum p log p in nats, (...), of log-probabilities (..., V), some of which may be -inf."""
    p = log_p.exp()
    return -(p * log_p.masked_fill(p == 0, 0)).sum(-1)
