"""Edits on Gaussian data, whose exact denoiser is linear: means and deviations are computed, not sampled."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gengen.diffusion import editing
from gengen.diffusion.editing import inpaint, noised_again, noised_start, outpaint, windows
from gengen.diffusion.guidance import Denoiser
from gengen.diffusion.paths import PATHS, Cosine, Flow, NoisePath
from gengen.diffusion.samplers import SAMPLERS, Callback, ddim, heun

# --- the table of inpainting: two numbers of correlation .8, the first known

MEAN, COVARIANCE = torch.tensor([0.5, -0.3]).double(), torch.tensor([[1.0, 0.8], [0.8, 1.0]]).double()
KNOWN = 2.0
IS_OPEN = torch.tensor([False, True])


def gaussian(path: NoisePath) -> Denoiser:
    """E[x_0 | x_t] of data N(MEAN, COVARIANCE)."""

    def denoise(x: Tensor, t: float) -> Tensor:
        a, s = path.alpha(t), path.sigma(t)
        gain = a * COVARIANCE @ torch.linalg.inv(a**2 * COVARIANCE + s**2 * torch.eye(2).double())
        return MEAN + (x - a * MEAN) @ gain.T

    return denoise


def unit_draws(draws: int) -> Iterator[Tensor]:
    """Yield draws of two numbers, (2 draws + 1, 2), such that each row holds one number 1 of one draw, the last none.

    What is affine in all of them has the last row as its mean, and the differences to it as the share of each.
    """
    for i in range(draws):
        rows = torch.zeros(2 * draws + 1, 2).double()
        rows[2 * i, 0] = rows[2 * i + 1, 1] = 1.0
        yield rows


def mean_and_std(x: Tensor) -> tuple[float, float]:
    return x[-1].item(), (x - x[-1]).norm().item()


def inpainted(name: str, sampler: str, steps: int, resamples: int) -> Tensor:
    """What is made of the second number, in the rows of `unit_draws`."""
    path = PATHS[name]()
    draws = 1 + steps * (3 * resamples - 1)  # the start; the known part, the way back, and what the sampler may draw
    draw = unit_draws(draws)
    times = path.times(steps)
    x = path.sigma(times[0]) * next(draw)
    known = torch.tensor([KNOWN, 0.0]).double().expand_as(x)
    call = lambda: next(draw)  # noqa: E731
    out = inpaint(SAMPLERS[sampler], gaussian(path), x, times, path, call, call, known, IS_OPEN, resamples)
    assert torch.equal(out[:, 0], known[:, 0])
    return out[:, 1]


GOLDEN = {  # (steps, rounds): from 40,000 draws in numpy, on flow with DDIM; the truth is .900 and .600
    (10, 1): (0.192, 0.695), (10, 2): (0.421, 0.623), (10, 5): (0.674, 0.541), (10, 10): (0.787, 0.493),
    (20, 1): (0.213, 0.732), (20, 2): (0.435, 0.660), (20, 5): (0.686, 0.584), (20, 10): (0.801, 0.549),
    (50, 1): (0.214, 0.758), (50, 2): (0.441, 0.683), (50, 5): (0.697, 0.617), (50, 10): (0.803, 0.586),
}  # fmt: skip


@pytest.mark.parametrize(("steps", "resamples"), GOLDEN)
def test_inpainting_a_gaussian_gives_the_golden_mean_and_deviation(steps: int, resamples: int) -> None:
    found = mean_and_std(inpainted("flow", "ddim", steps, resamples))
    assert found == pytest.approx(GOLDEN[steps, resamples], abs=0.03)
    assert found == pytest.approx(GOLDEN[steps, resamples], abs=0.01)  # but for the draws of the golden table


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", PATHS)
def test_each_round_brings_the_mean_nearer_to_the_truth(name: str, sampler: str) -> None:
    means = [mean_and_std(inpainted(name, sampler, 20, resamples))[0] for resamples in (1, 2, 5, 10)]
    assert means == sorted(means) and means[0] < 0.45 and means[-1] > 0.74, means  # the prior's -.3, the truth .9


# --- SDEdit: one number, data N(1, .5^2), the input 2

STD = 0.5


def one_gaussian(path: NoisePath) -> Denoiser:
    def denoise(x: Tensor, t: float) -> Tensor:
        a, s = path.alpha(t), path.sigma(t)
        return 1 + a * STD**2 / (a**2 * STD**2 + s**2) * (x - a)

    return denoise


def redrawn(path: NoisePath, strength: float, steps: int = 20) -> tuple[float, float]:
    """Mean and deviation of what is made of the input 2, exactly: one row with the draw, one without."""
    times = path.times(steps, strength)
    eps = torch.tensor([1.0, 0.0]).double()
    out = heun(one_gaussian(path), noised_start(torch.full_like(eps, 2.0), eps, times, path, strength), times, path)
    return out[1].item(), (out[0] - out[1]).abs().item()


SDEDIT = {0.2: (1.8944, 0.2236), 0.5: (1.4472, 0.4472), 0.8: (1.1240, 0.4961), 1.0: (1.0, 0.5)}


@pytest.mark.parametrize("strength", SDEDIT)
def test_redrawing_from_part_of_the_way_gives_the_golden_values(strength: float) -> None:
    assert redrawn(Flow(), strength) == pytest.approx(SDEDIT[strength], abs=0.01)


@pytest.mark.parametrize("name", PATHS)
def test_the_further_the_way_the_less_of_the_input_is_left(name: str) -> None:
    means, stds = zip(*(redrawn(PATHS[name](), strength / 10) for strength in range(1, 11)), strict=True)
    assert list(means) == sorted(means, reverse=True) and means[0] > 1.9 and means[-1] == pytest.approx(1, abs=0.01)
    assert stds[0] < 0.2 and stds[-1] == pytest.approx(STD, abs=0.03)


# --- times by strength


@pytest.mark.parametrize("path", [Flow(), Flow(shift=3.0), *(PATHS[name]() for name in ("cosine", "edm"))])
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_an_edit_has_as_many_steps_whatever_its_strength(path: NoisePath, steps: int) -> None:
    assert path.times(steps, 1.0) == path.times(steps)
    for strength in (0.834, 0.843, 0.5, 0.01):
        times = path.times(steps, strength)
        assert len(times) == steps + 1 and times[-1] == 0 and times[0] == path.time_from_quantile(strength)
        assert all(s < t for t, s in pairwise(times))
    assert path.times(steps, 0.834) != path.times(steps, 0.843)


# --- what an edit depends on


def squashed(path: NoisePath) -> Denoiser:
    """A denoiser that is not linear."""
    return lambda x, t: torch.tanh(x / (0.3 + path.sigma(t)) + math.cos(3 * t))


def draws(seed: int, shape: tuple[int, ...] = (2, 3, 4)) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_all_open_one_round_is_the_sampler_bit_for_bit(name: str, sampler: str) -> None:
    """DPM-Solver++(2M), called with two times, is DDIM: equal to rounding."""
    path = PATHS[name]()
    times, picture = path.times(6), torch.full((2, 3, 4), 0.3)
    x = noised_start(picture, draws(0)(), times, path, 1.0)
    assert torch.equal(x, path.sigma(times[0]) * draws(0)())
    everything = torch.ones(3, 4, dtype=torch.bool)
    inpainted = inpaint(
        SAMPLERS[sampler], squashed(path), x, times, path, draws(1), draws(2), picture, everything, resamples=1
    )
    if sampler == "dpmpp_2m":
        torch.testing.assert_close(inpainted, ddim(squashed(path), x, times, path))
    else:
        assert torch.equal(inpainted, SAMPLERS[sampler](squashed(path), x, times, path, draws(1), None))


@pytest.mark.parametrize("name", PATHS)
def test_the_way_back_undoes_the_mean_and_the_spread_of_a_step(name: str) -> None:
    """From x_s = alpha_s x_0 + sigma_s eps it leads to alpha_t x_0 + a draw of deviation sigma_t."""
    path = PATHS[name]()
    for t, s in pairwise(path.times(5)):
        x_s = path.alpha(s) * 2 + path.sigma(s) * torch.tensor([1.0, 0.0, 0.0]).double()
        x_t = noised_again(x_s, torch.tensor([0.0, 1.0, 0.0]).double(), s, t, path)
        mean, std = mean_and_std(x_t)
        assert (mean, std) == pytest.approx((path.alpha(t) * 2, path.sigma(t)), rel=1e-9, abs=1e-9)


def open_half() -> Tensor:
    return torch.arange(4).expand(3, 4) >= 2


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_callback_sees_each_step_once_with_the_known_part_in_it(name: str, sampler: str) -> None:
    path, seen = PATHS[name](), list[tuple[int, float, Tensor]]()
    times, picture = path.times(5), draws(7)()
    note: Callback = lambda i, t, x, x0: seen.append((i, t, x0))  # noqa: E731
    args = (SAMPLERS[sampler], squashed(path), path.sigma(times[0]) * draws(0)(), times, path, draws(1), draws(2))
    out = inpaint(*args, picture, open_half(), 3, note)
    assert [(i, t) for i, t, _ in seen] == list(enumerate(times[:-1]))
    assert all(torch.equal(x0[..., :2], picture[..., :2]) for _, _, x0 in seen)
    torch.testing.assert_close(out, seen[-1][2], rtol=0, atol=0)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_what_it_costs_is_the_samplers_calls_times_the_rounds(name: str, sampler: str) -> None:
    path, calls = PATHS[name](), list[float]()

    def counted(x: Tensor, t: float) -> Tensor:
        calls.append(t)
        return x

    times = path.times(20)
    args = (SAMPLERS[sampler], counted, draws(0)(), times, path, draws(1), draws(2), draws(3)(), open_half())
    inpaint(*args, resamples=10)
    assert len(calls) == 10 * {"ddim": 20, "heun": 39 if name == "edm" else 38}[sampler]


# --- pitfalls


def without_the_truth(sampler: editing.Sampler, denoise: Denoiser, x: Tensor, times: list[float], path: NoisePath,
                      noise: Callable[[], Tensor], known_noise: Callable[[], Tensor], x0: Tensor, is_open: Tensor,
                      resamples: int) -> Tensor:  # fmt: skip
    """The bug: what is known is put in before each step, and what the last step makes of it is returned."""
    for t, s in pairwise(times):
        x = torch.where(is_open, x, path.add_noise(x0, known_noise(), t))
        x = sampler(denoise, x, [t, s], path, noise, None)
    return x


@pytest.mark.parametrize("name", PATHS)
def test_pitfall_seven_the_known_part_comes_out_as_the_truth(name: str) -> None:
    path = PATHS[name]()
    picture, times = draws(5)(), path.times(6)

    def holds(fill: Callable[..., Tensor]) -> None:
        x = path.sigma(times[0]) * draws(0)()
        out = fill(ddim, squashed(path), x, times, path, draws(1), draws(2), picture, open_half(), 1)
        assert torch.equal(out[..., :2], picture[..., :2]) and not torch.equal(out[..., 2:], picture[..., 2:])

    holds(inpaint)
    with pytest.raises(AssertionError):
        holds(without_the_truth)


@pytest.mark.parametrize("name", PATHS)
def test_pitfall_nine_the_known_part_has_the_coefficients_of_its_path(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen by the denoiser at t: alpha(t) times the picture, and a draw of deviation sigma(t)."""
    path = PATHS[name]()

    def holds() -> None:
        seen: list[tuple[float, Tensor]] = []

        def denoise(x: Tensor, t: float) -> Tensor:
            seen.append((t, x[:, 0]))
            return x

        draw = unit_draws(1 + 2 * 5 * 2)
        call, times = (lambda: next(draw)), path.times(5)
        x = path.sigma(times[0]) * next(draw)
        inpaint(ddim, denoise, x, times, path, None, call, torch.full_like(x, KNOWN), IS_OPEN, 2)
        for t, known in seen:
            wanted = (path.alpha(t) * KNOWN, path.sigma(t))
            assert mean_and_std(known) == pytest.approx(wanted, rel=1e-9, abs=1e-9), t
        assert len(seen) == 10

    holds()
    other = Cosine() if name == "flow" else Flow()  # the coefficients of another path: those of DDPM on flow, say
    monkeypatch.setattr(type(path), "add_noise", lambda self, x0, eps, t: other.add_noise(x0, eps, t))
    with pytest.raises(AssertionError):
        holds()


