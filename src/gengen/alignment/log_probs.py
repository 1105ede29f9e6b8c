"""From logits to log-probabilities: of the distribution the tokens were drawn from, so with the temperature of the draw."""

import torch
from torch import Tensor


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # before the division: bf16 has three digits
    return (logits / temperature).log_softmax(-1)


def log_probs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature)[tokens] in fp32 or finer, of the shape of tokens (...), for logits (..., V) at the same places.

    On the shifted axis these are logits[:, :-1] and tokens[:, 1:].
    """
    return log_softmax(logits, temperature).gather(-1, tokens[..., None])[..., 0]


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """-sum p log p in nats of p = softmax(logits / temperature), (...), in fp32 or finer, for logits (..., V) of which some may be -inf."""
    log_p = log_softmax(logits, temperature)
    p = log_p.exp()
    return -(p * log_p.masked_fill(p == 0, 0)).sum(-1)
