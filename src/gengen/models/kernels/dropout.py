"""Dropout (Srivastava et al. 2014) whose masks are cheap on a CPU.

Compiled code draws each random number of a mask by many instructions of its own, which took half of the forward pass
of a small transformer. Here torch's generator fills the whole mask at once, 16 bits a value and 64 at a time, and
compiled code only compares. The masks stay a function of the generator's state, so that a resumed run repeats them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 2**16


@torch.library.custom_op("gengen::random_levels", mutates_args=(), tags=[torch.Tag.nondeterministic_seeded])
def random_levels(like: Tensor) -> Tensor:
    """Return int16 values, all LEVELS of them as likely, in the shape of `like`.

    An operation of its own, as the compiler would else put a generator of its own in its place.
    """
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    return words.view(torch.int16)[: like.numel()].view(like.shape)


@random_levels.register_fake
def _(like: Tensor) -> Tensor:
    return like.new_empty(like.shape, dtype=torch.int16)


def dropout(x: Tensor, p: float) -> Tensor:
    """Set a share p of x to 0 at random, and scale the rest by 1 / (1 - p), so that the mean stays.

    On a CPU p is rounded to a multiple of 1 / LEVELS.
    """
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped = min(round(p * LEVELS), LEVELS - 1)
    kept = random_levels(x.detach()) >= dropped - LEVELS // 2
    return torch.where(kept, x * (LEVELS / (LEVELS - dropped)), 0.0)


class Dropout(nn.Module):
    """`dropout` in training, nothing else."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training and self.p else x
