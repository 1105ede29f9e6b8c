"""Every step of every sampler against diffusers' schedulers, where both define the same thing.

Theirs and ours are given the same starting noise, the same times (theirs, as ratios of noise to data) and the same
estimates of x_0 from a fixed network of random weights.
"""

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gengen.diffusion.parameterizations import target
from gengen.diffusion.paths import EDM, Cosine, Flow, NoisePath
from gengen.diffusion.samplers import SAMPLERS, ddim

TRAINED = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STEPS = 20


@pytest.fixture(scope="module")
def theirs() -> SimpleNamespace:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
    from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
    from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler

    return SimpleNamespace(
        ddim=DDIMScheduler,
        dpmpp=DPMSolverMultistepScheduler,
        euler=EulerDiscreteScheduler,
        flow_euler=FlowMatchEulerDiscreteScheduler,
        flow_heun=FlowMatchHeunDiscreteScheduler,
        heun=HeunDiscreteScheduler,
    )


def random_denoiser(path: NoisePath) -> Callable[[Tensor, float], Tensor]:
    """(x_t, t) -> x_0 of a network of random weights, which sees x_t at unit variance and how noisy it is."""
    draw = torch.Generator().manual_seed(7)
    first, second = torch.randn(8, 32, generator=draw) / 3, torch.randn(32, 8, generator=draw) / 6
    bias = torch.randn(32, generator=draw)

    def denoise(x: Tensor, t: float) -> Tensor:
        a, s = path.alpha(t), path.sigma(t)
        out = torch.tanh(x / (a**2 + s**2) ** 0.5 @ first + bias * s / (a + s)) @ second
        return a / (a**2 + s**2) ** 0.5 * x / (1 + s) + out

    return denoise


