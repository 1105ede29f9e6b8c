"""Weightings are one loss under every parameterization."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gengen.diffusion.parameterizations import PARAMETERIZATIONS, target, to_x0
from gengen.diffusion.paths import EDM, PATHS, Cosine, NoisePath
from gengen.diffusion.weightings import WEIGHTINGS, weight

GAMMA, SIGMA_DATA = 5.0, 0.5
T = torch.tensor([0.02, 0.1, 0.25, 0.4, 0.5, 0.75, 0.95], dtype=torch.float64)


def test_pitfall_eleven_min_snr_weights_are_one_loss_in_x0_units() -> None:
    """Pitfall eleven: min(SNR, gamma) for x_0, / SNR for eps, / (SNR + 1) for v; v with the weights of eps is another
    loss.
    """
    path = Cosine()
    snr = (path.alpha(T) / path.sigma(T)) ** 2
    least = snr.clamp(max=GAMMA)
    published = {"x0": least, "eps": least / snr, "v": least / (snr + 1)}

    def weighted_loss(parameterization: str, w: Tensor) -> Tensor:
        """The weighted loss of estimates 0.1 from x_0, made as an error of the output."""
        draw = torch.Generator().manual_seed(0)
        x0, eps = torch.randn(2, len(T), 3, generator=draw, dtype=torch.float64)
        x_t = path.add_noise(x0, eps, T)
        answer = target(parameterization, x0, eps, T, path, SIGMA_DATA)
        unit = to_x0(parameterization, answer + 1, x_t, T, path, SIGMA_DATA) - x0
        return w * ((0.1 / unit) ** 2).mean(1)

    def holds(weights: Callable[[str], Tensor]) -> None:
        for parameterization in published:
            torch.testing.assert_close(weighted_loss(parameterization, weights(parameterization)), 0.01 * least)

    holds(lambda p: weight("min_snr", T, path, p, SIGMA_DATA))
    for parameterization, expected in published.items():
        torch.testing.assert_close(weight("min_snr", T, path, parameterization, SIGMA_DATA), expected)
    with pytest.raises(AssertionError):
        holds(lambda p: published["eps" if p == "v" else p])


@pytest.mark.parametrize("path", [PATHS[name]() for name in PATHS], ids=PATHS)
@pytest.mark.parametrize("name", [name for name in WEIGHTINGS if name != "none"])
def test_every_weighting_is_one_loss_under_every_parameterization_on_every_path(name: str, path: NoisePath) -> None:
    t = path.time_from_quantile(T)
    in_x0 = weight(name, t, path, "x0", SIGMA_DATA)
    draw = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, len(t), 3, generator=draw, dtype=torch.float64)
    x_t = path.add_noise(x0, eps, t)
    for parameterization in PARAMETERIZATIONS:
        answer = target(parameterization, x0, eps, t, path, SIGMA_DATA)
        wrong = answer + 0.1
        loss = weight(name, t, path, parameterization, SIGMA_DATA) * ((wrong - answer) ** 2).mean(1)
        in_x0_units = in_x0 * ((to_x0(parameterization, wrong, x_t, t, path, SIGMA_DATA) - x0) ** 2).mean(1)
        torch.testing.assert_close(loss, in_x0_units, rtol=1e-6, atol=0)


def test_the_edm_weight_makes_the_loss_of_the_preconditioned_output_even() -> None:
    """Karras et al. 2022: lambda(sigma) c_out^2 = 1."""
    for path in (EDM(), Cosine(), PATHS["flow"]()):
        t = path.time_from_quantile(T)
        torch.testing.assert_close(weight("edm", t, path, "edm", SIGMA_DATA), torch.ones_like(t))
    sigma = EDM().time_from_quantile(T)
    expected = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    torch.testing.assert_close(weight("edm", sigma, EDM(), "x0", SIGMA_DATA), expected)


@pytest.mark.parametrize("path", [PATHS[name]() for name in PATHS], ids=PATHS)
def test_none_is_one_in_the_units_of_the_output(path: NoisePath) -> None:
    for parameterization in PARAMETERIZATIONS:
        weights = weight("none", path.time_from_quantile(T), path, parameterization, SIGMA_DATA)
        assert weights.tolist() == [1.0] * len(T)


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("path", ["flow", "cosine"])
def test_weights_are_finite_in_pure_noise(name: str, path: str) -> None:
    for parameterization in ("x0", "v", "velocity", "edm"):
        assert weight(name, torch.ones(1), PATHS[path](), parameterization, SIGMA_DATA).isfinite().all()
