"""Guidance: away from a worse denoiser, towards a better one."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, float], Tensor]
"""(x_t (B, ...), t) -> an estimate of x_0 (B, ...)."""


def guide(
    conditional: Denoiser,
    reference: Denoiser,
    scale: float,
    interval: tuple[float, float] = (0.0, math.inf),
    rescale: float = 0.0,
) -> Denoiser:
    """Return reference + scale (conditional - reference) as one denoiser.

    The reference without the condition is classifier-free guidance (Ho & Salimans 2022), a smaller or less trained
    model autoguidance (Karras et al. 2024). scale 1 is the conditional model alone, and the reference is not called; 0
    is the reference alone. interval: the times, ends included, between which guidance acts (Kynkäänniemi et al. 2024).
    rescale: how far, from 0 to 1, the guided estimate is brought back to the conditional's standard deviation.
    """
    if scale == 1:
        return conditional
    low, high = interval

    def denoise(x: Tensor, t: float) -> Tensor:
        wanted = conditional(x, t)
        if not low <= t <= high:
            return wanted
        guided = reference(x, t).lerp(wanted, scale)
        return rescaled(guided, wanted, rescale) if rescale else guided

    return denoise


def rescaled(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """Return guided, each sample's standard deviation moved towards the conditional's (Lin et al. 2024, eq. 14-16,
    here for x_0).

    A sample without contrast has no deviation to scale, and stays.
    """
    dims = tuple(range(1, guided.dim()))
    ours = guided.std(dims, correction=0, keepdim=True)
    wanted = conditional.std(dims, correction=0, keepdim=True)
    ratio = torch.where(ours > 1e-6, wanted / ours.clamp(min=1e-6), 1.0)
    return guided.lerp(guided * ratio, share)
