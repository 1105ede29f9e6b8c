"""Moving averages of many tensors at once: those of weights, and Muon's of gradients."""

import torch
from torch import Tensor


def move_averages(averages: list[Tensor], targets: list[Tensor], share: float | Tensor, grouped: bool) -> None:
    """Move each average a share of the way to its target, in place.

    share: a number, or a scalar on their device. grouped: in three calls for all, as on CUDA launching one for
    each tensor takes longer than the work; they round otherwise than `lerp` does, which is kept on a CPU.
    """
    if grouped:
        distances = torch._foreach_sub(targets, averages)
        torch._foreach_mul_(distances, share.to(distances[0].dtype) if isinstance(share, Tensor) else share)
        torch._foreach_add_(averages, distances)
        return
    for average, target in zip(averages, targets, strict=True):
        average.lerp_(target, share.to(average.dtype) if isinstance(share, Tensor) else share)


def are_grouped(tensors: list[Tensor]) -> bool:
    return bool(tensors) and tensors[0].device.type == "cuda"
