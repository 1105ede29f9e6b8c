"""A language model as it decodes: texts are read in chunks, then a token a row at a time, in a memory of fixed rows.

In fp32 the engine can be exact: what a row gets is the same bits whatever the other rows are. A matrix product or an
attention kernel sums in another order for very few rows or queries than for more, so products are padded to
`least_rows`, attention to `FEWEST_QUERIES`, and slots come in blocks. How many rows that takes is the machine's
business: `exactness.py` finds out.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from gengen.models.gpt import GPT
from gengen.models.kernels.attention import FEWEST_QUERIES
from gengen.models.kernels.linear import quantized
from gengen.models.kv_cache import Cache

BLOCK = 64  # slots that attention grows by
CHUNK = 128  # tokens of one row that are read at once


class Engine:
    """precision: fp32 takes the model as it is; bf16 and int8 (weights alone) copies of it. compile: the decoding step
    is compiled, on CUDA captured as a graph (not yet measured there); it then always has all rows. least_rows: what
    each product is padded to; None = nothing is padded, and bits depend on the batch.
    """

    def __init__(self, model: GPT, precision: str = "fp32", compile: bool = False, least_rows: int | None = None):
        self.precision, self.compiled, self.least_rows = precision, compile, least_rows
        self.model = {
            "fp32": lambda: model,
            "bf16": lambda: copy.deepcopy(model).bfloat16(),
            "int8": lambda: quantized(model),
        }[precision]()
        self.device, self._step = model.embedding.weight.device, self._logits
        if compile:
            on_cuda = self.device.type == "cuda"
            options: dict[str, str | int | bool | Callable[..., object]] = (
                {"triton.cudagraphs": True} if on_cuda else {}
            )
            self._step = torch.compile(self._logits, dynamic=True, options=options)

    @property
    def exact(self) -> bool:
        """Whether what a row gets does not depend on the other rows."""
        return self.least_rows is not None

    def memory(self, rows: int, slots: int) -> Cache:
        """Return a cache for `rows` texts of at most `slots` tokens, and a last row for what is not looked at."""
        return self.model.empty_cache(max(rows, self.least_rows or 1) + 1, rounded(slots))

    def read(self, tokens: list[list[int]], rows: list[int], lengths: list[int], memory: Cache) -> Tensor:
        """Read T more tokens of each of some rows, which hold `lengths` tokens. Returns features (B, T, C)."""
        T, spare = len(tokens[0]), len(memory.keys[0]) - 1
        missing = -(-(self.least_rows or 1) // T) - len(rows)
        for _ in range(missing):  # rows that fill up the product; all of them write to the last row
            tokens, rows, lengths = [*tokens, [0] * T], [*rows, spare], [*lengths, 0]
        batch = memory.batch(self.integers(lengths), rounded(max(lengths) + T), self.integers(rows))
        return self.model.features(self.integers(tokens), batch)

    def step(self, newest: list[int], lengths: list[int], memory: Cache) -> Tensor:
        """Read one token more of each of the first rows, which hold `lengths` tokens. Returns the logits (B, V) fp32
        after it."""
        rows = len(memory.keys[0]) - 1 if self.compiled else max(len(newest), self.least_rows or 1)
        missing = rows - len(newest)
        tokens = self.integers([*newest, *[0] * missing])[:, None]
        batch = memory.batch(self.integers([*lengths, *[0] * missing]), rounded(max(lengths) + 1))
        return self._step(tokens, batch.keys, batch.values, batch.lengths)[: len(newest)]

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (..., V) fp32 that belong to features (..., C)."""
        return self.model.logits(features).float()

    def _logits(self, newest: Tensor, keys: list[Tensor], values: list[Tensor], lengths: Tensor) -> Tensor:
        return self.model(newest, Cache(keys, values, lengths))[:, -1].float()

    def integers(self, numbers: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(numbers, device=self.device)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Inside, the model is in evaluation mode and makes no gradients; afterwards all is as it was."""
        training = self.model.training
        if training:
            self.model.eval()
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            if training:
                self.model.train()


def rounded(slots: int) -> int:
    """Return how many slots are taken for so many tokens: whole blocks."""
    return -(-slots // BLOCK) * BLOCK


def chunk_of(unread: int, room: int) -> int:
    """Return how many tokens a row reads at once that has `unread` ones, and slots for `room`: a multiple of
    FEWEST_QUERIES, as kernels take queries in blocks and the last block must not be a small one; near the end of the
    room a single one, which attention repeats."""
    rounded_up = -(-unread // FEWEST_QUERIES) * FEWEST_QUERIES
    return min(CHUNK, rounded_up, room // FEWEST_QUERIES * FEWEST_QUERIES) or 1
