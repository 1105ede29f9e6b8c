"""What a network is trained to predict, and how its output becomes an estimate of x_0.

Every parameterization is linear: its target is a mixture of x_0 and eps, and x_0 a mixture of x_t and the output. So
each one is four coefficients at each t, on any path, and everything downstream sees only x_0.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gengen.diffusion.guidance import Denoiser
from gengen.diffusion.paths import NoisePath, Time, at_least_fp32, expand_like

Network = Callable[[Tensor, Tensor], Tensor]
"""(x_t of unit variance (B, ...), level (B,)) -> the parameterization's target (B, ...)."""


class Coefficients(NamedTuple):
    """target = of_x0 * x_0 + of_eps * eps;   x_0 = skip * x_t + gain * target."""

    of_x0: float | Tensor
    of_eps: float | Tensor
    skip: float | Tensor
    gain: float | Tensor


def predict_eps(path: NoisePath, t: Time, sigma_data: float) -> Coefficients:
    """Predict the noise (Ho et al. 2020). Where alpha = 0 it says nothing about x_0: DiffusionProcess refuses it."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    return Coefficients(of_x0=0.0, of_eps=1.0, skip=1 / alpha, gain=-sigma / alpha)


def predict_x0(path: NoisePath, t: Time, sigma_data: float) -> Coefficients:
    """Predict the data."""
    return Coefficients(of_x0=1.0, of_eps=0.0, skip=0.0, gain=1.0)


def predict_v(path: NoisePath, t: Time, sigma_data: float) -> Coefficients:
    """Predict (alpha eps - sigma x_0) / r, r^2 = alpha^2 + sigma^2: x_t / r turned by 90 degrees (Salimans & Ho
    2022, where r = 1).
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    r = (alpha**2 + sigma**2) ** 0.5
    return Coefficients(of_x0=-sigma / r, of_eps=alpha / r, skip=alpha / r**2, gain=-sigma / r)


def predict_velocity(path: NoisePath, t: Time, sigma_data: float) -> Coefficients:
    """Predict dx_t/dt = alpha' x_0 + sigma' eps (Lipman et al. 2023): eps - x_0 on the straight path, eps on EDM's."""
    alpha, sigma, d_alpha, d_sigma = path.alpha(t), path.sigma(t), path.d_alpha(t), path.d_sigma(t)
    turn = alpha * d_sigma - sigma * d_alpha
    return Coefficients(of_x0=d_alpha, of_eps=d_sigma, skip=d_sigma / turn, gain=-sigma / turn)


def predict_edm(path: NoisePath, t: Time, sigma_data: float) -> Coefficients:
    """Predict the preconditioned F of Karras et al. (2022, eq. 7 and Table 1), for any path.

    With S^2 = alpha^2 sigma_data^2 + sigma^2, the variance of x_t: c_in = 1/S, c_skip = alpha sigma_data^2 / S^2,
    c_out = sigma sigma_data / S, and F = (x_0 - c_skip x_t) / c_out, here with x_t written out so that it is finite
    at both ends. F has unit variance for every t.
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    S = (alpha**2 * sigma_data**2 + sigma**2) ** 0.5
    return Coefficients(
        of_x0=sigma / (sigma_data * S),
        of_eps=-alpha * sigma_data / S,
        skip=alpha * sigma_data**2 / S**2,
        gain=sigma * sigma_data / S,
    )


PARAMETERIZATIONS: dict[str, Callable[[NoisePath, Time, float], Coefficients]] = {
    "eps": predict_eps,
    "x0": predict_x0,
    "v": predict_v,
    "velocity": predict_velocity,
    "edm": predict_edm,
}


def target(parameterization: str, x0: Tensor, eps: Tensor, t: Time, path: NoisePath, sigma_data: float) -> Tensor:
    """Return what the network should output: (B, ...) for x0 and eps (B, ...) and t (B,), fp32, or fp64 if x0 is."""
    c = PARAMETERIZATIONS[parameterization](path, expand_like(t, x0), sigma_data)
    return c.of_x0 * at_least_fp32(x0) + c.of_eps * at_least_fp32(eps)


def to_x0(parameterization: str, out: Tensor, x_t: Tensor, t: Time, path: NoisePath, sigma_data: float) -> Tensor:
    """Return the estimate of x_0 (B, ...) in the network's output for x_t at t, in fp32, or fp64 if x_t is."""
    c = PARAMETERIZATIONS[parameterization](path, expand_like(t, x_t), sigma_data)
    return c.skip * at_least_fp32(x_t) + c.gain * at_least_fp32(out)


def x0_gain(parameterization: str, t: Time, path: NoisePath, sigma_data: float) -> float | Tensor:
    """Return k such that an error of the output is k times as large in x_0: to_x0(out) - x_0 = k (out - target)."""
    return PARAMETERIZATIONS[parameterization](path, t, sigma_data).gain


def input_scale(t: Time, path: NoisePath, sigma_data: float) -> Time:
    """Return 1 / sqrt(alpha^2 sigma_data^2 + sigma^2), which scales x_t to unit variance, whatever the path and the
    parameterization.
    """
    return (path.alpha(t) ** 2 * sigma_data**2 + path.sigma(t) ** 2) ** -0.5


def network_inputs(x_t: Tensor, t: Time, path: NoisePath, sigma_data: float) -> tuple[Tensor, Tensor]:
    """Return the network's inputs for x_t (B, ...) at t (float or (B,)): x_t of unit variance, and level(t) (B,)."""
    scaled = at_least_fp32(x_t) * input_scale(expand_like(t, x_t), path, sigma_data)
    level = torch.as_tensor(path.level(t), dtype=scaled.dtype, device=scaled.device)
    return scaled, level.expand(x_t.shape[0])


def denoiser(network: Network, path: NoisePath, parameterization: str, sigma_data: float) -> Denoiser:
    """Return the network as a function (x_t, t) -> x_0 in fp32 (fp64 if x_t is), whatever precision it computes in."""

    def denoise(x: Tensor, t: float) -> Tensor:
        return to_x0(parameterization, network(*network_inputs(x, t, path, sigma_data)), x, t, path, sigma_data)

    return denoise
