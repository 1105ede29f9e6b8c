"""A checkpoint that all ranks write, each its share of the tensors (trainer.sharded_save)."""

import errno
import os
from collections.abc import Callable

import torch
import torch.distributed as dist

from gengen.checkpoints import shards, store
from gengen.checkpoints.saving import Save, Saved, let_go


def carry_out_together(save: Save) -> Saved:
    """Write the checkpoint, each rank its files. Where one of them cannot, none goes on, and nothing is left."""
    rank, ranks, root, checkpoint = dist.get_rank(), dist.get_world_size(), save.root, save.checkpoint
    phases: list[tuple[bool, Callable[[], object]]] = [
        (rank == 0, lambda: shards.begin(root, checkpoint)),
        (True, lambda: shards.write_shard(root, checkpoint, rank, ranks)),
        (rank == 0, lambda: shards.finish(root, checkpoint, ranks)),
    ]
    for is_mine, act in phases:
        own = tried(act) if is_mine else None
        numbers = told(own)
        if any(numbers):
            first = next(i for i, number in enumerate(numbers) if number)
            reason = own if own is not None and first == rank else os.strerror(numbers[first])
            if rank == 0:
                store.sweep(root)
            return Saved(failure=f"step {checkpoint.step} could not be written to {root} by rank {first}: {reason}")
    return let_go(save, root / f"step-{checkpoint.step:09d}") if rank == 0 else Saved()


def tried(act: Callable[[], object]) -> Exception | None:
    """Do something, and return why it failed: whatever it is, training can go on."""
    try:
        act()
    except Exception as error:
        return error
    return None


def told(error: Exception | None) -> list[int]:
    """Tell all ranks of an error: the system's number of each rank's, 0 where it has none."""
    number = 0 if error is None else getattr(error, "errno", None) or errno.EIO
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    numbers = torch.zeros(dist.get_world_size(), dtype=torch.long, device=device)
    numbers[dist.get_rank()] = number
    dist.all_reduce(numbers)
    return [int(each) for each in numbers.tolist()]
