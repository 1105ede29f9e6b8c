"""The spread of a floor against images that are really drawn again and again."""

import pytest
import torch
from torch import Tensor

from gengen.evaluation import floor
from gengen.evaluation.floor import Floor, redraws


def test_the_spread_is_that_of_images_really_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of features that are Gaussian by class, whose distance can be drawn as often as one likes."""
    monkeypatch.setattr(floor, "REDRAWS", 60)
    generator = torch.Generator().manual_seed(0)
    labels, train = torch.arange(100) % 5 // 2, torch.arange(1000) % 5 // 2  # two in five, two in five, one in five

    def features(labels: Tensor) -> Tensor:
        return torch.randn(len(labels), 6, generator=generator) + 5 * torch.nn.functional.one_hot(labels, 6)

    real = Floor(features(train), train, features(labels), labels)
    truth = torch.tensor([real.distance(features(labels)) for _ in range(200)], dtype=torch.float64)
    found = real.redrawn(generator)
    assert found.mean().item() == pytest.approx(truth.mean().item(), rel=0.1)
    assert found.std().item() == pytest.approx(truth.std().item(), rel=0.25)
    balanced = real.distance(features(torch.arange(100) % 3))
    assert balanced > 3 * truth.mean()  # as good as real, but of another mix of classes


def test_redraws_are_of_the_wanted_labels() -> None:
    labels, wanted = torch.tensor([0, 0, 1, 1, 1, -1, -1]), torch.tensor([1, -1, 1])
    found = list(redraws(labels, wanted, torch.Generator().manual_seed(0)))
    assert all(labels[drawn].tolist().count(1) == 2 and labels[drawn].tolist().count(-1) == 1 for drawn in found)
    assert all(drawn.sum() == 3 for drawn in found) and torch.stack(found).any(0).tolist() == [False] * 2 + [True] * 5


def test_the_floor_of_one_class_is_of_its_images_alone() -> None:
    train, labels = torch.arange(8) % 2, torch.arange(4) % 2
    features = torch.arange(8.0)[:, None] * (1 + 9 * train[:, None])
    real = Floor(features, train, features[:4], labels).of(1)
    assert real.train[:, 0].tolist() == [10, 30, 50, 70] and real.held_out[:, 0].tolist() == [10, 30]
    row = real.compare(real.held_out, torch.Generator().manual_seed(0))
    assert (row["n"], row["times_floor"], row["few"]) == (2, 1.0, True)
    # mean 40 and 20; variances 2000 / 3 and 200
    assert row["real"] == pytest.approx(20**2 + ((2000 / 3) ** 0.5 - 200**0.5) ** 2)
