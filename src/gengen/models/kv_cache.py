"""The memory of a transformer that decodes: keys and values of all tokens so far, in a fixed block."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class LayerCache(NamedTuple):
    """One layer's part of a cache, and where in it the T new tokens of a forward pass stand."""

    keys: Tensor  # (B, KV, S, D)
    values: Tensor  # (B, KV, S, D)
    positions: Tensor  # (B, T)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys and values, (B, KV, T, D) each, in their slots; return those of all slots."""
        rows = torch.arange(len(k), device=k.device)[:, None]
        for memory, new in ((self.keys, k), (self.values, v)):
            memory[rows, :, self.positions] = new.transpose(1, 2).to(memory.dtype)  # (B, T, KV, D)
        return self.keys, self.values


@dataclass
class Cache:
    """Keys and values of every token a batch has seen, each row with a length of its own.

    Rows are right-padded: row b's token number p lies in slot p, and its next token goes to slot lengths[b]. What lies
    at or beyond a row's length is padding that no query of the row ever sees, so prompts of any lengths share a batch.
    """

    keys: list[Tensor]  # of each layer, (B, KV, S, D)
    values: list[Tensor]
    lengths: Tensor  # (B,) tokens seen so far

    @property
    def slots(self) -> int:
        return self.keys[0].shape[2]

    def first(self, slots: int) -> "Cache":
        """Return the same memory up to a slot: attention costs what is in use rather than what there is room for."""
        return Cache([k[:, :, :slots] for k in self.keys], [v[:, :, :slots] for v in self.values], self.lengths)

    def rows(self, index: Sequence[int]) -> "Cache":
        """Return a copy of some rows; a row may be taken several times."""
        return Cache([k[index] for k in self.keys], [v[index] for v in self.values], self.lengths[index])

    def replace(self, index: Sequence[int], other: "Cache") -> None:
        """Put the rows of another cache with as many slots in the place of these rows."""
        for mine, theirs in zip(
            [*self.keys, *self.values, self.lengths], [*other.keys, *other.values, other.lengths], strict=True
        ):
            mine[index] = theirs

    def layers(self, positions: Tensor) -> list[LayerCache]:
        """Return what each layer needs for new tokens at positions (B, T)."""
        return [LayerCache(keys, values, positions) for keys, values in zip(self.keys, self.values, strict=True)]
