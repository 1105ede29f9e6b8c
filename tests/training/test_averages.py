"""Moving averages: one at a time as on a CPU, in grouped calls as on CUDA."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from gengen.training.optim.averages import are_grouped, move_averages

AVERAGES, TARGETS = [1.0, -2.0, 0.0], [3.0, 2.0, 8.0]


def tensors(values: list[float]) -> list[Tensor]:
    return [torch.full(shape, value) for shape, value in zip([(2, 3), (4,), ()], values, strict=True)]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("share", [0.25, torch.tensor(0.25)])
def test_each_average_moves_a_share_of_its_way(grouped: bool, share: float | Tensor) -> None:
    averages = tensors(AVERAGES)
    places = [average.data_ptr() for average in averages]
    move_averages(averages, tensors(TARGETS), share, grouped)
    assert [average.data_ptr() for average in averages] == places
    for average, wanted in zip(averages, tensors([1.5, -1.0, 2.0]), strict=True):
        assert torch.equal(average, wanted)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_share_of_nothing_moves_nothing(grouped: bool) -> None:
    averages = [torch.randn(50) for _ in range(3)]
    before = [average.clone() for average in averages]
    move_averages(averages, [torch.randn(50) for _ in range(3)], torch.tensor(0.0), grouped)
    assert all(map(torch.equal, averages, before))


def test_both_ways_agree_but_for_rounding() -> None:
    targets, averages = [torch.randn(100) for _ in range(3)], [torch.randn(100) for _ in range(3)]
    grouped = [average.clone() for average in averages]
    for share in torch.tensor([0.9, 0.5, 0.01]):
        move_averages(averages, targets, share, False)
        move_averages(grouped, targets, share, True)
    torch.testing.assert_close(averages, grouped)


def test_they_are_grouped_on_cuda_alone() -> None:
    assert not are_grouped([])
    assert not are_grouped(tensors(AVERAGES))
    assert are_grouped([SimpleNamespace(device=torch.device("cuda", 0))])  # type: ignore[list-item]
