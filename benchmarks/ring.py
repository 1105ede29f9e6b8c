"""A GAN on a ring of 8 Gaussians, whose modes can be counted: the recipe of model=gan beside the plain loss, three
seeds each.

    python benchmarks/ring.py [seconds=90] [seeds=3]

Networks of three hidden layers of 128 take the place of the convolutions; losses, penalties, schedules, optimizers and
the average are those of model=gan (configs/model/gan.yaml), through gengen's own training step. A mode counts as
covered if it has a quarter of its share of 8,192 samples within 3 standard deviations of its centre.
"""

import math
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gengen.config.compose import compose_train, read_command_line
from gengen.config.data import ImageConfig
from gengen.config.train import TrainConfig
from gengen.data.loader import IndexedData
from gengen.training.budget import StepTimes
from gengen.training.build import build_trainer
from gengen.training.objectives.gan import Adversarial
from gengen.training.rng import seed_everything

MODES, RADIUS, STD = 8, 1.0, 0.02
SAMPLES = 8192
PLAIN = ["model.loss=nonsaturating", "model.gamma=0"]


class Mlp(nn.Sequential):
    """Three hidden layers. Heeds no labels, of which there are none."""

    def __init__(self, inputs: int, outputs: int, shape: tuple[int, ...], width: int = 128):
        hidden = [layer for a in (inputs, width, width) for layer in (nn.Linear(a, width), nn.LeakyReLU(0.2))]
        super().__init__(
            nn.Flatten(), *hidden, nn.Linear(width, outputs), nn.Unflatten(1, shape) if shape else nn.Flatten(0)
        )

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return super().forward(x).float()


class RingGAN(nn.Module):
    """z of 64 numbers to a point, and a point to a logit. A point is an image of two channels and one pixel."""

    def __init__(self, latent_size: int):
        super().__init__()
        self.generator, self.discriminator = Mlp(latent_size, 2, (2, 1, 1)), Mlp(2, 1, ())


class Points:
    """What the training step asks of prepared data."""

    def __init__(self, count: int = 100_000):
        draw = torch.Generator().manual_seed(0)
        angles = 2 * math.pi * torch.randint(MODES, (count,), generator=draw) / MODES
        centres = RADIUS * torch.stack([angles.cos(), angles.sin()], 1)
        self.train = (centres + STD * torch.randn(count, 2, generator=draw))[:, :, None, None]
        self.val = self.train[:1000]

    def batch(self, split: str, index: Tensor, flipped: Tensor | None = None) -> dict[str, Tensor]:
        return {"images": getattr(self, split)[index], "labels": torch.full((len(index),), -1), "index": index}


def config_of(settings: list[str], seed: int, steps: int) -> TrainConfig:
    line = ["model=gan", "data=animals", "data.batch_size=256", "trainer.precision=fp32", "trainer.device=cpu"]
    config = compose_train(read_command_line([*line, *settings, f"seed={seed}", f"trainer.max_steps={steps}"]))
    return replace(config, model=replace(config.model, channels=2, resolution=1))  # type: ignore[call-arg]


def trained(settings: list[str], seed: int, steps: int) -> tuple[Adversarial, StepTimes]:
    config, points, times = config_of(settings, seed, steps), Points(), StepTimes()
    assert isinstance(config.data, ImageConfig)
    seed_everything(seed)
    objective = Adversarial(config, RingGAN(config.model.latent_size), points)  # type: ignore[attr-defined,arg-type]
    build_trainer(config, times, steps).fit(objective, datamodule=IndexedData(config.data, points, seed=seed))
    return objective, times


@torch.no_grad()
def covered(objective: Adversarial) -> tuple[int, float]:
    """Modes covered by the averaged generator, and the share of samples within 3 standard deviations of some mode."""
    z = torch.randn(SAMPLES, objective.c.latent_size, generator=torch.Generator().manual_seed(1))
    with objective.ema_weights():
        points = objective.model.generator(z, torch.full((SAMPLES,), -1))[:, :, 0, 0]
    angles = 2 * math.pi * torch.arange(MODES) / MODES
    near = torch.cdist(points, RADIUS * torch.stack([angles.cos(), angles.sin()], 1)) < 3 * STD  # (SAMPLES, MODES)
    return int((near.sum(0) >= SAMPLES / MODES / 4).sum()), float(near.any(1).float().mean())


def main(arguments: list[str]) -> None:
    asked: dict[str, Any] = dict(argument.split("=", 1) for argument in arguments)
    for name, settings in (("the recipe of model=gan", []), ("the plain loss: nonsaturating, no penalty", PLAIN)):
        for seed in range(int(asked.get("seeds", 3))):
            _, times = trained(settings, seed, 200)
            steps = round(float(asked.get("seconds", 90)) * 100 / (times.ends[-1] - times.ends[-101]))
            start = time.perf_counter()
            objective, _ = trained(settings, seed, steps)
            spent = time.perf_counter() - start
            modes, near = covered(objective)
            print(
                f"{name}, seed {seed}: {modes} of {MODES} modes, {near:.1%} of samples near one; "
                f"{steps} steps in {spent:.0f} s"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
