"""What text costs: a training step of a diffusion network with captions beside one of the same network with classes.

    python benchmarks/text.py [rounds=5] [steps=4] [threads=2] [batch=64] [model=unet] [train.py's own settings ...]

3 x 32 x 32 images, the model's default size (unet tiny: patch 4). Captions are made up, as long as names of emoji: 7
tokens in the middle, 18 at most, and as many slots. Steps are those of training (draws, clipping, finite check, EMA),
without loading data; the two take turns of some steps each. The bar is 1.6 times on a CPU.
"""

import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise, repeat
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor
from turns import arguments, ratio, spread, take_turns

from gengen.config.compose import compose_train, read_command_line
from gengen.config.model.diffusion import PADDING, START
from gengen.training.budget import StepTimes
from gengen.training.build import build_objective, build_trainer
from gengen.training.objectives.diffusion import Diffusion

WARMUP = 2
CLASSES, VOCABULARY, LONGEST = 10, 1024, 18


class MadeUp:
    """Prepared data of the right shape: a batch of random images with labels or captions, always the same."""

    def __init__(self, rows: int, text: bool):
        self.dependencies = dict[str, Any]()
        generator = torch.Generator().manual_seed(0)
        self.batch: dict[str, Tensor] = {
            "images": torch.rand(rows, 3, 32, 32, generator=generator) * 2 - 1,
            "labels": torch.randint(CLASSES, (rows,), generator=generator),
        }
        if text:
            lengths = torch.randn(rows, 1, 1, generator=generator).mul(3).add(7).round().clamp(2, LONGEST)
            lengths[0] = LONGEST
            tokens = torch.randint(1, VOCABULARY, (rows, 1, LONGEST), generator=generator)
            tokens[:, :, 0] = START
            self.batch["captions"] = tokens.where(torch.arange(LONGEST) < lengths, PADDING)
            self.batch["caption_count"] = torch.ones(rows, dtype=torch.long)


class Contestant:
    """One network, trained on with every call."""

    def __init__(self, text: bool, batch: int, model: str, threads: int, settings: list[str]):
        line = [f"model={model}", "data=emoji", f"data.batch_size={batch}", f"model.text={str(text).lower()}"]
        line += ["trainer.max_steps=1000", f"trainer.threads={threads}", "trainer.device=cpu", *settings]
        config = compose_train(read_command_line(line))
        facts: dict[str, Any] = {"resolution": 32, "channels": 3, "sigma_data": 0.5}
        facts |= {"text_vocab_size": VOCABULARY} if text else {"classes": [str(i) for i in range(CLASSES)]}
        self.config = replace(config, model=replace(config.model.resolved(), **facts))
        self.prepared = MadeUp(batch, text)
        self.objective = cast(Diffusion, build_objective(self.config, cast(Any, self.prepared)))

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.objective.model.parameters())

    def ms_per_step(self, steps: int) -> float:
        """Train, and return the median milliseconds of a step."""
        times = StepTimes()
        trainer = build_trainer(self.config, times, steps + WARMUP + 1)
        trainer.fit(self.objective, train_dataloaders=(batch for batch in repeat(self.prepared.batch)))
        return 1000 * median(b - a for a, b in pairwise(times.ends[WARMUP:]))


def main(rounds: int, steps: int, threads: int, batch: int, model: str, settings: list[str]) -> None:
    nets = {name: Contestant(name == "text", batch, model, threads, settings) for name in ("text", "classes")}
    counts = ", ".join(f"{net.parameters / 1e6:.2f} M with {name}" for name, net in nets.items())
    print(f"{model}, batches of {batch}, {threads} threads, torch {torch.__version__}: {counts}")
    figures = take_turns({name: partial(net.ms_per_step, steps) for name, net in nets.items()}, rounds)
    for name, values in figures.items():
        print(f"  {name:10} {spread(values)} ms a step")
    print(ratio(figures, "text", "classes"))


if __name__ == "__main__":
    asked, rest = arguments(sys.argv[1:], rounds=5, steps=4, threads=2, batch=64, model="unet")
    main(**asked, settings=rest)
