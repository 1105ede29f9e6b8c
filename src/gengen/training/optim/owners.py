"""Whole matrices out of rows that are spread over ranks: each matrix has an owner, which is sent all of its rows and
sends back what is to become of them."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor


def dealt(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Deal things of these sizes out to ranks, the largest first, in turn: which ones each has, in their order."""
    by_size = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    return [sorted(by_size[rank::ranks]) for rank in range(ranks)]


class Owners:
    """Who owns which of some matrices whose rows are sharded, as `fully_shard` does it: rank r holds the r-th chunk of
    ceil(rows / ranks) rows, the last ones fewer or none.

    All ranks call each method, with the same matrices in the same order.
    """

    def __init__(self, matrices: Sequence[DTensor]):
        mesh = matrices[0].device_mesh
        self.group, self.rank, self.ranks = mesh.get_group(), mesh.get_local_rank(), mesh.size()
        self.shapes = [matrix.shape for matrix in matrices]
        self.chunks = [-(-len(matrix) // self.ranks) for matrix in matrices]  # rows
        self.owned = dealt([matrix.numel() for matrix in matrices], self.ranks)

    def gathered(self, shares: Sequence[Tensor]) -> dict[int, Tensor]:
        """Return the whole of each matrix that this rank owns, by its number. shares: this rank's rows of each."""
        received: list[Tensor] = []
        for owner, numbers in enumerate(self.owned):
            if numbers:
                mine = torch.cat([self.padded(shares[i], i).flatten() for i in numbers])
                if owner == self.rank:
                    received = [torch.empty_like(mine) for _ in range(self.ranks)]
                into = received if owner == self.rank else None
                dist.gather(mine, into, group=self.group, group_dst=owner)
        parts = [self.cut(flat, self.owned[self.rank]) for flat in received]
        return {
            i: torch.cat([part[i] for part in parts])[: self.shapes[i][0]]
            for i in (self.owned[self.rank] if parts else [])
        }

    def scattered(self, wholes: Mapping[int, Tensor], like: Sequence[Tensor]) -> list[Tensor]:
        """The inverse of `gathered`: this rank's rows of each matrix, as many as `like` has."""
        rows: dict[int, Tensor] = {}
        for owner, numbers in enumerate(self.owned):
            if numbers:
                size = sum(self.chunks[i] * self.shapes[i][1:].numel() for i in numbers)
                flat = like[0].new_empty(size)
                out = [self.chunk_of_all(wholes, rank) for rank in range(self.ranks)] if owner == self.rank else None
                dist.scatter(flat, out, group=self.group, group_src=owner)
                rows |= self.cut(flat, numbers)
        return [rows[i][: len(share)] for i, share in enumerate(like)]

    def padded(self, rows: Tensor, number: int) -> Tensor:
        """Fill up a share, (rows, ...), to a chunk, with rows of 0."""
        missing = self.chunks[number] - len(rows)
        return F.pad(rows, [0, 0] * (rows.dim() - 1) + [0, missing]) if missing else rows

    def chunk_of_all(self, wholes: Mapping[int, Tensor], rank: int) -> Tensor:
        """Return a rank's chunks of all matrices that this rank owns, in one row."""
        chunks = {i: wholes[i][rank * self.chunks[i] : (rank + 1) * self.chunks[i]] for i in self.owned[self.rank]}
        return torch.cat([self.padded(chunk, i).flatten() for i, chunk in chunks.items()])

    def cut(self, flat: Tensor, numbers: Sequence[int]) -> dict[int, Tensor]:
        """Return the chunks of these matrices, by number, that lie in one row."""
        shapes = [(self.chunks[i], *self.shapes[i][1:]) for i in numbers]
        pieces = flat.split([torch.Size(shape).numel() for shape in shapes])
        return {i: piece.view(shape) for i, piece, shape in zip(numbers, pieces, shapes, strict=True)}
