"""What a Fréchet distance in the judge's features can tell: real images, changed so little that nobody would see it.

    python benchmarks/calibration.py runs/CODEC

Prints, for as many images as are held out (1,000 at most), the distance to all training images and its ratio to the
floor: for real images drawn anew, mean and spread; held-out images; these after the round trip through the autoencoder
of the run, under noise of five and ten levels of 255, and blurred by .4 and .8 pixels.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from gengen.checkpoints.migrate import read_config
from gengen.config.schema import build
from gengen.config.train import TrainConfig
from gengen.data.image.prepare import prepare
from gengen.evaluation.floor import Floor
from gengen.evaluation.judges import blurred, judge_for
from gengen.generation.load import load_generator

COUNT = 1_000


def main(run: Path) -> None:
    config: TrainConfig = build(TrainConfig, read_config(run))
    prepared = prepare(config.data, print)  # type: ignore[arg-type]
    judge = judge_for(prepared, print)
    assert judge is not None
    draw = torch.Generator().manual_seed(0)
    held_out = torch.randperm(len(prepared.val), generator=draw)[:COUNT]
    real, train = prepared.val.images[held_out], prepared.train
    features = judge.features(train.images), train.labels, judge.features(real), prepared.val.labels[held_out]

    def noisy(levels: float) -> Tensor:
        return (real + levels * torch.randn(real.shape, generator=draw)).round().clamp(0, 255).to(torch.uint8)

    def soft(sigma: float) -> Tensor:
        return blurred(real, torch.full((len(real),), sigma)).round().to(torch.uint8)

    rows = {
        "held-out images": real,
        "held-out images through the codec": load_generator(str(run)).reconstruct(real),
        "held-out images, noise of 5 levels": noisy(5),
        "held-out images, noise of 10 levels": noisy(10),
        "held-out images, blurred by .4 pixels": soft(0.4),
        "held-out images, blurred by .8 pixels": soft(0.8),
    }
    floor = Floor(*features)
    redrawn, least = floor.redrawn(draw), floor.distance(floor.held_out)
    mean, std = redrawn.mean(), redrawn.std()
    print(f"{'real images drawn anew':40} {mean:8.4f}  {mean / least:6.2f}x  +- {std:.4f}")
    for name, images in rows.items():
        distance = floor.distance(judge.features(images))
        print(f"{name:40} {distance:8.4f}  {distance / least:6.2f}x")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
