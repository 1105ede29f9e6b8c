"""Masks that inpainting is trained with."""

import pytest
import torch
from torch import Tensor

from gengen.diffusion.masks import (
    BOX,
    EVERYTHING,
    HALF_PLANE,
    NUMBERS,
    SURROUNDINGS,
    boxes,
    half_planes,
    known_part,
    masks,
    strokes,
)


def numbers(rows: int = 4000) -> Tensor:
    return torch.rand(rows, NUMBERS, generator=torch.Generator().manual_seed(0))


def test_the_first_number_chooses_the_kind() -> None:
    u = numbers(5)
    u[:, 0] = torch.tensor([EVERYTHING - 0.01, HALF_PLANE - 0.01, BOX - 0.01, SURROUNDINGS - 0.01, 0.99])
    found = masks(u, 16)
    assert found.shape == (5, 1, 16, 16) and found.dtype == torch.bool and found[0].all()
    assert torch.equal(found[1, 0], half_planes(u[1:2, 1:3], 16)[0])
    assert torch.equal(found[2, 0], boxes(u[2:3, 1:5], 16)[0])
    assert torch.equal(found[3, 0], ~boxes(u[3:4, 1:5], 16)[0])
    assert torch.equal(found[4, 0], strokes(u[4:5, 5], u[4:5, 6:], 16)[0])


@pytest.mark.parametrize("side", [8, 32])
def test_a_mixture_from_nearly_nothing_to_everything(side: int) -> None:
    found = masks(numbers(), side).float()
    share = found.mean((1, 2, 3))
    assert share.min() > 0  # something is always to be drawn
    assert (share == 1).float().mean().item() == pytest.approx(EVERYTHING, abs=0.02)
    assert 0.45 < share.mean() < 0.6
    everywhere = found.mean(0)  # no place is hardly ever open, or hardly ever known
    assert everywhere.min() > 0.25 and everywhere.max() < 0.75


def test_known_shapes() -> None:
    """A line through the centre, a box of half the canvas in its corner, and one stroke across."""
    assert torch.equal(half_planes(torch.tensor([[0.0, 0.5]]), 4)[0].int(), torch.tensor([[0, 0, 1, 1]] * 4).int())
    half = (0.5 - 0.25) / 0.65
    assert boxes(torch.tensor([[half, half, 0.0, 1.0]]), 4)[0].nonzero().tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    across = torch.tensor([[0.5, 0.0, 0.5, 1.0, 0.0] + [0.1] * 15])
    assert strokes(torch.tensor([0.0]), across, 9)[0].nonzero().tolist() == [[4, x] for x in range(9)]


def test_what_is_known_is_told_beside_where() -> None:
    x0 = torch.arange(1.0, 9.0).view(1, 2, 2, 2)
    is_open = torch.tensor([[[[True, False], [False, True]]]])
    told = known_part(x0, is_open)
    assert told.tolist() == [[[[0, 1], [1, 0]], [[0, 2], [3, 0]], [[0, 6], [7, 0]]]]
    assert not known_part(x0, torch.ones(1, 1, 2, 2).bool()).any()
