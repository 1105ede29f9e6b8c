"""A user's own say in what may be drawn next: a function of the logits, held to its word."""

from collections.abc import Callable

from torch import Tensor

from gengen.errors import UserError, raised

Processor = Callable[[Tensor, list[list[int]]], Tensor]
"""(logits (B, V) fp32, the tokens of each row, prompt included) -> logits (B, V): a grammar, a watermark, whatever a
text must obey.
"""


def processed(processor: Processor, logits: Tensor, tokens: list[list[int]]) -> Tensor:
    """Return what a processor makes of logits (B, V). Raises UserError, which names it, if that is not logits."""
    name = name_of(processor)
    try:
        found: object = processor(logits, tokens)
    except Exception as error:
        raise UserError(f"processor {name} raised {raised(error, [processor.__module__.split('.')[0]])}") from error
    if not isinstance(found, Tensor) or found.shape != logits.shape or not found.is_floating_point():
        kind = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)[:60]
        raise UserError(f"processor {name} returned {kind}, not logits: floats {tuple(logits.shape)}")
    return found.to(logits)


def name_of(processor: Processor) -> str:
    return getattr(processor, "__qualname__", type(processor).__qualname__)
