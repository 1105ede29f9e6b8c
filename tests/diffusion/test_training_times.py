"""Training times: stratified, reproducible, and distributed as they are named."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gengen.diffusion.paths import PATHS
from gengen.diffusion.times import GOLDEN, TIME_SAMPLERS, indexed, logit_normal, lognormal, stratified


def test_one_time_falls_into_each_cell_and_their_order_is_random() -> None:
    def holds(draw: Callable[[int, torch.Generator], Tensor]) -> None:
        u = draw(64, torch.Generator().manual_seed(0))
        assert u.shape == (64,) and u.dtype == torch.float64
        assert sorted((u * 64).floor().int().tolist()) == list(range(64))
        assert u.tolist() != u.sort().values.tolist()

    holds(stratified)
    with pytest.raises(AssertionError):
        holds(lambda rows, generator: torch.rand(rows, generator=generator, dtype=torch.float64))
    with pytest.raises(AssertionError):
        holds(
            lambda rows, generator: (
                (torch.arange(rows) + torch.rand(rows, generator=generator, dtype=torch.float64)) / rows
            )
        )


def test_draws_follow_from_the_generator_alone() -> None:
    first, again, other = (stratified(16, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("rows", [1, 7, 65536])
def test_no_draw_is_0_or_1(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for extreme in (0, 1):  # the least and the greatest that the generator can give
        monkeypatch.setattr(
            torch, "randint", lambda high, size, extreme=extreme, **_: torch.full(size, extreme * (high - 1))
        )
        u = stratified(rows, torch.Generator().manual_seed(0))
        assert u.min() > 0 and u.max() < 1


def test_the_times_of_indices_are_even_and_inside_however_many_there_are() -> None:
    """In fp32 those of 4674, 7258 and 8855 were exactly 0."""
    u = indexed(torch.arange(1_000_000))
    assert u.dtype == torch.float64 and u.min() >= 2**-25 and u.max() <= 1 - 2**-25
    assert u[:3].tolist() == pytest.approx([(i + 0.5) * GOLDEN % 1 for i in range(3)], abs=2**-24)
    for n in (100, 10_000, 1_000_000):  # no part of (0, 1) is left out: the largest gap is below 2.3 / n
        assert u[:n].sort().values.diff().max() < 2.3 / n


@pytest.mark.parametrize("name", TIME_SAMPLERS)
@pytest.mark.parametrize("path", PATHS)
def test_times_grow_with_u_and_stay_inside_the_path(name: str, path: str) -> None:
    u = torch.tensor([1e-9, 0.1, 0.5, 0.9, 1 - 1e-9], dtype=torch.float64)
    t = TIME_SAMPLERS[name](u, PATHS[path]())
    assert (t.diff() > 0).all() and t.isfinite().all() and (t > 0).all()
    assert path == "edm" or (t < 1).all()


def test_logit_normal_times_have_normal_logits() -> None:
    u = stratified(20_000, torch.Generator().manual_seed(0))
    for mean, std in ((0.0, 1.0), (-0.5, 0.7)):
        logits = torch.logit(logit_normal(u, PATHS["flow"](), mean, std))
        assert logits.mean().item() == pytest.approx(mean, abs=1e-3) and logits.std().item() == pytest.approx(
            std, abs=1e-3
        )


@pytest.mark.parametrize("path", PATHS)
def test_lognormal_draws_the_same_ratio_of_noise_to_data_on_every_path(path: str) -> None:
    u = stratified(20_000, torch.Generator().manual_seed(0))
    built = PATHS[path]()
    t = lognormal(u, built)
    log_ratio = -built.log_snr_half(t)
    assert log_ratio.mean().item() == pytest.approx(-1.2, abs=1e-3) and log_ratio.std().item() == pytest.approx(
        1.2, abs=2e-3
    )
    assert lognormal(torch.tensor([0.5]), built).item() == pytest.approx(built.time_at(math.exp(-1.2)), rel=1e-6)


def test_uniform_times_on_edm_are_even_in_the_papers_spacing() -> None:
    u = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    t = TIME_SAMPLERS["uniform"](u, PATHS["edm"]())
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    torch.testing.assert_close(t ** (1 / 7), low + u * (high - low))
