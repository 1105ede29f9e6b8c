"""Our UNet beside diffusers' UNet2DModel of the same layout: training images a second and sampling time, as ratios.

    python benchmarks/unet.py [rounds=3] [steps=4] [threads=2] [width=64] [batch=32] [images=16] [precision=bf16]

Layout: 3x32x32 images, widths 64, 128, 128 (or of another first width), two blocks a level, attention on the two
inner levels. Ours is trained by the whole of our machinery at its defaults (trainer, clipping, EMA, finite check),
theirs in a plain loop (AdamW, noise prediction), once as it comes in fp32, once tuned by hand (autocast,
channels_last). The contestants take turns. precision: of ours in training, of theirs tuned, and in sampling beside
fp32.
"""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor
from turns import arguments

from gengen.config.compose import compose_train, read_command_line
from gengen.generation.image.diffusion import ImageGenerator
from gengen.training.budget import StepTimes
from gengen.training.build import build_objective, build_trainer
from gengen.training.objectives.diffusion import Diffusion

WARMUP = 2


def bf16() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


PRECISIONS: dict[str, Callable[[], Any]] = {"bf16": bf16, "fp32": nullcontext}


class Noise:
    """Prepared data of the right shape: random images, always the same."""

    def __init__(self, batch: int) -> None:
        self.batch, self.dependencies = batch, dict[str, Any]()

    def loader(self) -> Any:
        images = torch.rand(self.batch, 3, 32, 32) * 2 - 1
        while True:
            yield {"images": images, "labels": torch.zeros(self.batch, dtype=torch.long)}


def ours(width: int, batch: int, precision: str) -> tuple[Diffusion, Any]:
    line = ["model=unet", "model.size=mini", f"model.widths=[{width},{2 * width},{2 * width}]", "data=cifar10"]
    line += [f"data.batch_size={batch}", "model.sigma_data=0.5", "trainer.max_steps=1000"]
    config = compose_train(read_command_line([*line, f"trainer.precision={precision}", "trainer.device=cpu"]))
    facts = {"resolution": 32, "channels": 3, "classes": [str(i) for i in range(10)]}
    config = replace(config, model=replace(config.model.resolved(), **facts))
    objective = build_objective(config, Noise(batch))
    assert isinstance(objective, Diffusion)
    return objective, config


def theirs(channels_last: bool, width: int, size: int = 32, channels: int = 3) -> torch.nn.Module:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=2,
        block_out_channels=(width, 2 * width, 2 * width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    return net.to(memory_format=torch.channels_last) if channels_last else net


def train_ours(objective: Diffusion, config: Any, steps: int) -> float:
    """Median seconds a step."""
    times = StepTimes()
    batches = Noise(config.data.batch_size).loader()
    build_trainer(config, times, steps + WARMUP + 1).fit(objective, train_dataloaders=batches)
    return median(b - a for a, b in pairwise(times.ends[WARMUP:]))


def train_theirs(
    net: torch.nn.Module,
    precision: Callable[[], Any],
    channels_last: bool,
    steps: int,
    batch: int,
) -> float:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    images = next(Noise(batch).loader())["images"]
    images = images.to(memory_format=torch.channels_last) if channels_last else images
    spent = []
    for _ in range(steps + WARMUP):
        start = time.perf_counter()
        noise, t = torch.randn_like(images), torch.randint(0, 1000, (batch,))
        with precision():
            loss = torch.nn.functional.mse_loss(net(images + noise, t).sample.float(), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        spent.append(time.perf_counter() - start)
    return median(spent[WARMUP:])


def sample_theirs(net: torch.nn.Module, precision: Callable[[], Any], channels_last: bool, images: int) -> float:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(20)
    start = time.perf_counter()
    with torch.inference_mode(), precision():
        x: Tensor = torch.randn(images, 3, 32, 32)
        x = x.to(memory_format=torch.channels_last) if channels_last else x
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample.float(), t, x).prev_sample
    return time.perf_counter() - start


def sample_ours(generator: ImageGenerator, precision: str, images: int) -> float:
    start = time.perf_counter()
    generator.generate(images, sampler="dpmpp_2m", steps=20, guidance=1.0, precision=precision)
    return time.perf_counter() - start


def main(rounds: int, steps: int, threads: int, width: int, batch: int, images: int, precision: str) -> None:
    torch.set_num_threads(threads)
    objective, config = ours(width, batch, precision)
    plain, tuned = theirs(False, width), theirs(True, width)
    generator = ImageGenerator(objective.model)
    millions = [sum(p.numel() for p in net.parameters()) / 1e6 for net in (objective.model, plain)]
    print(
        f"parameters: ours {millions[0]:.2f} M, theirs {millions[1]:.2f} M; "
        f"{threads} threads, torch {torch.__version__}"
    )
    tuned_name = f"theirs, {precision} channels_last"
    training = {
        f"ours, {precision}": lambda: train_ours(objective, config, steps),
        "theirs, fp32": lambda: train_theirs(plain, nullcontext, False, steps, batch),
        tuned_name: lambda: train_theirs(tuned, PRECISIONS[precision], True, steps, batch),
    }
    sampling = {
        "ours, fp32": lambda: sample_ours(generator, "fp32", images),
        f"ours, {precision}": lambda: sample_ours(generator, precision, images),
        "theirs, fp32": lambda: sample_theirs(plain.eval(), nullcontext, False, images),
        tuned_name: lambda: sample_theirs(tuned.eval(), PRECISIONS[precision], True, images),
    }
    for title, contestants in (
        ("training, images/s", training),
        (f"sampling {images} images, 20 steps of DPM-Solver++, s", sampling),
    ):
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for net in (plain, tuned):
            net.train(contestants is training)
        for _ in range(rounds):
            for name, contestant in contestants.items():
                seconds[name].append(contestant())
        print(f"\n{title} (median; least and most of {rounds} rounds)")
        for name, spent in seconds.items():
            figures = sorted(batch / s for s in spent) if contestants is training else sorted(spent)
            print(f"  {name:28} {median(figures):7.2f}   {figures[0]:.2f} to {figures[-1]:.2f}")
        for a in (name for name in contestants if name.startswith("ours")):
            for b in (name for name in contestants if name.startswith("theirs")):
                ratios = sorted(y / x for x, y in zip(seconds[a], seconds[b], strict=True))
                print(f"  {a} against {b}: {median(ratios):.2f}x   {ratios[0]:.2f} to {ratios[-1]:.2f}")


if __name__ == "__main__":
    main(**arguments(sys.argv[1:], rounds=3, steps=4, threads=2, width=64, batch=32, images=16, precision="bf16")[0])
