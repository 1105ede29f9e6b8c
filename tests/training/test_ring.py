"""Eight Gaussians on a ring: the recipe of model=gan finds all of them (benchmarks/ring.py, shortened)."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from helpers.benchmark import benchmark

RING = benchmark("ring")


@pytest.mark.slow
def test_the_recipe_covers_every_mode() -> None:
    objective, _ = RING.trained([], seed=0, steps=1500)
    modes, near = RING.covered(objective)
    assert modes == 8 and near > 0.2


def test_a_mode_counts_as_covered_by_a_quarter_of_its_share() -> None:
    """Seen on the data themselves, and on those of three modes."""
    points, objective = (
        RING.Points(),
        SimpleNamespace(c=SimpleNamespace(latent_size=4), ema_weights=nullcontext, model=SimpleNamespace()),
    )
    objective.model.generator = lambda z, labels: points.train[: len(z)]
    modes, near = RING.covered(objective)
    assert modes == 8 and near == pytest.approx(0.989, abs=0.005)  # of a Gaussian in the plane, 1 - exp(-9 / 2)
    few = points.train[(points.train[:, 0, 0, 0] > 0.5)]  # the modes at 0 and +-45 degrees
    objective.model.generator = lambda z, labels: few[: len(z)]
    assert RING.covered(objective)[0] == 3
