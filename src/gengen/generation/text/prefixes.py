"""Beginnings of prompts that were read before, so that nobody reads them again."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

from gengen.models.kv_cache import Cache

BLOCK = 64  # tokens that are kept together


class PrefixCache:
    """Keys and values of the first 64, 128, ... tokens of prompts, a block each, those used last within `max_bytes`.

    A block is found by all tokens up to its end. What is copied from it is what reading them again would give: to the
    bit where the engine is exact.
    """

    def __init__(self, max_bytes: int = 64 * 2**20):
        self.max_bytes, self.bytes = max_bytes, 0
        self.blocks: OrderedDict[tuple[int, ...], list[Tensor]] = OrderedDict()  # (KV, 64, D) of each layer, twice

    def load(self, tokens: Sequence[int], memory: Cache, row: int) -> int:
        """Copy what is known of the beginning of some tokens, but not the last of them, into a row of a memory.
        Returns how many tokens it then holds."""
        known = 0
        for end in range(BLOCK, len(tokens), BLOCK):
            if (block := self.blocks.get(key := tuple(tokens[:end]))) is None:
                break
            self.blocks.move_to_end(key)
            for part, kept in zip(parts(memory), block, strict=True):
                part[row, :, known:end] = kept
            known = end
        return known

    def store(self, tokens: Sequence[int], memory: Cache, row: int) -> None:
        """Keep the whole blocks that a row of a memory holds of some tokens, which it has read but for the last."""
        for end in range(BLOCK, len(tokens), BLOCK):
            if (key := tuple(tokens[:end])) in self.blocks:
                continue
            block = [part[row, :, end - BLOCK : end].clone() for part in parts(memory)]
            self.blocks[key] = block
            self.bytes += size(block)
        while self.bytes > self.max_bytes:
            self.bytes -= size(self.blocks.popitem(last=False)[1])


def parts(memory: Cache) -> list[Tensor]:
    return [*memory.keys, *memory.values]


def size(block: list[Tensor]) -> int:
    return sum(part.nbytes for part in block)
