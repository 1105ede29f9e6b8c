"""From a trained GAN to images: one pass of the generator, and paths between two z."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from gengen.config.sample import EvaluateConfig, GANSampling
from gengen.generation.labels import labels_of, named
from gengen.generation.noise import Noise, slerp
from gengen.generation.pictures import enlarged, grid, to_uint8, write_gif, write_pictures
from gengen.models.gan import GAN

Drawn = tuple[Tensor, list[dict[str, Any]], int | None]
"""Images uint8 (N, C, H, W), what there is to say of each, and how many make a row."""

BATCH = 64  # images drawn at once; changes none of them
FRAMES = 48  # of an animation


class GANGenerator:
    """Draws images; what `gengen.load` returns for a GAN."""

    command_hint = "n=16"

    def __init__(self, model: GAN):
        self.model, self.config, self.classes = model, model.config, model.config.classes
        self.device = next(model.parameters()).device

    @classmethod
    def from_checkpoint(cls, model: GAN, directory: Path) -> Self:
        return cls(model)

    def latents(self, indices: Sequence[int], seed: int = 0) -> Tensor:
        """z of samples, (n, Z): row i is a function of (seed, indices[i]) alone."""
        return Noise(seed, indices, (self.config.latent_size,), self.device)()

    def generate(self, n: int = 16, labels: Sequence[str | int] = (), *, seed: int = 0, truncation: float = 1.0) -> Tensor:
        """n images, (n, C, H, W) uint8; image i is a function of (seed, i, its label) alone. labels: names or numbers, taken in turn;
        none = all classes in turn. truncation: a factor on z."""
        return self.decode(truncation * self.latents(range(n), seed), labels_of(labels, self.classes, n))

    def interpolate(self, a: Tensor, b: Tensor, label: int, steps: int = 8) -> Tensor:
        """uint8 (steps, C, H, W) on the great arc from a to b, (Z,) each."""
        return self.decode(slerp(a, b, torch.linspace(0, 1, steps, device=a.device)), [label] * steps)

    @torch.inference_mode()
    def decode(self, z: Tensor, labels: Sequence[int]) -> Tensor:
        """z (n, Z) and n labels -> uint8 (n, C, H, W), on the CPU; in fp32 and evaluation mode."""
        training, told = self.model.training, torch.tensor(labels, device=self.device)
        self.model.eval()
        try:
            with torch.autocast(self.device.type, enabled=False):
                parts = [self.model.generator(*part) for part in zip(z.split(BATCH), told.split(BATCH), strict=True)]
        finally:
            self.model.train(training)
        return to_uint8(torch.cat(parts)).cpu()

    def judged(self, config: EvaluateConfig) -> Callable[[Tensor], Tensor]:
        """What `evaluate` judges: a call that draws an image, uint8, for each label."""
        return lambda labels: self.generate(len(labels), labels.tolist() if self.classes else (), seed=config.seed)

    def command(self, config: GANSampling, say: Callable[[str], None]) -> str:
        """What `sample` does: draw, and write to the folder `out`. Returns a line that sums it up."""
        start, folder = time.perf_counter(), config.folder()
        images, facts, columns = {"images": self._images, "interpolation": self._paths}[config.what](config)
        spent = time.perf_counter() - start
        write_pictures(folder, images, facts, columns)
        if config.what == "interpolation":
            frames = [torch.stack(frame) for frame in zip(*self._journeys(config, FRAMES), strict=True)]
            write_gif(folder / "interpolation.gif", [grid(enlarged(frame)) for frame in frames + frames[::-1]], seconds=6.0)
        say(f"{folder}/grid.png")
        return f"{len(images)} images in {spent:.2f} s, {len(images) / spent:.0f} images/s"

    def _images(self, c: GANSampling) -> Drawn:
        """A column a class, where all of them are drawn equally often."""
        drawn, labels = {"seed": c.seed, "truncation": c.truncation}, labels_of(c.labels, self.classes, c.n)
        facts = [{"index": i} | drawn | named(label, self.classes) for i, label in enumerate(labels)]
        columns = len(self.classes) if self.classes and not c.labels and c.n % len(self.classes) == 0 else None
        return self.generate(c.n, c.labels, seed=c.seed, truncation=c.truncation), facts, columns

    def _paths(self, c: GANSampling) -> Drawn:
        """A row a path, between draws 2i and 2i + 1."""
        drawn, labels = {"seed": c.seed, "truncation": c.truncation}, labels_of(c.labels, self.classes, c.n)
        rows = [{"from": 2 * i, "to": 2 * i + 1} | drawn | named(label, self.classes) for i, label in enumerate(labels)]
        facts = [row | {"at": i / (c.steps - 1)} for row in rows for i in range(c.steps)]
        return torch.cat(self._journeys(c, c.steps)), facts, c.steps

    def _journeys(self, c: GANSampling, steps: int) -> list[Tensor]:
        """Each path as (steps, C, H, W) uint8."""
        ends = c.truncation * self.latents(range(2 * c.n), c.seed).unflatten(0, (c.n, 2))
        return [self.interpolate(a, b, label, steps) for (a, b), label in zip(ends, labels_of(c.labels, self.classes, c.n), strict=True)]
