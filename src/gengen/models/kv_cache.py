"""The memory of a transformer that decodes: keys and values of all tokens so far, in a fixed block."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class LayerCache(NamedTuple):
    """One layer's part of a cache, and where in it the T new tokens of each row of a batch stand."""

    keys: Tensor  # (R, KV, S, D)
    values: Tensor  # (R, KV, S, D)
    positions: Tensor  # (B, T)
    rows: Tensor | None = None  # (B,) which rows of the memory the batch is; None = all, in their order

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys and values, (B, KV, T, D) each, in their slots; return those of all slots of the
        batch."""
        rows = torch.arange(len(k), device=k.device) if self.rows is None else self.rows
        for memory, new in ((self.keys, k), (self.values, v)):
            memory[rows[:, None], :, self.positions] = new.transpose(1, 2).to(memory.dtype)  # (B, T, KV, D)
        if self.rows is None:
            return self.keys, self.values
        return self.keys[self.rows], self.values[self.rows]


@dataclass
class Cache:
    """Keys and values of every token that some texts have seen, a row each.

    Row b's token number p lies in slot p, and its next token goes to slot lengths[b]. What lies at or beyond a row's
    length is padding that no query of the row ever sees, so texts of any lengths share a batch.
    """

    keys: list[Tensor]  # of each layer, (R, KV, S, D)
    values: list[Tensor]
    lengths: Tensor  # (B,) tokens seen so far
    rows: Tensor | None = None  # (B,) which rows of the memory the batch is; None = all, in their order

    @property
    def slots(self) -> int:
        return self.keys[0].shape[2]

    def batch(self, lengths: Tensor, slots: int, rows: Tensor | None = None) -> "Cache":
        """Return the same memory up to a slot, as a batch of `rows`, or of the first ones, which hold `lengths` (B,)
        tokens: attention costs what is in use rather than what there is room for."""
        count = len(lengths) if rows is None else len(self.keys[0])
        keys, values = ([memory[:count, :, :slots] for memory in part] for part in (self.keys, self.values))
        return Cache(keys, values, lengths, rows)

    def copy_row(self, source: int, target: int, slots: int) -> None:
        """Put what a row holds in its first slots in the place of another's."""
        for memory in (*self.keys, *self.values):
            memory[target, :, :slots] = memory[source, :, :slots]

    def layers(self, positions: Tensor) -> list[LayerCache]:
        """Return what each layer needs for new tokens at positions (B, T)."""
        return [LayerCache(k, v, positions, self.rows) for k, v in zip(self.keys, self.values, strict=True)]
