"""Paths against their definitions: ends, derivatives, inverse, precision, and the shift, once."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gengen.diffusion.parameterizations import target
from gengen.diffusion.paths import EDM, PATHS, Cosine, Flow, NoisePath

ALL = [pytest.param(path, id=repr(path)) for path in (Flow(), Flow(shift=3.0), Cosine(), EDM())]


def inner_times(path: NoisePath, n: int = 9) -> Tensor:
    """n times of the path, its ends left out."""
    return path.time_from_quantile(torch.arange(1, n + 1, dtype=torch.float64) / (n + 1))


@pytest.mark.parametrize("path", ALL)
def test_the_data_end_is_the_data_exactly(path: NoisePath) -> None:
    assert path.alpha(0.0) == 1 and path.sigma(0.0) == 0


@pytest.mark.parametrize("path", [Flow(), Flow(shift=3.0), Cosine()])
def test_the_noise_end_has_no_signal_exactly(path: NoisePath) -> None:
    """The cosine of a rounded pi / 2 is 6e-17, whose inverse is not infinite but a number."""
    assert path.times(5)[0] == 1
    assert path.alpha(1.0) == 0 and path.sigma(1.0) == 1
    for dtype in (torch.float32, torch.float64):
        end = torch.ones((), dtype=dtype)
        assert path.alpha(end) == 0 and path.sigma(end) == 1


def test_the_cosine_path_preserves_variance() -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    path = Cosine()
    torch.testing.assert_close(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t), rtol=0, atol=1e-15)


@pytest.mark.parametrize("path", ALL)
def test_derivatives_are_those_of_alpha_and_sigma(path: NoisePath) -> None:
    for f, derivative in ((path.alpha, path.d_alpha), (path.sigma, path.d_sigma)):
        t = inner_times(path).requires_grad_()
        (expected,) = torch.autograd.grad(f(t).sum(), t)
        torch.testing.assert_close(derivative(t), expected)


@pytest.mark.parametrize("path", ALL)
def test_time_at_undoes_the_ratio_of_noise_to_data(path: NoisePath) -> None:
    t = inner_times(path)
    torch.testing.assert_close(path.time_at(path.sigma(t) / path.alpha(t)), t)
    assert path.time_at(0.0) == 0


@pytest.mark.parametrize("path", ALL)
def test_floats_and_tensors_give_the_same_numbers(path: NoisePath) -> None:
    for t in inner_times(path):
        for name in ("alpha", "sigma", "d_alpha", "d_sigma", "time_at", "level", "log_snr_half"):
            f = getattr(path, name)
            assert f(t.item()) == pytest.approx(f(t).item(), rel=1e-14, abs=1e-15), name


@pytest.mark.parametrize("path", ALL)
def test_log_snr_half_is_infinite_at_the_ends_and_falls_between(path: NoisePath) -> None:
    values = [path.log_snr_half(t) for t in path.times(8)]
    assert values == sorted(values) and values[-1] == math.inf
    assert values[0] == pytest.approx(-math.log(80.0) if isinstance(path, EDM) else -math.inf)
    assert path.log_snr_half(torch.zeros(1)).item() == math.inf


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 18, 999])
def test_times_fall_strictly_from_the_noise_end_to_exactly_the_data_end(path: NoisePath, steps: int) -> None:
    times = path.times(steps)
    assert len(times) == steps + 1
    assert all(a > b for a, b in pairwise(times))
    assert times[0] == pytest.approx(80.0 if isinstance(path, EDM) else 1.0, rel=1e-12)
    assert times[-1] == 0


def test_edm_times_are_those_of_the_paper() -> None:
    """Karras et al. 2022, eq. 5, by hand: (80^(1/7) + i / 2 (0.002^(1/7) - 80^(1/7)))^7 at i = 1 is 2.5152."""
    assert EDM().times(3) == pytest.approx([80.0, 2.5152189, 0.002, 0.0], rel=1e-6)


@pytest.mark.parametrize("path", ALL)
def test_the_level_is_of_order_one_and_grows_with_the_noise(path: NoisePath) -> None:
    levels = [path.level(t) for t in path.times(40)[:-1]]
    assert levels == sorted(levels, reverse=True) and max(map(abs, levels)) < 2


@pytest.mark.parametrize("path", ALL)
def test_velocity_is_the_derivative_of_add_noise(path: NoisePath) -> None:
    draw = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 9, 4, generator=draw, dtype=torch.float64).unbind()
    t = inner_times(path)
    h = 1e-5 * t
    difference = (path.add_noise(x0, eps, t + h) - path.add_noise(x0, eps, t - h)) / (2 * h)[:, None]
    torch.testing.assert_close(target("velocity", x0, eps, t, path, 0.5), difference, rtol=1e-7, atol=1e-7)


def test_each_row_has_its_own_time() -> None:
    path, t = Flow(), torch.tensor([0.25, 0.75])
    x0, eps = torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    torch.testing.assert_close(path.add_noise(x0, eps, t)[:, 0, 0, 0], torch.tensor([0.75, 0.25]))


def noised_in_bf16(path: NoisePath, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """The bug: the path's numbers take the dtype of the sample."""
    alpha, sigma = (f(t).to(x0.dtype).reshape(-1, 1) for f in (path.alpha, path.sigma))
    return alpha * x0 + sigma * eps


@pytest.mark.parametrize("name", PATHS)
def test_pitfall_fourteen_bf16_samples_do_not_corrode_the_path(name: str) -> None:
    """Pitfall fourteen: in bf16 there is nothing between 0.996 and 1, and the first thousandth of a path adds no
    noise.
    """
    path, draw = PATHS[name](), torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 64, 32, generator=draw).bfloat16().unbind()
    t = torch.full((64,), 1e-3)

    def holds(noised: Callable[[NoisePath, Tensor, Tensor, Tensor], Tensor]) -> None:
        exact = path.add_noise(x0.double(), eps.double(), t.double())
        torch.testing.assert_close(noised(path, x0, eps, t).double(), exact, rtol=1e-6, atol=1e-6)

    holds(lambda path, *args: path.add_noise(*args))
    with pytest.raises(AssertionError):
        holds(noised_in_bf16)


def test_pitfall_nineteen_the_shift_is_applied_once() -> None:
    """Pitfall nineteen: a shift multiplies the ratio of noise to data by itself, in sampling and in training, not by
    its square.
    """
    from gengen.diffusion.times import TIME_SAMPLERS

    shift, u = 3.0, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    plain, path = Flow(), Flow(shift)

    def holds(shifted: Tensor, unshifted: Tensor) -> None:
        torch.testing.assert_close(shifted / (1 - shifted), shift * unshifted / (1 - unshifted))

    pairs = [(torch.tensor(path.times(8)[1:-1]), torch.tensor(plain.times(8)[1:-1]))]
    pairs += [(TIME_SAMPLERS[name](u, path), TIME_SAMPLERS[name](u, plain)) for name in ("uniform", "logit_normal")]
    for shifted, unshifted in pairs:
        holds(shifted, unshifted)
        with pytest.raises(AssertionError):
            holds(path.time_from_quantile(shifted), unshifted)
    assert path.times(4) == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])  # by hand: 3 u / (1 + 2 u) at 1, 3/4, 1/2, 1/4
