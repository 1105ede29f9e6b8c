"""What the network is asked for, and how its answer becomes an estimate of x_0.

Every parameterization is linear: its target is a mixture of x_0 and eps, and x_0 a mixture of x_t and the output. So
each one is four coefficients at each t, on any path, and everything downstream sees only x_0.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gengen.diffusion.guidance import Denoiser
from gengen.diffusion.paths import Path, Time, lift, spread

Network = Callable[[Tensor, Tensor], Tensor]
"""(x_t of unit variance (B, ...), level (B,)) -> the parameterization's target (B, ...)."""


class Coefficients(NamedTuple):
    """target = x0 * x_0 + eps * eps;   x_0 = skip * x_t + gain * target."""

    x0: float | Tensor
    eps: float | Tensor
    skip: float | Tensor
    gain: float | Tensor


def predict_eps(path: Path, t: Time, sigma_data: float) -> Coefficients:
    """The noise (Ho et al. 2020). Says nothing about x_0 where alpha = 0: UNetConfig refuses it there."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    return Coefficients(x0=0.0, eps=1.0, skip=1 / alpha, gain=-sigma / alpha)


def predict_x0(path: Path, t: Time, sigma_data: float) -> Coefficients:
    """The data."""
    return Coefficients(x0=1.0, eps=0.0, skip=0.0, gain=1.0)


def predict_v(path: Path, t: Time, sigma_data: float) -> Coefficients:
    """(alpha eps - sigma x_0) / r, r^2 = alpha^2 + sigma^2: x_t / r turned by 90 degrees (Salimans & Ho 2022, where r
    = 1).
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    r = (alpha**2 + sigma**2) ** 0.5
    return Coefficients(x0=-sigma / r, eps=alpha / r, skip=alpha / r**2, gain=-sigma / r)


def predict_velocity(path: Path, t: Time, sigma_data: float) -> Coefficients:
    """dx_t/dt = alpha' x_0 + sigma' eps (Lipman et al. 2023): eps - x_0 on the straight path, eps on EDM's."""
    alpha, sigma, d_alpha, d_sigma = path.alpha(t), path.sigma(t), path.d_alpha(t), path.d_sigma(t)
    turn = alpha * d_sigma - sigma * d_alpha
    return Coefficients(x0=d_alpha, eps=d_sigma, skip=d_sigma / turn, gain=-sigma / turn)


def predict_edm(path: Path, t: Time, sigma_data: float) -> Coefficients:
    """The preconditioned F of Karras et al. (2022, eq. 7 and Table 1), for any path.

    With S^2 = alpha^2 sigma_data^2 + sigma^2, the variance of x_t: c_in = 1/S, c_skip = alpha sigma_data^2 / S^2,
    c_out = sigma sigma_data / S, and F = (x_0 - c_skip x_t) / c_out, here with x_t written out so that it is finite
    at both ends. F has unit variance for every t.
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    S = (alpha**2 * sigma_data**2 + sigma**2) ** 0.5
    return Coefficients(
        x0=sigma / (sigma_data * S),
        eps=-alpha * sigma_data / S,
        skip=alpha * sigma_data**2 / S**2,
        gain=sigma * sigma_data / S,
    )


PARAMETERIZATIONS: dict[str, Callable[[Path, Time, float], Coefficients]] = {
    "eps": predict_eps,
    "x0": predict_x0,
    "v": predict_v,
    "velocity": predict_velocity,
    "edm": predict_edm,
}


def target(parameterization: str, x0: Tensor, eps: Tensor, t: Time, path: Path, sigma_data: float) -> Tensor:
    """What the network should answer: (B, ...) for x0 and eps (B, ...) and t (B,), in fp32, or fp64 if x0 is."""
    c = PARAMETERIZATIONS[parameterization](path, spread(t, x0), sigma_data)
    return c.x0 * lift(x0) + c.eps * lift(eps)


def to_x0(parameterization: str, out: Tensor, x_t: Tensor, t: Time, path: Path, sigma_data: float) -> Tensor:
    """The estimate of x_0 (B, ...) in the network's answer to x_t at t, in fp32, or fp64 if x_t is."""
    c = PARAMETERIZATIONS[parameterization](path, spread(t, x_t), sigma_data)
    return c.skip * lift(x_t) + c.gain * lift(out)


def x0_gain(parameterization: str, t: Time, path: Path, sigma_data: float) -> float | Tensor:
    """k such that an error of the output is k times as large in x_0: to_x0(out) - x_0 = k (out - target)."""
    return PARAMETERIZATIONS[parameterization](path, t, sigma_data).gain


def input_scale(t: Time, path: Path, sigma_data: float) -> Time:
    """1 / sqrt(alpha^2 sigma_data^2 + sigma^2): makes x_t of unit variance, whatever the path and the
    parameterization.
    """
    return (path.alpha(t) ** 2 * sigma_data**2 + path.sigma(t) ** 2) ** -0.5


def network_inputs(x_t: Tensor, t: Time, path: Path, sigma_data: float) -> tuple[Tensor, Tensor]:
    """What the network is given for x_t (B, ...) at t (float or (B,)): x_t of unit variance, and level(t) (B,)."""
    scaled = lift(x_t) * input_scale(spread(t, x_t), path, sigma_data)
    level = torch.as_tensor(path.level(t), dtype=scaled.dtype, device=scaled.device)
    return scaled, level.expand(x_t.shape[0])


def denoiser(network: Network, path: Path, parameterization: str, sigma_data: float) -> Denoiser:
    """The network as a function (x_t, t) -> x_0 in fp32 (fp64 if x_t is), whatever precision it computes in itself."""

    def denoise(x: Tensor, t: float) -> Tensor:
        return to_x0(parameterization, network(*network_inputs(x, t, path, sigma_data)), x, t, path, sigma_data)

    return denoise
