"""What a Fréchet distance in the judge's features can tell: real images, changed so little that nobody would see it.

    python benchmarks/calibration.py runs/CODEC

Prints, for as many images as are held out (1,000 at most), the distance to training images and its ratio to the floor: for
held-out images; training images that were left out of the reference; held-out images after the round trip through the
autoencoder of the run, under noise of five and ten levels of 255, and blurred by .4 and .8 pixels.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from gengen.checkpoints.files import read_json
from gengen.config.schema import build
from gengen.config.train import TrainConfig
from gengen.data.image_prepare import prepare
from gengen.evaluation.judges import blurred, judge_for
from gengen.evaluation.metrics import frechet_distance, gaussian
from gengen.generation.load import load_generator

REFERENCE, COUNT = 5_000, 1_000


def main(run: Path) -> None:
    config: TrainConfig = build(TrainConfig, read_json(run / "config.json"))
    prepared = prepare(config.data, print)  # type: ignore[arg-type]
    judge = judge_for(prepared, print)
    assert judge is not None
    draw = torch.Generator().manual_seed(0)
    train = torch.randperm(len(prepared.train), generator=draw)
    real = prepared.val.images[torch.randperm(len(prepared.val), generator=draw)[:COUNT]]
    target = gaussian(judge.features(prepared.train.images[train[:REFERENCE]]))

    def noisy(levels: float) -> Tensor:
        return (real + levels * torch.randn(real.shape, generator=draw)).round().clamp(0, 255).to(torch.uint8)

    def soft(sigma: float) -> Tensor:
        return blurred(real, torch.full((len(real),), sigma)).round().to(torch.uint8)

    rows = {
        "held-out images": real,
        "training images outside the reference": prepared.train.images[train[REFERENCE : REFERENCE + COUNT]],
        "held-out images through the codec": load_generator(str(run)).reconstruct(real),
        "held-out images, noise of 5 levels": noisy(5),
        "held-out images, noise of 10 levels": noisy(10),
        "held-out images, blurred by .4 pixels": soft(0.4),
        "held-out images, blurred by .8 pixels": soft(0.8),
    }
    distances = {name: frechet_distance(*target, *gaussian(judge.features(images))) for name, images in rows.items()}
    for name, distance in distances.items():
        print(f"{name:40} {distance:8.4f}  {distance / distances['held-out images']:6.2f}x")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
