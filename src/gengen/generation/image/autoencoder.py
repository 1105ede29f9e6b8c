"""From a trained autoencoder to images: draws from the prior, paths, traversals, reconstructions."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gengen.config.commands import AutoencoderSampling, EvaluateConfig
from gengen.config.model import AutoencoderConfig
from gengen.data.image.decode import decode
from gengen.errors import UserError
from gengen.generation.base import ImageSampler, Labels
from gengen.generation.image.files import Drawn, PictureGenerator, batches, labels_of, to_float, to_uint8
from gengen.generation.noise import Noise, slerp, stream
from gengen.models.autoencoder import Autoencoder

SPAN = 3.0  # standard deviations to either side that a traversal goes


class AutoencoderGenerator(PictureGenerator[Autoencoder, AutoencoderSampling]):
    """Draws from, encodes to and decodes from the latents of an autoencoder; what `gengen.load` returns for one.

    A VAE with beta=1 can be sampled: its latents are about N(0, 1). Those of the first stage of latent diffusion are
    not, nor are the codes of a quantizer uniform: their draws, with the mean and deviation that each channel had over
    the held-out images, show what the decoder makes of anything, and need a model of the latents to be pictures.

    batch_size: images at once; changes none of them.
    """

    config: AutoencoderConfig

    def __init__(self, model: Autoencoder, batch_size: int = 64):
        super().__init__(model)
        self.batch_size, self.classes = batch_size, []

    # --- draws

    def prior(self, indices: Sequence[int], seed: int = 0) -> Tensor:
        """Latents (n, Z, h, w): of N(0, 1), brought to the statistics that the model holds; of a quantizer, uniform
        codes. Row i is a function of (seed, indices[i]) alone."""
        codes, (_, h, w) = self.model.bottleneck.codes, self.model.latent_shape
        if not codes:
            return self.model.unwhitened(Noise(seed, indices, self.model.latent_shape, self.device)())
        drawn = np.stack([stream(seed, index).integers(codes, size=(h, w)) for index in indices])
        with torch.no_grad():
            return self.model.quantizer.lookup(torch.from_numpy(drawn).to(self.device))

    def generate(self, n: int = 16, labels: Labels = (), *, seed: int = 0, first: int = 0) -> Tensor:
        """Return n draws from the prior, number `first` and the next ones, decoded: uint8 (n, C, H, W). Image i is a
        function of (seed, i) alone; there are no classes to choose from."""
        labels_of(labels, self.classes, n)  # refuses a class
        return to_uint8(self.decode(self.prior(range(first, first + n), seed)))

    # --- images and latents

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior of images (N, C, H, W) in [-1, 1]; (N, Z, h, w) fp32 each."""
        with self.sampling():
            parts = [self.model.encode(part.to(self.device)) for part in images.split(self.batch_size)]
        return torch.cat([mean for mean, _ in parts]), torch.cat([std for _, std in parts])

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, Z, h, w) -> images (N, C, H, W), fp32; what lies beyond [-1, 1] is that end of it."""
        with self.sampling():
            return torch.cat([self.model.decode(part.to(self.device)) for part in latents.split(self.batch_size)])

    def reconstruct(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> what is left of them after the latents (their posterior mean), likewise."""
        return to_uint8(self.decode(self.encode(to_float(images))[0]))

    # --- paths

    def moved(self, latents: Tensor, deviations: Sequence[float | None]) -> Tensor:
        """Return latents (1, Z, h, w) with numbers of them put where `deviations` says, in standard deviations from
        the mean: one for each channel, or for each number; None leaves it. Raises UserError for another count."""
        whole = latents.shape[1:]
        shapes = {whole[0]: (whole[0], 1, 1), whole.numel(): whole}
        if len(deviations) not in shapes:
            raise UserError(
                f"deviations: {len(deviations)} numbers; the latent has {whole[0]} channels, {whole.numel()} numbers"
            )
        given = torch.tensor([math.nan if d is None else d for d in deviations], device=latents.device)
        wanted = given.view(shapes[len(deviations)]).expand(1, *whole)
        with torch.no_grad():
            return torch.where(wanted.isnan(), latents, self.model.unwhitened(wanted.nan_to_num()))

    def plane(self, latents: Tensor, channels: tuple[int, int], steps: int = 5) -> Tensor:
        """Return uint8 (steps, steps, C, H, W): two channels of latents (Z, h, w) moved from -3 to 3 standard
        deviations, the first one down, the second one across."""
        moves = torch.linspace(-SPAN, SPAN, steps).tolist()
        moved = []
        for down in moves:
            for across in moves:
                deviations: list[float | None] = [None] * len(latents)
                deviations[channels[0]], deviations[channels[1]] = down, across
                moved.append(self.moved(latents[None], deviations))
        return to_uint8(self.decode(torch.cat(moved))).unflatten(0, (steps, steps))

    def interpolate(self, a: Tensor, b: Tensor, steps: int = 8, *, spherical: bool = True) -> Tensor:
        """uint8 (steps, C, H, W) from latents a to b, (Z, h, w) each: on the great arc, as befits draws from the
        prior, or straight.
        """
        t, m = torch.linspace(0, 1, steps, device=a.device), self.model
        if spherical:
            path = m.unwhitened(slerp(m.whitened(a), m.whitened(b), t))
        else:
            path = torch.lerp(a, b, t[:, None, None, None])
        return to_uint8(self.decode(path))

    def traverse(self, latents: Tensor, steps: int = 8, channels: int = 8) -> tuple[Tensor, list[int]]:
        """One channel of latents (Z, h, w) at a time moved from -3 to 3 standard deviations: uint8 (channels, steps,
        C, H, W), and which channels they are, those first that change the picture most."""
        m, total = self.model, len(latents)
        scale, centre = m.latent_std[:, None, None, None], m.latent_mean[:, None, None, None]
        deviations = torch.linspace(-SPAN, SPAN, steps, device=latents.device)
        ends = deviations[None, :, None, None] * scale + centre  # (Z, steps, 1, 1)
        moved = latents.expand(total, steps, *latents.shape).clone()  # (Z, steps, Z, h, w)
        each = torch.arange(total)
        moved[each, :, each] = ends.expand(total, steps, *latents.shape[1:])
        images = self.decode(moved.flatten(0, 1)).unflatten(0, (total, steps))
        change = (images[:, -1] - images[:, 0]).abs().flatten(1).mean(1)  # (Z,)
        strongest = change.argsort(descending=True, stable=True)[:channels]
        return to_uint8(images[strongest]), strongest.tolist()

    def image_sampler(self, config: EvaluateConfig) -> ImageSampler | None:
        """Return draws from the prior, which do not depend on the labels; None unless the model was trained on the
        ELBO, which makes its prior one to draw from."""
        if self.model.log_scale is None:
            return None
        return ImageSampler(lambda asked: self.generate(len(asked), seed=config.seed))

    # --- what `sample` writes

    def drawn(self, c: AutoencoderSampling) -> Iterator[Drawn]:
        if c.what == "prior":
            for samples in batches(c.n, self.batch_size):
                images = self.generate(len(samples), seed=c.seed, first=samples.start)
                yield Drawn(images.cpu(), [{"index": i, "seed": c.seed} for i in samples])
        elif c.what == "interpolation":
            yield from self._interpolations(c)
        else:
            yield self._traversal(c) if c.what == "traversal" else self._reconstruction(c)

    def _interpolations(self, c: AutoencoderSampling) -> Iterator[Drawn]:
        """A row a path: between two images, or between draws 2i and 2i + 1 of the prior."""

        def path(ends: Tensor, names: dict[str, Any]) -> Drawn:
            images = self.interpolate(ends[0], ends[1], c.steps, spherical=not c.images).cpu()
            return Drawn(images, [names | {"at": i / (c.steps - 1)} for i in range(c.steps)], c.steps)

        if c.images:
            yield path(self.encode(self._read(c.images))[0], {"from": c.images[0], "to": c.images[1]})
            return
        for i in range(c.n):
            yield path(self.prior([2 * i, 2 * i + 1], c.seed), {"from": 2 * i, "to": 2 * i + 1, "seed": c.seed})

    def _traversal(self, c: AutoencoderSampling) -> Drawn:
        """A row a channel, those first that change the picture most."""
        latents = self.encode(self._read(c.images))[0] if c.images else self.prior([0], c.seed)
        images, channels = self.traverse(latents[0], c.steps, c.n)
        of: dict[str, Any] = {"image": c.images[0]} if c.images else {"index": 0, "seed": c.seed}
        deviations = torch.linspace(-SPAN, SPAN, c.steps).tolist()
        facts = [of | {"channel": z, "deviations": d} for z in channels for d in deviations]
        return Drawn(images.flatten(0, 1).cpu(), facts, c.steps)

    def _reconstruction(self, c: AutoencoderSampling) -> Drawn:
        """Each image, and beside it what is left of it."""
        images = to_uint8(self._read(c.images))
        pairs = torch.stack([images, self.reconstruct(images).cpu()], dim=1).flatten(0, 1)
        return Drawn(pairs, [{"image": name, "reconstructed": done} for name in c.images for done in (False, True)], 2)

    def _read(self, files: Sequence[str]) -> Tensor:
        """Image files as the model takes them, (N, C, H, W) in [-1, 1]."""
        c = self.config
        assert c.resolution and c.channels
        images = []
        for name in files:
            try:
                images.append(decode(Path(name), c.resolution, c.channels))
            except ValueError as error:
                raise UserError(f"images={name}: {error}") from None
        return to_float(torch.stack(images))
