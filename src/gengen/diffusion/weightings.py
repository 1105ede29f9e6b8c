"""How much each time counts in the loss.

A weighting is stated for the squared error of x_0; the error of an output is gain times smaller, so its weight is
gain^2 times larger. In this way one weighting is the same loss under every parameterization.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gengen.diffusion.parameterizations import x0_gain
from gengen.diffusion.paths import NoisePath


def none(snr: Tensor, gain: Tensor, sigma_data: float) -> Tensor:
    """Weigh by 1 in the units of the output: the parameterization is the weighting."""
    return torch.ones_like(snr)


def min_snr(snr: Tensor, gain: Tensor, sigma_data: float, gamma: float = 5.0) -> Tensor:
    """Weigh by min(SNR, gamma) in x_0 units (Hang et al. 2023): min(SNR, gamma) / SNR for eps, / (SNR + 1) for v
    where r = 1.
    """
    return snr.clamp(max=gamma) * gain**2


def edm(snr: Tensor, gain: Tensor, sigma_data: float) -> Tensor:
    """Weigh by (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 in x_0 units (Karras et al. 2022, Table 1), for
    sigma / alpha on any path.
    """
    return (snr + 1 / sigma_data**2) * gain**2


WEIGHTINGS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"none": none, "min_snr": min_snr, "edm": edm}


def weight(name: str, t: Tensor, path: NoisePath, parameterization: str, sigma_data: float) -> Tensor:
    """Return the weight (B,) of the squared error of the output at t (B,), sigma(t) > 0."""
    snr = (path.alpha(t) / path.sigma(t)) ** 2
    return WEIGHTINGS[name](snr, torch.as_tensor(x0_gain(parameterization, t, path, sigma_data)), sigma_data)
