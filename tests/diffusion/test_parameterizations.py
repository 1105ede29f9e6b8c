"""Every parameterization on every path: round trips, unit variance, and what each one is by definition."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gengen.config.model import UNetConfig
from gengen.diffusion.parameterizations import (
    PARAMETERIZATIONS,
    denoiser,
    input_scale,
    network_inputs,
    target,
    to_x0,
    x0_gain,
)
from gengen.diffusion.paths import PATHS, NoisePath
from gengen.errors import UserError

PAIRS = [(p, path) for p in PARAMETERIZATIONS for path in PATHS]
SIGMA_DATA = 0.5


def batch(path: NoisePath) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x0, eps, x_t (7, 5) and t (7,) from near the data end to near the noise end, fp64."""
    draw = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 7, 5, generator=draw, dtype=torch.float64)
    t = path.time_from_quantile(torch.tensor([0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999], dtype=torch.float64))
    return x0, eps, path.add_noise(x0, eps, t), t


@pytest.mark.parametrize(("parameterization", "name"), PAIRS)
def test_the_target_leads_back_to_x0_and_eps(parameterization: str, name: str) -> None:
    path = PATHS[name]()
    x0, eps, x_t, t = batch(path)
    answer = target(parameterization, x0, eps, t, path, SIGMA_DATA)
    back = to_x0(parameterization, answer, x_t, t, path, SIGMA_DATA)
    torch.testing.assert_close(back, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(path.to_eps(x_t, back, t), eps, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("parameterization", "name"), PAIRS)
def test_the_gain_is_how_an_error_of_the_output_shows_in_x0(parameterization: str, name: str) -> None:
    path = PATHS[name]()
    x0, eps, x_t, t = batch(path)
    answer = target(parameterization, x0, eps, t, path, SIGMA_DATA)
    error = to_x0(parameterization, answer + 0.25, x_t, t, path, SIGMA_DATA) - x0
    gain = torch.as_tensor(x0_gain(parameterization, t, path, SIGMA_DATA), dtype=torch.float64).expand(7)
    torch.testing.assert_close(error, (0.25 * gain)[:, None].expand_as(error), rtol=1e-6, atol=1e-8)


def v_as_if_variance_were_preserved(out: Tensor, x_t: Tensor, t: Tensor, path: NoisePath) -> Tensor:
    """The bug: x_0 = alpha x - sigma v, which holds on the cosine path only."""
    return path.alpha(t)[:, None] * x_t - path.sigma(t)[:, None] * out


@pytest.mark.parametrize("parameterization", ["v", "velocity"])
@pytest.mark.parametrize("name", PATHS)
def test_pitfall_thirteen_the_conversion_of_v_knows_its_path(parameterization: str, name: str) -> None:
    """Pitfall thirteen: x_0 = alpha x - sigma v only where alpha^2 + sigma^2 = 1; for flow it is x - sigma
    velocity."""
    path = PATHS[name]()
    x0, eps, x_t, t = batch(path)
    answer = target(parameterization, x0, eps, t, path, SIGMA_DATA)

    def holds(convert: Callable[[Tensor, Tensor, Tensor, NoisePath], Tensor]) -> None:
        torch.testing.assert_close(convert(answer, x_t, t, path), x0, rtol=1e-9, atol=1e-9)

    holds(lambda out, x_t, t, path: to_x0(parameterization, out, x_t, t, path, SIGMA_DATA))
    if (parameterization, name) in (("v", "cosine"), ("velocity", "edm")):  # on edm velocity is eps, and alpha 1
        holds(v_as_if_variance_were_preserved)
    else:
        with pytest.raises(AssertionError):
            holds(v_as_if_variance_were_preserved)


def test_targets_are_the_papers() -> None:
    flow, cosine, edm = (PATHS[name]() for name in ("flow", "cosine", "edm"))
    x0, eps, x_t, t = batch(flow)
    torch.testing.assert_close(target("velocity", x0, eps, t, flow, SIGMA_DATA), eps - x0)
    torch.testing.assert_close(to_x0("velocity", eps - x0, x_t, t, flow, SIGMA_DATA), x_t - t[:, None] * (eps - x0))
    v = cosine.alpha(t)[:, None] * eps - cosine.sigma(t)[:, None] * x0
    torch.testing.assert_close(target("v", x0, eps, t, cosine, SIGMA_DATA), v)
    torch.testing.assert_close(target("velocity", x0, eps, t, cosine, SIGMA_DATA), torch.pi / 2 * v)
    x0, eps, x_t, t = batch(edm)
    torch.testing.assert_close(target("velocity", x0, eps, t, edm, SIGMA_DATA), eps)
    s = t[:, None]
    c_skip, c_out = (
        SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2),
        s * SIGMA_DATA / (s**2 + SIGMA_DATA**2).sqrt(),
    )  # Karras et al. 2022, Table 1
    torch.testing.assert_close(
        target("edm", x0, eps, t, edm, SIGMA_DATA), (x0 - c_skip * x_t) / c_out, rtol=1e-5, atol=1e-9
    )
    torch.testing.assert_close(input_scale(t, edm, SIGMA_DATA), (t**2 + SIGMA_DATA**2) ** -0.5)


