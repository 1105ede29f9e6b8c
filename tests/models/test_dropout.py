"""Dropout against its definition: a share of zeros, the rest scaled so that the mean stays, masks of the generator."""

import copy

import pytest
import torch
from torch import Tensor, nn

from gengen.models.kernels.dropout import LEVELS, Dropout, dropout, random_levels


def seeded(x: Tensor, p: float, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return dropout(x, p)


@pytest.mark.parametrize("p", [0.002, 0.1, 0.5, 0.93])
def test_a_share_is_zero_and_the_rest_is_scaled(p: float) -> None:
    n = 200_000
    y = seeded(torch.ones(n), p)
    zeros = (y == 0).float().mean().item()
    assert abs(zeros - p) < 5 * (p * (1 - p) / n) ** 0.5 + 1 / LEVELS
    kept = y[y != 0]
    assert kept.unique().numel() == 1 and kept[0].item() == pytest.approx(1 / (1 - p), rel=1 / LEVELS / (1 - p))


@pytest.mark.parametrize("p", [0.0001, 0.1, 0.9])
def test_the_mean_stays_exactly_in_expectation(p: float) -> None:
    """The scale is that of the rounded share, which is not p itself."""
    levels = torch.arange(LEVELS)
    share_kept = (levels >= round(p * LEVELS)).double().mean()
    y = seeded(torch.ones(64 * 1024, dtype=torch.float64), p)
    assert (y.max() * share_kept).item() == pytest.approx(1.0, abs=1e-12)


def test_levels_are_uniform() -> None:
    torch.manual_seed(0)
    drawn = random_levels(torch.empty(1 << 20))
    counts = torch.bincount((drawn.int() + LEVELS // 2) >> 10, minlength=64).double()
    assert drawn.dtype == torch.int16 and len(counts) == 64
    chi_squared = ((counts - 2**14).square() / 2**14).sum()
    assert chi_squared < 63 + 5 * (2 * 63) ** 0.5


def test_masks_are_those_of_the_generator() -> None:
    x = torch.randn(64, 64)
    assert torch.equal(seeded(x, 0.3), seeded(x, 0.3))
    torch.manual_seed(0)
    first, second = dropout(x, 0.3), dropout(x, 0.3)
    assert torch.equal(first, seeded(x, 0.3)) and not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_has_the_mask_of_the_output(dtype: torch.dtype) -> None:
    x = torch.randn(100, 50, dtype=dtype, requires_grad=True)
    y = seeded(x, 0.4)
    y.backward(torch.ones_like(y))
    assert y.dtype == dtype and x.grad is not None
    assert torch.equal(x.grad != 0, y != 0)
    torch.testing.assert_close(y, x * x.grad)


def test_a_share_near_one_leaves_what_can_be_scaled() -> None:
    assert seeded(torch.ones(10_000), 1 - 1e-9).isfinite().all()


def test_nothing_is_drawn_out_of_training_or_for_a_share_of_zero() -> None:
    x, module, none = torch.randn(8), Dropout(0.5), Dropout(0.0)
    before = torch.get_rng_state()
    assert torch.equal(module.eval()(x), x) and torch.equal(none(x), x)
    assert torch.equal(before, torch.get_rng_state())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(32, 32), Dropout(0.25)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x)
        return self.dropout(y), self.dropout(y)


@pytest.mark.slow  # compiles
def test_compiled_masks_are_those_of_eager_code_and_two_of_one_graph_differ() -> None:
    """A compiler that took the two draws for one, or drew by a generator of its own, would be noticed."""
    torch.manual_seed(1)
    eager = Twice()
    compiled, x = torch.compile(copy.deepcopy(eager)), torch.randn(16, 32)
    results = []
    for module in (eager, compiled):
        torch.manual_seed(7)
        first, second = module(x)
        (first + second).sum().backward()
        results.append((first.detach(), second.detach()))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours == 0, theirs == 0)
        torch.testing.assert_close(ours, theirs)
    assert not torch.equal(results[0][0] == 0, results[0][1] == 0)
    for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(a.grad, b.grad)
