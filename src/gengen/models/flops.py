"""What a training step costs, by formula."""

from collections.abc import Callable

from torch import Tensor

from gengen.config.model import GPTConfig


def gpt_flops_per_token(config: GPTConfig, context: int) -> float:
    """Return floating-point operations, forward and backward, for each token of windows of `context` tokens.

    Counts 2 for each multiplication-addition, and the backward pass as twice the forward pass: 6 for each weight of a
    matrix (projections, MLP and output head; looking up an embedding costs none), and 12 H D a query-key pair in
    attention, of which a causal kernel does only half the square, and a window still less. Norms, rotary angles,
    softmax and recomputation are left out.
    """
    c = config.resolved()
    assert c.layers and c.width and c.heads and c.kv_heads and c.head_size and c.ff and c.vocab_size
    attention = c.width * (2 * c.heads + 2 * c.kv_heads) * c.head_size
    mlp = (3 if c.mlp == "swiglu" else 2) * c.width * c.ff
    keys = (
        sum(pairs(context, window) for window in c.windows()) / context
    )  # of all layers, that a token sees on average
    return 6.0 * (c.layers * (attention + mlp) + c.width * c.vocab_size) + 12.0 * c.heads * c.head_size * keys


def pairs(context: int, window: int | None) -> float:
    """Return the query-key pairs of a causal kernel; with no window T^2 / 2, the triangle without the half of its
    diagonal, as is usual."""
    w = min(window or context, context)
    return w * context - w * w / 2


def forward_flops(model: Callable[..., object], *inputs: Tensor) -> float:
    """Count floating-point operations of one forward pass, 2 for each multiplication-addition of convolutions, matrix
    products and attention; the rest is left out. Model and inputs may be on the meta device, where nothing is
    computed."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return float(counter.get_total_flops())
