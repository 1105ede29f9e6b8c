"""What a training step costs, by formula."""

from collections.abc import Callable
from typing import Any

from gengen.config.model import GPTConfig
from gengen.models.gpt import padded


def gpt_flops_per_token(config: GPTConfig, context: int) -> float:
    """Floating-point operations, forward and backward, for each token of windows of `context` tokens.

    Counts 2 for each multiplication-addition, and the backward pass as twice the forward pass: 6 for each weight of a
    matrix (projections, MLP and output head; looking up an embedding costs none), and 12 L H D T / 2 in attention, of
    which a causal kernel does only half the square. Norms, rotary angles, softmax and recomputation are left out.
    """
    c = config.resolved()
    assert c.layers and c.width and c.heads and c.kv_heads and c.ff and c.vocab_size
    head_size = c.width // c.heads
    attention = c.width * (c.heads + 2 * c.kv_heads) * head_size + c.width**2
    weights = c.layers * (attention + 3 * c.width * c.ff) + c.width * padded(c.vocab_size)
    return 6.0 * weights + 12 * c.layers * c.heads * head_size * context / 2


def forward_flops(model: Callable[..., Any], *inputs: Any) -> float:
    """Floating-point operations of one forward pass, 2 for each multiplication-addition of convolutions, matrix products and
    attention; the rest is left out. Model and inputs may be on the meta device, where nothing is computed."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return float(counter.get_total_flops())
