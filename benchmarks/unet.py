"""Our UNet beside diffusers' UNet2DModel of the same layout: training images a second and sampling time, as ratios.

    python benchmarks/unet.py [rounds=3] [steps=4] [threads=2]

Layout: 3x32x32 images, widths 64, 128, 128, two blocks a level, attention on the two inner levels, batch 32. Ours is trained by
the whole of our machinery at its defaults (trainer, clipping, EMA, finite check), theirs in a plain loop (AdamW, noise
prediction), once as it comes in fp32, once tuned by hand (bf16 autocast, channels_last). The contestants take turns.
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

from gengen.config.compose import compose_train, read_command_line
from gengen.generation.image import ImageGenerator
from gengen.training.build import StepTimes, build_objective, build_trainer
from gengen.training.diffusion import Diffusion

BATCH, WARMUP = 32, 2


def bf16() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


class Noise:
    """Prepared data of the right shape: random images, always the same."""

    def __init__(self) -> None:
        self.dependencies: dict[str, Any] = {}

    def loader(self) -> Any:
        images = torch.rand(BATCH, 3, 32, 32) * 2 - 1
        while True:
            yield {"images": images, "labels": torch.zeros(BATCH, dtype=torch.long)}


def ours() -> tuple[Diffusion, Any]:
    line = ["model=unet", "model.size=mini", "data=cifar10", f"data.batch_size={BATCH}", "trainer.max_steps=1000"]
    config = compose_train(read_command_line([*line, "trainer.precision=bf16", "trainer.device=cpu"]))
    facts = {"resolution": 32, "channels": 3, "classes": [str(i) for i in range(10)]}
    config = replace(config, model=replace(config.model.resolved(), **facts))
    objective = build_objective(config, Noise())
    assert isinstance(objective, Diffusion)
    return objective, config


def theirs(channels_last: bool) -> torch.nn.Module:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=32,
        layers_per_block=2,
        block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    return net.to(memory_format=torch.channels_last) if channels_last else net


def train_ours(objective: Diffusion, config: Any, steps: int) -> float:
    """Median seconds a step."""
    times = StepTimes()
    build_trainer(config, times, steps + WARMUP + 1).fit(objective, train_dataloaders=Noise().loader())
    return median(b - a for a, b in pairwise(times.ends[WARMUP:]))


def train_theirs(net: torch.nn.Module, precision: Callable[[], Any], channels_last: bool, steps: int) -> float:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    images = next(Noise().loader())["images"]
    images = images.to(memory_format=torch.channels_last) if channels_last else images
    spent = []
    for _ in range(steps + WARMUP):
        start = time.perf_counter()
        noise, t = torch.randn_like(images), torch.randint(0, 1000, (BATCH,))
        with precision():
            loss = torch.nn.functional.mse_loss(net(images + noise, t).sample.float(), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        spent.append(time.perf_counter() - start)
    return median(spent[WARMUP:])


def sample_theirs(net: torch.nn.Module, precision: Callable[[], Any], channels_last: bool) -> float:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(20)
    start = time.perf_counter()
    with torch.inference_mode(), precision():
        x: Tensor = torch.randn(16, 3, 32, 32)
        x = x.to(memory_format=torch.channels_last) if channels_last else x
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample.float(), t, x).prev_sample
    return time.perf_counter() - start


def sample_ours(generator: ImageGenerator, precision: str) -> float:
    start = time.perf_counter()
    generator.generate(16, sampler="dpmpp_2m", steps=20, guidance=1.0, precision=precision)
    return time.perf_counter() - start


def main(rounds: int = 3, steps: int = 4, threads: int = 2) -> None:
    torch.set_num_threads(threads)
    objective, config = ours()
    plain, tuned = theirs(False), theirs(True)
    generator = ImageGenerator(objective.model)
    millions = [sum(p.numel() for p in net.parameters()) / 1e6 for net in (objective.model, plain)]
    print(f"parameters: ours {millions[0]:.2f} M, theirs {millions[1]:.2f} M; {threads} threads, torch {torch.__version__}")
    training = {
        "ours, bf16": lambda: train_ours(objective, config, steps),
        "theirs, fp32": lambda: train_theirs(plain, nullcontext, False, steps),
        "theirs, bf16 channels_last": lambda: train_theirs(tuned, bf16, True, steps),
    }
    sampling = {
        "ours, fp32": lambda: sample_ours(generator, "fp32"),
        "ours, bf16": lambda: sample_ours(generator, "bf16"),
        "theirs, fp32": lambda: sample_theirs(plain.eval(), nullcontext, False),
        "theirs, bf16 channels_last": lambda: sample_theirs(tuned.eval(), bf16, True),
    }
    for title, contestants, ahead, behind in (
        ("training, images/s", training, ["ours, bf16"], [name for name in training if "theirs" in name]),
        ("sampling 16 images, 20 steps of DPM-Solver++, s", sampling, ["ours, fp32", "ours, bf16"], [n for n in sampling if "theirs" in n]),
    ):
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for net in (plain, tuned):
            net.train(contestants is training)
        for _ in range(rounds):
            for name, contestant in contestants.items():
                seconds[name].append(contestant())
        print(f"\n{title} (median; least and most of {rounds} rounds)")
        for name, spent in seconds.items():
            figures = sorted(BATCH / s for s in spent) if contestants is training else sorted(spent)
            print(f"  {name:28} {median(figures):7.2f}   {figures[0]:.2f} to {figures[-1]:.2f}")
        for a in ahead:
            for b in behind:
                ratios = sorted(y / x for x, y in zip(seconds[a], seconds[b], strict=True))
                print(f"  {a} against {b}: {median(ratios):.2f}x   {ratios[0]:.2f} to {ratios[-1]:.2f}")


if __name__ == "__main__":
    main(**{key: int(value) for key, value in (argument.split("=") for argument in sys.argv[1:])})