# --- windows


def test_windows_cover_what_is_open_from_what_is_known_outwards() -> None:
    canvas = torch.ones(8, 20, dtype=torch.bool)
    canvas[:, 12:] = False  # the picture is at the right
    assert windows(canvas, 8, 4) == [(0, 8), (0, 4), (0, 0)]
    assert windows(torch.zeros(8, 20, dtype=torch.bool), 8, 4) == []
    ragged = torch.ones(11, 8, dtype=torch.bool)
    ragged[:8] = False
    assert windows(ragged, 8, 4) == [(3, 0)]  # the last one ends with the canvas


@pytest.mark.parametrize(("top", "left", "bottom", "right"), [(5, 0, 0, 9), (3, 3, 3, 3), (0, 17, 0, 0)])
def test_each_window_is_drawn_once_given_the_last(top: int, left: int, bottom: int, right: int) -> None:
    """With a window's number as what it draws, all is drawn, nothing twice, and always beside what was there."""
    picture = torch.full((1, 1, 8, 8), 100.0)
    canvas = torch.nn.functional.pad(picture, (left, right, top, bottom))
    is_open = canvas[0, 0] == 0
    seen: list[float] = []

    def redraw(i: int, part: Tensor, still_open: Tensor) -> Tensor:
        assert part.shape == (1, 1, 8, 8) and torch.equal(still_open, part[0, 0] == 0)
        seen.append((~still_open).float().mean().item())
        return torch.full_like(part, i + 1.0)

    out = outpaint(canvas, is_open, 8, 4, redraw)
    assert out.min() > 0 and torch.equal(out[~is_open.expand_as(out)], canvas[~is_open.expand_as(out)])
    assert min(seen) >= 0.25 and canvas[0, 0][is_open].eq(0).all()  # the caller's canvas stays as it was