def noise() -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """State for state, and none is missing."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def our_states(
    sampler: Callable[..., Tensor], path: NoisePath, x: Tensor, times: list[float], **options: Any
) -> list[Tensor]:
    """The state before each step and the sample."""
    states: list[Tensor] = []
    out = sampler(random_denoiser(path), x, times, path, callback=lambda i, t, x, x0: states.append(x), **options)
    return [*states, out]


def vp_times(scheduler: Any) -> list[float]:
    """Its own times as times of the cosine path, the data end last."""
    bars = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    return [*Cosine().time_at(((1 - bars) / bars).sqrt()).tolist(), 0.0]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_ddim(theirs: SimpleNamespace, eta: float, prediction: str) -> None:
    """On the cosine path, whose alpha and sigma at a ratio are those of any variance-preserving schedule."""
    path, x = Cosine(), noise()
    denoise = random_denoiser(path)
    scheduler = theirs.ddim(**TRAINED, clip_sample=False, prediction_type=prediction, timestep_spacing="leading")
    scheduler.set_timesteps(STEPS)
    times = vp_times(scheduler)
    draw = torch.Generator().manual_seed(1)
    draws = [torch.randn(4, 8, generator=draw) for _ in range(STEPS)]

    states = [x]
    for i, (step, t) in enumerate(zip(scheduler.timesteps, times, strict=False)):
        x0 = denoise(states[-1], t)
        eps = path.to_eps(states[-1], x0, t)
        out = {"epsilon": eps, "sample": x0, "v_prediction": path.alpha(t) * eps - path.sigma(t) * x0}[prediction]
        states.append(
            scheduler.step(out, step, states[-1], eta=eta, variance_noise=draws[i] if eta else None).prev_sample
        )

    same(our_states(ddim, path, x, times, noise=iter(draws).__next__, eta=eta), states)


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize(("name", "ours"), [("euler", "ddim"), ("heun", "heun")])
def test_euler_and_heun(theirs: SimpleNamespace, name: str, ours: str, karras: bool, spacing: str) -> None:
    """On the exploding path, in which these two keep their state."""
    path = EDM()
    denoise = random_denoiser(path)
    scheduler = getattr(theirs, name)(**TRAINED, use_karras_sigmas=karras, timestep_spacing=spacing)
    scheduler.set_timesteps(STEPS)
    sigmas = scheduler.sigmas.tolist()
    times = sigmas if name == "euler" else [*sigmas[:1], *sigmas[1:-1:2], 0.0]
    x = noise() * scheduler.init_noise_sigma
    if karras:
        torch.testing.assert_close(EDM(times[-2], times[0]).times(STEPS), times, rtol=1e-5, atol=1e-6)

    states, state = [x], x
    visits = times[:-1] if name == "euler" else [times[0], *(t for t in times[1:-1] for _ in range(2))]
    for i, (step, t) in enumerate(zip(scheduler.timesteps, visits, strict=True)):
        scheduler.scale_model_input(state, step)
        state = scheduler.step(path.to_eps(state, denoise(state, t), t), step, state).prev_sample
        if (
            name == "euler" or i % 2 or i == len(visits) - 1
        ):  # Heun: the second half of a step, or the last, first-order one
            states.append(state)

    same(our_states(SAMPLERS[ours], path, x, times), states)


def velocity(path: NoisePath, x: Tensor, x0: Tensor, t: float) -> Tensor:
    """dx_t/dt along the path through x, for the estimate x0 of the data."""
    return target("velocity", x0, path.to_eps(x, x0, t), t, path, 1.0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler(theirs: SimpleNamespace, shift: float) -> None:
    """With the shift once: their times from even ones are ours."""
    path, x = Flow(shift), noise()
    denoise = random_denoiser(path)
    scheduler = theirs.flow_euler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - i / STEPS for i in range(STEPS)])
    times = scheduler.sigmas.tolist()
    assert path.times(STEPS) == pytest.approx(times, abs=1e-6)

    states = [x]
    for step, t in zip(scheduler.timesteps, times, strict=False):
        slope = velocity(path, states[-1], denoise(states[-1], t), t)
        states.append(scheduler.step(slope, step, states[-1]).prev_sample)

    same(our_states(SAMPLERS["ddim"], path, x, path.times(STEPS)), states)


def test_the_velocity_of_flow_is_the_slope_of_their_heun(theirs: SimpleNamespace) -> None:
    """Their Heun for flow takes the mean of slopes in t, ours in sigma / alpha as on every path: only the slope is
    compared.
    """
    path, x = Flow(), noise()
    denoise = random_denoiser(path)
    scheduler = theirs.flow_heun()
    scheduler.set_timesteps(STEPS)
    sigmas = scheduler.sigmas.tolist()
    times = [*sigmas[:1], *sigmas[1:-1:2], 0.0]

    state = x
    for step, t in zip(scheduler.timesteps, [times[0], *(t for t in times[1:-1] for _ in range(2))], strict=True):
        state = scheduler.step((state - denoise(state, t)) / t, step, state).prev_sample

    for t, s in pairwise(times):
        slope = velocity(path, x, denoise(x, t), t)
        if s > 0:
            ahead = x + (s - t) * slope
            slope = (slope + velocity(path, ahead, denoise(ahead, s), s)) / 2
        x = x + (s - t) * slope
    torch.testing.assert_close(x, state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "flow_prediction"])
def test_dpmpp_2m(theirs: SimpleNamespace, kind: str, steps: int) -> None:
    """Order 2, midpoint, sigma zero at the end: preserved variance (in the cosine path's terms) and flow."""
    path: NoisePath = Flow() if kind == "flow_prediction" else Cosine()
    denoise, x = random_denoiser(path), noise()
    options = {"use_flow_sigmas": True} if kind == "flow_prediction" else TRAINED
    scheduler = theirs.dpmpp(**options, prediction_type=kind, solver_order=2, final_sigmas_type="zero")
    scheduler.set_timesteps(steps)
    times = (
        scheduler.sigmas.tolist()
        if kind == "flow_prediction"
        else [path.time_at(ratio) for ratio in scheduler.sigmas.tolist()]
    )

    states = [x]
    for step, t in zip(scheduler.timesteps, times, strict=False):
        x0 = denoise(states[-1], t)
        out = {"epsilon": path.to_eps(states[-1], x0, t), "sample": x0, "flow_prediction": (states[-1] - x0) / t}[kind]
        states.append(scheduler.step(out, step, states[-1]).prev_sample)

    same(our_states(SAMPLERS["dpmpp_2m"], path, x, times), states)


def test_heun_in_preserved_variance_is_their_heun_in_other_coordinates(theirs: SimpleNamespace) -> None:
    """The same steps on the cosine path: states are alpha times theirs, so ours needs no path of its own for them."""
    vp, ve, x = Cosine(), EDM(), noise()
    denoise = random_denoiser(vp)
    scheduler = theirs.heun(**TRAINED)
    scheduler.set_timesteps(STEPS)
    sigmas = scheduler.sigmas.tolist()
    ratios = [*sigmas[:1], *sigmas[1:-1:2], 0.0]
    times = [vp.time_at(ratio) for ratio in ratios]

    state = x * scheduler.init_noise_sigma
    for step, ratio in zip(
        scheduler.timesteps, [ratios[0], *(r for r in ratios[1:-1] for _ in range(2))], strict=True
    ):
        t = vp.time_at(ratio)
        x0 = denoise(state * vp.alpha(t), t)
        state = scheduler.step(ve.to_eps(state, x0, ratio), step, state).prev_sample

    torch.testing.assert_close(
        SAMPLERS["heun"](denoise, x * vp.sigma(times[0]), times, vp, None, None), state, rtol=1e-4, atol=1e-4
    )
