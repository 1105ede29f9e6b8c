"""Paths from data to noise: x_t = alpha(t) x_0 + sigma(t) eps. Everything about a path follows from alpha and sigma.

Every formula takes t as a float (a sampler's) or as a tensor (a batch's) and returns the same.

    path = Flow()                                        # alpha = 1 - t, sigma = t
    x_t = path.add_noise(x0, eps, t)                     # what a network is trained on
    x = heun(denoise, noise, path.times(20), path)       # and what a sampler undoes
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Time = TypeVar("Time", float, Tensor)


def at_least_fp32(x: Tensor) -> Tensor:
    """Return x in fp32, or in fp64 if it is: near the data sigma(t) is below what bf16 resolves next to 1."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def expand_like(t: Time, x: Tensor) -> Time:
    """Return t (B,) as (B, 1, ...), in the dtype of at_least_fp32(x), to broadcast over x (B, ...); or t, a float."""
    if isinstance(t, Tensor):
        return t.to(x.device, torch.promote_types(x.dtype, torch.float32)).reshape(
            t.shape + (1,) * (x.dim() - t.dim())
        )
    return t


class NoisePath:
    """x_t = alpha(t) x_0 + sigma(t) eps, with x_0 at t = 0 exactly; t grows with the noise.

    A path that overrides nothing adds noise of standard deviation t to the data.
    """

    def alpha(self, t: Time) -> Time:
        """Return the factor of the data at t."""
        return 0 * t + 1

    def sigma(self, t: Time) -> Time:
        """Return the standard deviation of the noise at t."""
        return t

    def d_alpha(self, t: Time) -> Time:
        """Return d alpha / dt."""
        return 0 * t

    def d_sigma(self, t: Time) -> Time:
        """Return d sigma / dt."""
        return 0 * t + 1

    def time_at(self, ratio: Time) -> Time:
        """Return the t at which sigma / alpha is `ratio` (finite): path.time_at(path.sigma(t) / path.alpha(t)) = t."""
        return ratio

    def level(self, t: Time) -> Time:
        """Return how noisy x_t is, as a number of order one: the network's input (c_noise of Karras et al. 2022)."""
        return t

    def time_from_quantile(self, share: Time) -> Time:
        """Return the time at a share in [0, 1] of the way from data to noise: even shares are well spaced times.

        The times of samplers and of training both pass through here once; a shift is applied nowhere else.
        """
        return share

    def times(self, steps: int, strength: float = 1.0) -> list[float]:
        """Return steps + 1 strictly decreasing times, from the noise end to exactly the data end.

        A sampler starts from sigma(times[0]) * randn, and steps from each time to the next. strength: the share of the
        way, above 0, at which to start in place of the noise end, however many the steps.
        """
        return [self.time_from_quantile(strength * (1 - i / steps)) for i in range(steps)] + [0.0]

    def add_noise(self, x0: Tensor, eps: Tensor, t: Time) -> Tensor:
        """Return x_t for x0 and eps (B, ...) and t (B,): (B, ...) in fp32, or fp64 if x0 is."""
        t = expand_like(t, x0)
        return self.alpha(t) * at_least_fp32(x0) + self.sigma(t) * at_least_fp32(eps)

    def to_eps(self, x: Tensor, x0: Tensor, t: Time) -> Tensor:
        """Return the noise in x at t if its data are x0: (B, ...). sigma(t) > 0."""
        t = expand_like(t, x)
        return (at_least_fp32(x) - self.alpha(t) * at_least_fp32(x0)) / self.sigma(t)

    def log_snr_half(self, t: Time) -> Time:
        """Return ln(alpha / sigma), half the log signal-to-noise ratio; the DPM-Solver papers' lambda. Infinite at
        the ends.
        """
        alpha, sigma = self.alpha(t), self.sigma(t)
        if isinstance(alpha, Tensor):
            return torch.log(alpha / sigma)
        return math.inf if sigma == 0 else -math.inf if alpha == 0 else math.log(alpha / sigma)


@dataclass(frozen=True)
class Flow(NoisePath):
    """The straight path x_t = (1 - t) x_0 + t eps (Liu et al. 2023; Lipman et al. 2023).

    shift multiplies the ratio sigma / alpha at every quantile (Esser et al. 2024, eq. 23): above 1, more of the
    times are noisy, as large images want.
    """

    shift: float = 1.0

    def alpha(self, t: Time) -> Time:
        return 1 - t

    def d_alpha(self, t: Time) -> Time:
        return 0 * t - 1

    def time_at(self, ratio: Time) -> Time:
        return ratio / (1 + ratio)

    def time_from_quantile(self, share: Time) -> Time:
        return self.shift * share / (1 + (self.shift - 1) * share)


@dataclass(frozen=True)
class Cosine(NoisePath):
    """The variance-preserving path x_t = cos(pi t / 2) x_0 + sin(pi t / 2) eps (Salimans & Ho 2022).

    At t = 1 no signal is left (Lin et al. 2024): cos(pi t / 2) is written sin(pi (1 - t) / 2), which is 0 there, not
    6e-17.
    """

    def alpha(self, t: Time) -> Time:
        return self.sigma(1 - t)

    def sigma(self, t: Time) -> Time:
        return torch.sin(math.pi / 2 * t) if isinstance(t, Tensor) else math.sin(math.pi / 2 * t)

    def d_alpha(self, t: Time) -> Time:
        return -math.pi / 2 * self.sigma(t)

    def d_sigma(self, t: Time) -> Time:
        return math.pi / 2 * self.alpha(t)

    def time_at(self, ratio: Time) -> Time:
        return 2 / math.pi * (torch.atan(ratio) if isinstance(ratio, Tensor) else math.atan(ratio))


@dataclass(frozen=True)
class EDM(NoisePath):
    """The variance-exploding path x_t = x_0 + t eps of Karras et al. (2022): t is the noise's standard deviation.

    Times are spaced evenly in sigma^(1/rho) from sigma_max to sigma_min (eq. 5), and the last step goes to 0.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def level(self, t: Time) -> Time:
        return (torch.log(t) if isinstance(t, Tensor) else math.log(t)) / 4

    def time_from_quantile(self, share: Time) -> Time:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (low + share * (high - low)) ** self.rho

    def times(self, steps: int, strength: float = 1.0) -> list[float]:
        """sigma_max, ..., sigma_min, 0; the first of them is sigma_max at strength 1 only."""
        return [self.time_from_quantile(strength * (1 - i / max(1, steps - 1))) for i in range(steps)] + [0.0]


PATHS: dict[str, Callable[..., NoisePath]] = {"flow": Flow, "cosine": Cosine, "edm": EDM}
