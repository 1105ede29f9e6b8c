"""The output head and its cross-entropy in one, a few rows at a time: no logits of a whole batch are ever held."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

IGNORED = -100  # the label of a token that has no loss
ROWS = 512  # at least: the weight's gradient is added to once for so many
ELEMENTS = {"cpu": 2**21, "cuda": 2**26}  # logits computed at once; on a CPU they stay in its cache


def rows_at_once(weight: Tensor) -> int:
    """Return how many rows of logits to compute at once for a head (V, C)."""
    return max(ROWS, ELEMENTS[weight.device.type] // len(weight))


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    softcap: float | None = None,
    z_loss: float = 0.0,
    vocab_size: int | None = None,
    compile: bool = False,
) -> Tensor:
    """Return the summed cross-entropy in nats, a fp32 scalar, of logits x W^T, or of softcap * tanh(logits / softcap)
    where that is given.

    x: (N, C); weight: (V, C); labels: (N,), IGNORED where nothing counts. The gradient is that of nats + z_loss * sum
    of logsumexp(logits)^2 (PaLM, Chowdhery et al. 2022, section 5); the value is the nats alone, so that it means the
    same for every z_loss. Matrix products are those of autocast, everything else is fp32, the sum of the weight's
    gradient included.

    vocab_size: rows of the weight from there on are padding, of probability 0; None = there is none. compile: what is
    done to logits beside the products is compiled.
    """
    nats: Tensor = LinearCrossEntropy.apply(x, weight, labels, softcap, z_loss, vocab_size or len(weight), compile)
    return nats


class LinearCrossEntropy(torch.autograd.Function):
    """Finds the gradient beside the loss, while a chunk's logits are at hand; the backward pass only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        labels: Tensor,
        softcap: float | None,
        z_loss: float,
        vocab_size: int,
        compile: bool,
    ) -> Tensor:
        device, chunk = x.device.type, compiled_chunk() if compile else nats_and_slope
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            inputs, w, rows = x.to(dtype), weight.to(dtype), rows_at_once(weight)
            total, x_grads, w_grad = x.new_zeros((), dtype=torch.float32), [], None
            for part, wanted in zip(inputs.split(rows), labels.split(rows), strict=True):
                nats, slope = chunk(part @ w.T, wanted, softcap, z_loss, vocab_size, any(ctx.needs_input_grad))
                total += nats
                if slope is None:
                    continue
                counted = (wanted != IGNORED)[:, None]
                x_grads.append(((slope @ w) * counted).to(x.dtype))
                if ctx.needs_input_grad[1]:  # not of a frozen head
                    share = (slope.T @ (part * counted)).float()
                    w_grad = share if w_grad is None else w_grad.add_(share)
        if x_grads:
            ctx.save_for_backward(torch.cat(x_grads), None if w_grad is None else w_grad.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_grad, w_grad = ctx.saved_tensors
        return grads[0] * x_grad, None if w_grad is None else grads[0] * w_grad, None, None, None, None, None


def nats_and_slope(
    products: Tensor, wanted: Tensor, softcap: float | None, z_loss: float, vocab_size: int, with_slope: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the nats of a chunk, a fp32 scalar, and its slope: the gradient by the products x W^T (n, V), in their
    dtype, as if every label counted."""
    logits = products.float()
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    counted, target = (wanted != IGNORED)[:, None], wanted[:, None].clamp(min=0)
    known = logits
    if vocab_size < logits.shape[1]:
        padding = torch.arange(logits.shape[1], device=logits.device) >= vocab_size
        known = logits.masked_fill(padding, float("-inf"))
    log_probabilities = known.log_softmax(dim=-1)
    nats = -(log_probabilities.gather(1, target) * counted).sum()
    if not with_slope:
        return nats, None
    normalizer = logits[:, :1] - log_probabilities[:, :1]
    slope = log_probabilities.exp_()
    if z_loss:
        slope *= 1 + 2 * z_loss * normalizer
    slope.scatter_add_(1, target, torch.full_like(normalizer, -1.0))
    if softcap:
        slope *= 1 - (logits / softcap).square()
    return nats, slope.to(products.dtype)


@cache
def compiled_chunk() -> Callable[..., tuple[Tensor, Tensor | None]]:
    return torch.compile(nats_and_slope)
