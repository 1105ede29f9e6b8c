"""Samplers on Gaussian data, whose exact denoiser is linear: the deviation of what comes out is computed, not
sampled."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gengen.diffusion.guidance import Denoiser
from gengen.diffusion.paths import PATHS, Flow, NoisePath
from gengen.diffusion.samplers import SAMPLERS, ancestral, ddim, dpmpp_2m, heun, log_snr_step

MEAN, STD = 1.0, 0.5


def gaussian(path: NoisePath) -> Denoiser:
    """E[x_0 | x_t] of data N(MEAN, STD^2)."""

    def denoise(x: Tensor, t: float) -> Tensor:
        a, s = path.alpha(t), path.sigma(t)
        return MEAN + a * STD**2 / (a**2 * STD**2 + s**2) * (x - a * MEAN)

    return denoise


Sampler = Callable[..., Tensor]


def mean_and_std(sampler: Sampler, path: NoisePath, times: list[float]) -> tuple[float, float]:
    """Of the samples, exactly: they are affine in the starting noise and in each draw, one row for each of these."""
    draws = iter(torch.eye(len(times) + 1, dtype=torch.float64))
    x = path.sigma(times[0]) * next(draws)
    out = sampler(gaussian(path), x, times, path, lambda: next(draws))
    zero = out[-1]  # in the last row nothing was drawn
    return zero.item(), (out - zero).norm().item()


GOLDEN = {  # standard deviations from an independent implementation in numpy: Euler, Heun, DPM-Solver++(2M)
    ("flow", 10): (0.431, 0.503, 0.497),
    ("flow", 20): (0.464, 0.501, 0.506),
    ("flow", 40): (0.482, 0.500, 0.503),
    ("cosine", 10): (0.428, 0.487, 0.480),
    ("cosine", 20): (0.463, 0.497, 0.502),
    ("cosine", 40): (0.481, 0.499, 0.503),
    ("edm", 10): (0.365, 0.610, 0.579),
    ("edm", 20): (0.431, 0.522, 0.525),
    ("edm", 40): (0.465, 0.505, 0.505),
}


@pytest.mark.parametrize(("name", "steps"), GOLDEN)
def test_gaussian_data_come_out_with_the_golden_deviation(name: str, steps: int) -> None:
    path = PATHS[name]()
    for sampler, golden in zip((ddim, heun, dpmpp_2m), GOLDEN[name, steps], strict=True):
        mean, std = mean_and_std(sampler, path, path.times(steps))
        assert std == pytest.approx(golden, abs=1e-3)
        assert mean == pytest.approx(MEAN, abs=1e-12 if name != "edm" else 9e-3)  # edm begins at a finite sigma_max


def ancestral_by_bayes(path: NoisePath, times: list[float]) -> tuple[float, float]:
    """Mean and deviation of ancestral sampling, from prior x_s | x_0 and likelihood x_t | x_s, in precisions."""
    mean, var = 0.0, path.sigma(times[0]) ** 2
    for t, s in pairwise(times):
        a, b, a_s, b_s = path.alpha(t), path.sigma(t), path.alpha(s), path.sigma(s)
        gain = a * STD**2 / (a**2 * STD**2 + b**2)
        x0_slope, x0_offset = gain, MEAN - gain * a * MEAN
        if b_s == 0:
            slope, offset, spread = x0_slope, x0_offset, 0.0
        else:
            k = a / a_s  # x_t = k x_s + sqrt(q) noise
            q = b**2 - k**2 * b_s**2
            precision = 1 / b_s**2 + k**2 / q
            slope = (a_s * x0_slope / b_s**2 + k / q) / precision
            offset, spread = a_s * x0_offset / b_s**2 / precision, 1 / precision
        mean, var = slope * mean + offset, slope**2 * var + spread
    return mean, math.sqrt(var)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("steps", [1, 2, 10, 20, 40])
def test_ancestral_sampling_is_bayes_rule(name: str, steps: int) -> None:
    path = PATHS[name]()
    times = path.times(steps)
    assert mean_and_std(ancestral, path, times) == pytest.approx(ancestral_by_bayes(path, times), abs=1e-9)


@pytest.mark.parametrize("name", PATHS)
def test_ancestral_sampling_tends_to_the_data(name: str) -> None:
    path = PATHS[name]()
    errors = [abs(mean_and_std(ancestral, path, path.times(steps))[1] - STD) for steps in (40, 80, 160)]
    assert errors[2] < 0.04 and errors[0] > 1.6 * errors[1] > 1.6**2 * errors[2]


@pytest.mark.parametrize("sampler", [heun, dpmpp_2m])
@pytest.mark.parametrize("name", PATHS)
def test_second_order_samplers_gain_by_the_square(sampler: Sampler, name: str) -> None:
    path = PATHS[name]()
    a, s = path.alpha(path.times(1)[0]), path.sigma(path.times(1)[0])
    exact = STD * s / math.sqrt(a**2 * STD**2 + s**2)  # the flow of exact slopes scales x_t by its deviation
    errors = [abs(mean_and_std(sampler, path, path.times(steps))[1] - exact) for steps in (80, 320)]
    assert errors[0] / errors[1] > 8  # 4 for first order; 16 but for the start, where lambda comes from minus infinity


@pytest.mark.parametrize("name", PATHS)
def test_ddim_with_all_of_its_noise_is_ancestral(name: str) -> None:
    path = PATHS[name]()
    x = path.sigma(path.times(7)[0]) * torch.randn(3, 5, generator=torch.Generator().manual_seed(0))

    def run(sampler: Sampler, **options: float) -> Tensor:
        draw = torch.Generator().manual_seed(1)
        return sampler(gaussian(path), x, path.times(7), path, lambda: torch.randn(3, 5, generator=draw), **options)

    assert torch.equal(run(ddim, eta=1.0), run(ancestral))
    assert not torch.allclose(run(ddim, eta=0.5), run(ddim)) and not torch.allclose(run(ddim, eta=0.5), run(ancestral))


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m"])
def test_deterministic_samplers_draw_nothing(sampler: str) -> None:
    def never() -> Tensor:
        raise AssertionError("noise was drawn")

    path = Flow()
    with_noise, without = (
        SAMPLERS[sampler](gaussian(path), torch.ones(2), path.times(5), path, noise, None) for noise in (never, None)
    )
    assert torch.equal(with_noise, without)


def test_a_stochastic_sampler_says_when_it_has_no_noise() -> None:
    path = Flow()
    with pytest.raises(ValueError, match="needs noise"):
        ancestral(gaussian(path), torch.ones(1), path.times(3), path)


def squashed(path: NoisePath) -> Denoiser:
    """A denoiser that is not linear."""
    return lambda x, t: torch.tanh(x / (0.3 + path.sigma(t)) + math.cos(3 * t))


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_samples_are_the_last_estimate_exactly(name: str, sampler: str, steps: int) -> None:
    path, times = PATHS[name](), PATHS[name]().times(steps)
    draw = torch.Generator().manual_seed(0)
    x = path.sigma(times[0]) * torch.randn(2, 3, generator=draw)
    seen: list[tuple[int, float, Tensor, Tensor]] = []
    out = SAMPLERS[sampler](
        squashed(path), x, times, path, lambda: torch.randn(2, 3, generator=draw), lambda *step: seen.append(step)
    )
    assert [(i, t) for i, t, _, _ in seen] == list(enumerate(times[:-1]))
    assert torch.equal(seen[0][2], x)
    torch.testing.assert_close(out, seen[-1][3], rtol=0, atol=0)
    assert out.dtype == torch.float32


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_calls_are_counted_and_never_at_the_data_end(name: str, sampler: str, steps: int) -> None:
    path, times = PATHS[name](), []

    def denoise(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return x

    SAMPLERS[sampler](denoise, torch.ones(1), path.times(steps), path, lambda: torch.ones(1), None)
    second_order = sum(math.isfinite(log_snr_step(path, t, s)) for t, s in pairwise(path.times(steps)))
    assert len(times) == steps + (second_order if sampler == "heun" else 0)
    assert min(times) > 0 and set(times) == set(path.times(steps)[:-1])


def test_a_sample_does_not_depend_on_its_batch() -> None:
    path = Flow()

    def samples(seeds: list[int]) -> Tensor:
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]

        def noise() -> Tensor:
            return torch.stack([torch.randn(4, generator=draw) for draw in draws])

        return ancestral(squashed(path), noise(), path.times(6), path, noise)

    torch.testing.assert_close(samples([5, 6, 7])[1:2], samples([6]), rtol=0, atol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", PATHS)
def test_data_moved_by_a_constant_come_out_moved_by_it(sampler: str, name: str) -> None:
    """All samplers are exact for the part of the state that is not noise."""
    path, times = PATHS[name](), PATHS[name]().times(9)
    x = path.sigma(times[0]) * torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = squashed(path)

    def moved(x: Tensor, t: float) -> Tensor:
        return plain(x - path.alpha(t) * 2.5, t) + 2.5

    def run(denoise: Denoiser, x: Tensor) -> Tensor:
        draw = torch.Generator().manual_seed(1)
        noise = lambda: torch.randn(16, generator=draw, dtype=torch.float64)  # noqa: E731
        return SAMPLERS[sampler](denoise, x, times, path, noise, None)

    torch.testing.assert_close(run(moved, x + path.alpha(times[0]) * 2.5), run(plain, x) + 2.5)


def ddim_by_a_stride(
    denoise: Denoiser, x: Tensor, times: list[float], path: NoisePath, *_: object, train_steps: int = 1000
) -> Tensor:
    """The bug: where a step ends is not the next time of the list but one stride, a whole number of training steps,
    further.
    """
    stride = train_steps // (len(times) - 1) / train_steps
    for t in times[:-1]:
        s = max(0.0, t - stride)
        x0 = denoise(x, t)
        x = path.alpha(s) * x0 + path.sigma(s) * path.to_eps(x, x0, t)
    return x


def test_pitfall_twelve_steps_join_and_end_at_the_data_whatever_their_number() -> None:
    """Pitfall twelve: steps computed by a stride fit their times only where the number of steps divides a thousand."""
    path = Flow()

    def holds(sampler: Sampler, steps: int) -> None:
        seen: list[Tensor] = []

        def denoise(x: Tensor, t: float) -> Tensor:
            seen.append(gaussian(path)(x, t))
            return seen[-1]

        out = sampler(denoise, torch.linspace(-2, 2, 5, dtype=torch.float64), path.times(steps), path)
        assert len(seen) == steps
        torch.testing.assert_close(out, seen[-1], rtol=0, atol=1e-12)

    for steps in (7, 10, 18, 999):
        holds(ddim, steps)
    holds(ddim_by_a_stride, 10)  # the bug does not show here
    for steps in (7, 18, 999):
        with pytest.raises(AssertionError):
            holds(ddim_by_a_stride, steps)
    strided = range(0, 1000, 1000 // 7)  # the same bug in the list of times: eight of them for seven steps
    assert len(strided) == 8 and len(path.times(7)) == 7 + 1


@pytest.mark.parametrize("name", ["flow", "cosine"])
def test_pitfall_ten_sampling_begins_where_no_signal_is_left(name: str) -> None:
    """Pitfall ten: noise given out as a state with a little signal in it moves the mean of all samples."""
    path = PATHS[name]()

    def holds(times: list[float]) -> None:
        draws = iter(torch.eye(2, dtype=torch.float64))
        zero = ddim(gaussian(path), 1.0 * next(draws), times, path)[-1].item()
        assert zero == pytest.approx(MEAN, abs=1e-3)

    holds(path.times(20))
    with pytest.raises(AssertionError):
        holds(path.times(20)[1:])  # "leading" spacing: the list without its noise end, the noise as before


def dpmpp_2m_in_sigma(
    denoise: Denoiser, x: Tensor, times: list[float], path: NoisePath, *_: object, first_order_end: bool = True
) -> Tensor:
    """DPM-Solver++(2M) once more, in the coordinates x / alpha and -ln sigma of the exploding path (k-diffusion's
    way).
    """
    before: Tensor | None = None
    last = math.nan
    sigmas = [path.sigma(t) / path.alpha(t) for t in times]
    x = x / path.alpha(times[0])
    for i, (sigma, to) in enumerate(pairwise(sigmas)):
        x0 = denoise(x * path.alpha(times[i]), times[i])
        h = -math.log(max(to, 1e-300)) + math.log(sigma)
        d = x0
        if before is not None and not (to == 0 and first_order_end):
            r = (math.log(last) - math.log(sigma)) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        x = to / sigma * x - math.expm1(-h) * d
        before, last = x0, sigma
    return x


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("steps", [5, 12])
def test_pitfall_eighteen_the_last_step_of_dpmpp_is_first_order(name: str, steps: int) -> None:
    """Pitfall eighteen: on the way to sigma = 0 the trend is carried on over an infinite step; the end must not use
    it.
    """
    path = PATHS[name]()
    times = path.times(steps + 1)[1:]  # a finite start, which both forms know
    x = path.sigma(times[0]) * torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoise = squashed(path)

    def holds(sampler: Sampler) -> None:
        seen: list[Tensor] = []

        def noted(x: Tensor, t: float) -> Tensor:
            seen.append(denoise(x, t))
            return seen[-1]

        out = sampler(noted, x, times, path)
        torch.testing.assert_close(out, seen[-1])
        torch.testing.assert_close(out, dpmpp_2m_in_sigma(denoise, x, times, path))

    holds(dpmpp_2m)
    with pytest.raises(AssertionError):
        holds(lambda *args: dpmpp_2m_in_sigma(*args, first_order_end=False))


def test_dpmpp_without_its_guard_gives_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Flow()
    x = torch.randn(8, generator=torch.Generator().manual_seed(0))
    assert dpmpp_2m(squashed(path), x, path.times(6), path).isfinite().all()
    monkeypatch.setattr(math, "isfinite", lambda h: True)
    assert not dpmpp_2m(squashed(path), x, path.times(6), path).isfinite().all()
