"""From a trained GAN to images: one pass of the generator, and paths between two z."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gengen.config.commands import GANSampling
from gengen.config.model import AdversarialConfig
from gengen.generation.base import Labels
from gengen.generation.image.files import (
    Animation,
    Drawn,
    PictureGenerator,
    batches,
    labels_at,
    labels_of,
    named,
    to_uint8,
    turn_of,
)
from gengen.generation.noise import Noise, slerp
from gengen.models.gan import GAN

BATCH = 64  # images drawn at once; changes none of them
FRAMES = 48  # of an animation


class GANGenerator(PictureGenerator[GAN, GANSampling]):
    """Draws images; what `gengen.load` returns for a GAN."""

    animation = Animation("interpolation.gif", seconds=6.0)
    config: AdversarialConfig

    @property
    def compares(self) -> bool:
        """Return whether the discriminator was trained to compare a real image with a generated one: then only the
        difference of two of its logits counts. Else it judges each image, real above 0."""
        return self.config.loss == "relativistic"

    def latents(self, indices: Sequence[int], seed: int = 0) -> Tensor:
        """Return z of samples, (n, Z): row i is a function of (seed, indices[i]) alone."""
        return Noise(seed, indices, (self.config.latent_size,), self.device)()

    def generate(
        self,
        n: int = 16,
        labels: Labels = (),
        *,
        seed: int = 0,
        truncation: float = 1.0,
        first: int = 0,
    ) -> Tensor:
        """Return n images, (n, C, H, W) uint8, samples `first` and the next ones; image i is a function of (seed, i,
        its label). labels: names, or numbers as ints or a tensor, in turn; none = all in turn. truncation scales z."""
        z = truncation * self.latents(range(first, first + n), seed)
        return self.decode(z, labels_of(labels, self.classes, n))

    def interpolate(self, a: Tensor, b: Tensor, label: int, steps: int = 8) -> Tensor:
        """Return uint8 (steps, C, H, W) on the great arc from a to b, (Z,) each."""
        return self.decode(slerp(a, b, torch.linspace(0, 1, steps, device=a.device)), [label] * steps)

    def decode(self, z: Tensor, labels: Tensor | Sequence[int]) -> Tensor:
        """Turn z (n, Z) and n labels into uint8 (n, C, H, W), on the CPU; in fp32 and evaluation mode."""
        classes = torch.as_tensor(labels, device=self.device)
        with self.sampling():
            parts = [self.model.generator(*part) for part in zip(z.split(BATCH), classes.split(BATCH), strict=True)]
        return to_uint8(torch.cat(parts)).cpu()

    def drawn(self, c: GANSampling) -> Iterator[Drawn]:
        """Yield images, a column a class, where all of them are drawn equally often; or paths between draws 2i and
        2i + 1, a row each."""
        turn = turn_of(c.labels, self.classes)
        how: dict[str, Any] = {"seed": c.seed, "truncation": c.truncation}
        if c.what == "images":
            columns = len(self.classes) if self.classes and not c.labels and c.n % len(self.classes) == 0 else None
            for samples in batches(c.n, BATCH):
                labels = labels_at(turn, samples).tolist()
                images = self.generate(len(samples), labels, first=samples.start, **how)
                each = zip(samples, labels, strict=True)
                yield Drawn(images, [{"index": i} | how | named(label, self.classes) for i, label in each], columns)
            return
        for samples in batches(c.n, max(BATCH // c.steps, 1)):
            labels = labels_at(turn, samples).tolist()
            each = zip(samples, labels, strict=True)
            rows = [{"from": 2 * i, "to": 2 * i + 1} | how | named(label, self.classes) for i, label in each]
            facts = [row | {"at": i / (c.steps - 1)} for row in rows for i in range(c.steps)]
            images = self.paths(c, samples, labels, c.steps).flatten(0, 1)
            yield Drawn(images, facts, c.steps, self.there_and_back(c, samples, labels))

    def paths(self, c: GANSampling, samples: range, labels: Sequence[int], steps: int) -> Tensor:
        """Return paths between draws 2i and 2i + 1, (paths, steps, C, H, W)."""
        z = c.truncation * self.latents(range(2 * samples.start, 2 * samples.stop), c.seed)
        ends = z.unflatten(0, (len(samples), 2))
        return torch.stack([self.interpolate(a, b, label, steps) for (a, b), label in zip(ends, labels, strict=True)])

    def there_and_back(self, c: GANSampling, samples: range, labels: Sequence[int]) -> Iterator[Tensor]:
        """Yield the frames of an animation of these paths."""
        there = self.paths(c, samples, labels, FRAMES).unbind(1)
        yield from there
        yield from there[::-1]
