"""What real images score where samples are measured: the floor of a Fréchet distance, and how far it varies by
chance.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gengen.evaluation.metrics import frechet_distance, gaussian

REDRAWS = 20  # times that real images are drawn anew
ENOUGH = 4  # images for each feature; with fewer, their covariance is mostly noise


@dataclass(frozen=True)
class Floor:
    """Features and labels of all training images, the reference, and of as many held-out images as there are samples.

    A sample has the label of the held-out image in its place, so the two differ neither in count nor in the mix of
    classes.
    """

    train: Tensor  # (N, D)
    train_labels: Tensor  # (N,)
    held_out: Tensor  # (n, D)
    labels: Tensor  # (n,)

    def distance(self, features: Tensor) -> float:
        """Return the distance of features (n, D) from the training images."""
        return distance(self.train, features)

    def redrawn(self, generator: torch.Generator) -> Tensor:
        """Return distances of real images drawn anew, (REDRAWS,): of each label as many as are held out, from all of
        the real images; those that are left are the reference."""
        features, labels = torch.cat([self.train, self.held_out]), torch.cat([self.train_labels, self.labels])
        draws = redraws(labels, self.labels, generator)
        return torch.tensor([distance(features[~drawn], features[drawn]) for drawn in draws], dtype=torch.float64)

    def compare(self, samples: Tensor, generator: torch.Generator) -> dict[str, Any]:
        """Return the distance of samples (n, D) and that of the held-out images, mean and std of the redrawn ones, how
        many times the held-out images' distance the samples' is, and whether images are too few for their features."""
        found, floor, redrawn = self.distance(samples), self.distance(self.held_out), self.redrawn(generator)
        spread = {"redraws": len(redrawn), "mean": redrawn.mean().item(), "std": redrawn.std().item()}
        times = found / floor if floor > 1e-9 else None
        few = len(samples) < ENOUGH * samples.shape[1]
        return {"n": len(samples), "samples": found, "real": floor, **spread, "times_floor": times, "few": few}

    def of(self, label: int) -> "Floor":
        """Return the same for one class."""
        train, held_out = self.train_labels == label, self.labels == label
        return Floor(self.train[train], self.train_labels[train], self.held_out[held_out], self.labels[held_out])


def distance(a: Tensor, b: Tensor) -> float:
    """Return the Fréchet distance between the Gaussians of two sets of features, (N, D) and (M, D)."""
    return frechet_distance(*gaussian(a), *gaussian(b))


def redraws(labels: Tensor, wanted: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield, REDRAWS times, which of some images (N,) are drawn, bool: as many of each label as `wanted` (n,) has, at
    random."""
    kinds, numbers = wanted.unique(return_counts=True)
    counts = list(zip(kinds.tolist(), numbers.tolist(), strict=True))
    for _ in range(REDRAWS):
        order = torch.randperm(len(labels), generator=generator)
        drawn = torch.zeros(len(labels), dtype=torch.bool)
        for label, count in counts:
            drawn[order[labels[order] == label][:count]] = True
        yield drawn
