"""Losses of the two networks of a GAN as functions of logits, the penalty on the discriminator's gradient, and their
schedules.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

softplus, relu = F.softplus, F.relu


class Loss(NamedTuple):
    """Both networks' losses for pairs of a real and a generated image, from their logits; any shape, elementwise."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    paired: bool = False  # whether the generator's loss looks at the real image


LOSSES = {
    # Jolicoeur-Martineau 2019; Huang et al. 2024, eq. 2: which of the two is real, rather than whether each one is
    "relativistic": Loss(
        lambda real, fake: softplus(fake - real), lambda real, fake: softplus(real - fake), paired=True
    ),
    # Goodfellow et al. 2014, sec. 3
    "nonsaturating": Loss(lambda real, fake: softplus(-real) + softplus(fake), lambda real, fake: softplus(-fake)),
    # Lim & Ye 2017; Miyato et al. 2018, eq. 16 and 17
    "hinge": Loss(lambda real, fake: relu(1 - real) + relu(1 + fake), lambda real, fake: -fake),
}


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Return |d logit / d image|^2 of each image, (B,), which can be differentiated once more.

    Times gamma / 2 it is R1 on real images and R2 on generated ones (Mescheder et al. 2018, eq. 9 and 10). `images`
    (B, C, H, W) must require gradients, in fp32, and autocast must be off here too, where it would put the gradient's
    matrix products in bf16.

    logits: (B,), or (B, P), whose mean over P is then what is differentiated; a row's may depend on its own image
    only.
    """
    total = logits.flatten(1).mean(1).sum() if logits.dim() > 1 else logits.sum()
    (slope,) = torch.autograd.grad(total, images, create_graph=True)
    return slope.square().flatten(1).sum(1)


def lazy_penalty_weight(step: int, every: int) -> float:
    """Return the weight in update number `step` (from 0) of a penalty that counts in every `every`-th update only:
    `every`, or 0.

    Its mean is 1, so the expected gradient is that of a penalty in each update. The penalty joins the loss of its
    update, so an optimizer makes as many updates as without it and its rate and decays need no correction. (Karras et
    al. 2020, app. B, give the penalty updates of its own, k + 1 where k were, and correct Adam by k / (k + 1).)
    """
    return float(every) if step % every == 0 else 0.0


def cosine(progress: float, start: float, end: float) -> float:
    """Return a value that goes from start to end along half a cosine while progress goes from 0 to 1; then end."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
