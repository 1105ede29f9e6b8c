"""How near and how varied a generator's samples are, on their coarse pixels: cheap enough for every evaluation."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gengen.data.prepared import FlippableRows
from gengen.evaluation.metrics import kid, prdc
from gengen.generation.image.files import to_float

COMPARED, NEIGHBOURS = 500, 5  # images on either side, and the k of coverage


def coarse(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) averaged down to 8 x 8, as features (N, 64 C) on the CPU."""
    return F.adaptive_avg_pool2d(images.float().cpu(), 8).flatten(1)


@dataclass(frozen=True)
class HeldOutImages:
    """Held-out images, evenly spaced, to compare samples of the same labels with."""

    features: Tensor  # (N, D), as `coarse` makes them
    labels: Tensor  # (N,) int64
    train_coverage: float  # the share of them that training images cover

    @classmethod
    def of(cls, prepared: FlippableRows) -> "HeldOutImages":
        n = min(COMPARED, len(prepared.val))
        held_out = prepared.batch("val", torch.arange(n) * len(prepared.val) // n)
        train = prepared.batch("train", torch.arange(n) * len(prepared.train) // n)
        features = coarse(held_out["images"])
        coverage = prdc(features, coarse(train["images"]), NEIGHBOURS)["coverage"]
        return cls(features, held_out["labels"], max(coverage, 1 / COMPARED))

    def compare(self, samples: Tensor) -> tuple[float, float]:
        """Return KID, and the share of these images that have a sample within reach of their nearest neighbours, over
        that share for training images. samples: uint8 (N, C, H, W), of these labels.
        """
        found = coarse(to_float(samples))
        return kid(self.features, found), prdc(self.features, found, NEIGHBOURS)["coverage"] / self.train_coverage
