"""Samplers: pure functions of a denoiser, a state, a list of times and a path.

times: strictly decreasing, as from path.times; every sampler steps from each to the next, so that no time is ever
computed twice. x: (B, ...) at times[0], there path.sigma(times[0]) * randn; the state keeps its dtype (give fp32).
noise: a call that draws (B, ...) of N(0, 1), so that the caller can have a generator for each sample.
callback(i, t, x, x0) is called once a step, before it is taken, with the state x at t and the estimate x0 in it.
Where the last time is the data end the result is the last estimate itself.
"""

import math
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from gengen.diffusion.guidance import Denoiser
from gengen.diffusion.paths import NoisePath

Times = list[float]
DrawNoise = Callable[[], Tensor] | None
Callback = Callable[[int, float, Tensor, Tensor], None] | None


def estimate(denoise: Denoiser, x: Tensor, i: int, t: float, callback: Callback) -> Tensor:
    """Return the denoiser's estimate of x_0 in x at t, and show it to the callback."""
    x0 = denoise(x, t).to(x.dtype)
    if callback:
        callback(i, t, x, x0)
    return x0


def log_snr_step(path: NoisePath, t: float, s: float) -> float:
    """Return h = lambda_s - lambda_t > 0 with lambda = ln(alpha / sigma): infinite in a step from pure noise or to
    pure data.
    """
    return path.log_snr_half(s) - path.log_snr_half(t)


def ddim(
    denoise: Denoiser,
    x: Tensor,
    times: Times,
    path: NoisePath,
    noise: DrawNoise = None,
    callback: Callback = None,
    eta: float = 0.0,
) -> Tensor:
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - tau^2) eps + tau noise (Song et al. 2021, eq. 12 and 16, on any path). At
    eta = 0 it is Euler's step in sigma / alpha.

    tau = eta sigma_s / sigma_t sqrt(sigma_t^2 - (alpha_t sigma_s / alpha_s)^2): at eta = 1 the deviation of x_s when
    x_t and x_0 are known. Draws noise only in steps that have tau > 0. Calls the denoiser once a step."""
    for i, (t, s) in enumerate(pairwise(times)):
        x0 = estimate(denoise, x, i, t, callback)
        sigma_t, sigma_s, ratio = path.sigma(t), path.sigma(s), path.alpha(t) / path.alpha(s)
        tau = eta * sigma_s / sigma_t * math.sqrt(sigma_t**2 - (ratio * sigma_s) ** 2)
        x = path.alpha(s) * x0 + math.sqrt(max(0.0, sigma_s**2 - tau**2)) * path.to_eps(x, x0, t)
        if tau > 0:
            if noise is None:
                raise ValueError("a sampler with eta > 0 needs noise, a call that draws it")
            x = x + tau * noise()
    return x


def ancestral(
    denoise: Denoiser, x: Tensor, times: Times, path: NoisePath, noise: DrawNoise = None, callback: Callback = None
) -> Tensor:
    """x_s drawn from q(x_s | x_t, x_0) (Ho et al. 2020, eq. 6-7): DDIM at eta = 1. Calls the denoiser once a step."""
    return ddim(denoise, x, times, path, noise, callback, eta=1.0)


def heun(
    denoise: Denoiser, x: Tensor, times: Times, path: NoisePath, noise: DrawNoise = None, callback: Callback = None
) -> Tensor:
    """Second order by the mean of two slopes (Karras et al. 2022, Alg. 1, without churn), on any path.

    In their coordinates x / alpha and sigma / alpha the slope is eps. Where those are singular, in a step from pure
    noise or to pure data, it is Euler's step. Calls the denoiser twice a step, there once.
    """
    for i, (t, s) in enumerate(pairwise(times)):
        x0 = estimate(denoise, x, i, t, callback)
        eps = path.to_eps(x, x0, t)
        ahead = path.alpha(s) * x0 + path.sigma(s) * eps
        if math.isfinite(log_snr_step(path, t, s)):
            eps = (eps + path.to_eps(ahead, denoise(ahead, s).to(x.dtype), s)) / 2
            ratio = path.alpha(s) / path.alpha(t)
            x = ratio * x + (path.sigma(s) - ratio * path.sigma(t)) * eps
        else:
            x = ahead
    return x


def dpmpp_2m(
    denoise: Denoiser, x: Tensor, times: Times, path: NoisePath, noise: DrawNoise = None, callback: Callback = None
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, Alg. 2): x_s = sigma_s / sigma_t x - alpha_s (e^-h - 1) D.

    D is x_0 carried half a step further along its trend since the step before. In a step from pure noise or to pure
    data h is infinite; the formula then holds with D = x_0, first order. Calls the denoiser once a step.
    """
    before, h_before = x, math.inf  # nothing before: no trend
    for i, (t, s) in enumerate(pairwise(times)):
        x0 = estimate(denoise, x, i, t, callback)
        h = log_snr_step(path, t, s)
        D = x0 + h / (2 * h_before) * (x0 - before) if math.isfinite(h) else x0
        x = path.sigma(s) / path.sigma(t) * x - path.alpha(s) * math.expm1(-h) * D
        before, h_before = x0, h
    return x


SAMPLERS: dict[str, Callable[[Denoiser, Tensor, Times, NoisePath, DrawNoise, Callback], Tensor]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
}