def test_preconditioning_is_minus_v_for_unit_data_that_keep_their_variance() -> None:
    path = PATHS["cosine"]()
    x0, eps, _, t = batch(path)
    torch.testing.assert_close(target("edm", x0, eps, t, path, 1.0), -target("v", x0, eps, t, path, 1.0))


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
def test_the_network_sees_unit_variance_and_edm_asks_for_unit_variance(name: str, sigma_data: float) -> None:
    path = PATHS[name]()
    t = path.time_from_quantile(torch.tensor([0.0, 0.01, 0.5, 1.0], dtype=torch.float64))
    x0 = sigma_data * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64).expand(
        4, 4
    )  # mean square and product with eps: exact
    eps = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).expand(4, 4)
    scaled, _ = network_inputs(path.add_noise(x0, eps, t), t, path, sigma_data)
    torch.testing.assert_close((scaled**2).mean(1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(
        (target("edm", x0, eps, t, path, sigma_data) ** 2).mean(1), torch.ones(4, dtype=torch.float64)
    )


@pytest.mark.parametrize(("parameterization", "name"), [(p, path) for p, path in PAIRS if p != "eps"])
def test_conversions_are_finite_where_the_path_begins(parameterization: str, name: str) -> None:
    path = PATHS[name]()
    start = path.times(1)[0]
    x = torch.tensor([[3.0, -4.0]])
    assert to_x0(parameterization, x, x, start, path, SIGMA_DATA).isfinite().all()
    assert target(parameterization, x, x, start, path, SIGMA_DATA).isfinite().all()


def test_pitfall_ten_eps_prediction_is_refused_where_pure_noise_says_nothing() -> None:
    """Pitfall ten: with zero terminal SNR an answer in eps is divided by alpha = 0 at the first step of every
    sampler."""
    for name in ("flow", "cosine"):
        path = PATHS[name]()
        x = torch.ones(1, 2)
        with pytest.raises((ZeroDivisionError, AssertionError)):  # what the refusal spares the user
            assert to_x0("eps", x, x, path.times(1)[0], path, SIGMA_DATA).isfinite().all()
        with pytest.raises(
            UserError, match=rf"model.prediction=eps .* model.path={name} is pure noise: take velocity, v or x0"
        ):
            UNetConfig(prediction="eps", path=name).check()
    for parameterization, name in PAIRS:
        if parameterization != "eps" or name == "edm":
            UNetConfig(prediction=parameterization, path=name).check()


@pytest.mark.parametrize(("parameterization", "name"), PAIRS)
def test_a_network_that_answers_rightly_is_an_exact_denoiser(parameterization: str, name: str) -> None:
    path = PATHS[name]()
    t = path.time_from_quantile(0.4)
    draw = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(2, 3, 2, 4, 4, generator=draw, dtype=torch.float64)
    x_t = path.add_noise(x0, eps, t)

    def network(x: Tensor, level: Tensor) -> Tensor:
        torch.testing.assert_close(x, x_t * input_scale(t, path, SIGMA_DATA))
        torch.testing.assert_close(level, torch.full((3,), path.level(t), dtype=torch.float64))
        return target(parameterization, x0, eps, t, path, SIGMA_DATA)

    torch.testing.assert_close(denoiser(network, path, parameterization, SIGMA_DATA)(x_t, t), x0)


def test_training_and_sampling_give_the_network_the_same_inputs() -> None:
    path = PATHS["edm"]()
    x_t = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for one, many in zip(
        network_inputs(x_t, 2.0, path, 0.5), network_inputs(x_t, torch.full((3,), 2.0), path, 0.5), strict=True
    ):
        torch.testing.assert_close(one, many)


def test_pitfall_fourteen_times_stay_apart_and_x0_exact_when_all_else_is_bf16() -> None:
    """Pitfall fourteen, at the network: a thousand times keep a thousand levels, and x_0 is found in fp32."""
    path = PATHS["flow"]()
    t = torch.arange(1, 1001) / 1001
    x = torch.zeros(1000, 1, dtype=torch.bfloat16)

    def holds(level: Tensor) -> None:
        assert level.unique().numel() == 1000

    holds(network_inputs(x, t, path, SIGMA_DATA)[1])
    with pytest.raises(AssertionError):
        holds(path.level(t.bfloat16()))
    out = denoiser(lambda x, level: x.bfloat16(), path, "velocity", SIGMA_DATA)(torch.ones(1, 1), 1e-3)
    assert out.dtype == torch.float32
    assert abs(out.item() - 1) > 1e-4  # 1 - 1e-3 * 2.0: in bf16 there is no number between 0.996 and 1
