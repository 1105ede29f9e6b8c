"""From a diffusion model to images: noise of each sample's own, a sampler, guidance, and the codec back to pixels."""

import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from gengen.config.commands import DiffusionSampling, DiffusionSettings, EvaluateConfig, RunConfig
from gengen.config.model import LDMConfig, UNetConfig
from gengen.config.schema import build
from gengen.diffusion.guidance import Denoiser, guide
from gengen.diffusion.parameterizations import denoiser
from gengen.diffusion.paths import PATHS
from gengen.diffusion.paths import Path as NoisePath
from gengen.diffusion.samplers import SAMPLERS
from gengen.errors import UserError
from gengen.generation.base import Labels, LabelSampler
from gengen.generation.image.autoencoder import AutoencoderGenerator
from gengen.generation.image.codec import codec_hash
from gengen.generation.image.files import (
    SHOWN,
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
from gengen.generation.load import load_as
from gengen.generation.noise import Noise
from gengen.models.unet import NULL, UNet

GUIDANCE = 2.0  # the scale that measured best on the animals (docs/results.md)


def path_of(config: UNetConfig) -> NoisePath:
    """The path a model was trained on."""
    return PATHS[config.path](**({"shift": config.shift} if config.path == "flow" else {}))


class ImageGenerator(PictureGenerator[UNet, DiffusionSampling]):
    """Draws images with a diffusion model; what `gengen.load` returns for one.

    Noise of image i comes from (seed, i) alone, so in fp32 neither n nor batch_size changes it by more than rounding.
    """

    animation = Animation("denoising.gif", seconds=3.0)
    config: UNetConfig

    def __init__(self, model: UNet, codec: AutoencoderGenerator | None = None):
        super().__init__(model)
        self.codec = codec

    @classmethod
    def from_checkpoint(cls, model: UNet, directory: Path) -> Self:
        folder, device = directory.parent.parent / "codec", str(model.conv_in.weight.device)
        latent = isinstance(model.config, LDMConfig)
        return cls(model, load_as(AutoencoderGenerator, str(folder), device=device) if latent else None)

    def generate(
        self, n: int = 16, labels: Labels = (), *, seed: int = 0, first: int = 0,
        sampler: str = "heun", steps: int = 20, guidance: float | None = None, guide_from: float = 0.0,
        guide_to: float = 1.0, rescale: float = 0.0, precision: str = "fp32", batch_size: int = 64,
        guide: "ImageGenerator | None" = None, frames: list[Tensor] | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Tensor:  # fmt: skip
        """Return n images, (n, C, H, W) uint8, samples `first` and the next ones. labels: names, or numbers as ints or
        a tensor, in turn; none = all in turn. `DiffusionSettings` explains the settings.

        guide: a smaller or earlier model to guide away from, instead of this one without its class. frames: a list
        that receives the estimates of all images after each step. Once `interrupted` answers true, the rest is left
        undrawn.
        """
        c: DiffusionSampling = build(DiffusionSampling, {
            "n": n, "seed": seed, "sampler": sampler, "steps": steps, "guidance": guidance, "guide_from": guide_from,
            "guide_to": guide_to, "rescale": rescale, "precision": precision, "batch_size": batch_size,
        })  # fmt: skip
        if guide:
            self.check_guide(guide)
        told = labels_of(labels, self.classes, n).to(self.device)
        images, movies = [], []
        with self.sampling():
            for start in range(0, n, c.batch_size):
                if interrupted():
                    break
                rows = slice(start, min(n, start + c.batch_size))
                movie: list[Tensor] | None = None if frames is None else []
                samples = range(first + rows.start, first + rows.stop)
                images.append(self.pixels(self.draw(told[rows], samples, c, guide, movie)))
                movies.append(movie)
        if frames is not None:
            frames += [torch.cat(parts) for parts in zip(*(movie or [] for movie in movies), strict=True)]
        return torch.cat(images) if images else torch.empty(0, dtype=torch.uint8)

    def check_guide(self, guide: "ImageGenerator") -> None:
        """Both models must mean the same by x_t and by a label. Raises UserError where they do not."""
        for key in ("path", "shift", "resolution", "channels", "classes"):
            ours, theirs = getattr(self.config, key), getattr(guide.config, key)
            if ours != theirs:
                raise UserError(f"guide: its model.{key} is {theirs}, this model's is {ours}; they must be the same")
        ours, theirs = (generator.codec and codec_hash(generator.codec.model) for generator in (self, guide))
        if ours != theirs:
            raise UserError("guide: its latents are another codec's than this model's")

    @torch.inference_mode()
    def draw(
        self,
        labels: Tensor,
        samples: range,
        c: DiffusionSampling,
        guide: "ImageGenerator | None",
        movie: list[Tensor] | None,
    ) -> Tensor:
        """Samples of these numbers in the model's own space, (B, C, R, R) fp32; `movie` receives the pixels of each
        estimate.
        """
        path, m = path_of(self.config), self.config
        assert m.channels and m.resolution
        noise = Noise(c.seed, samples, (m.channels, m.resolution, m.resolution), self.device)
        times = path.times(c.steps)
        callback = None if movie is None else lambda i, t, x, x0: movie.append(self.pixels(x0))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=c.precision == "bf16"):
            return SAMPLERS[c.sampler](
                self.guided(labels, c, guide), path.sigma(times[0]) * noise(), times, path, noise, callback
            )

    def guided(self, labels: Tensor, c: DiffusionSampling, guide_: "ImageGenerator | None") -> Denoiser:
        """The denoiser of these classes, guided away from the reference."""
        path, scale = path_of(self.config), self.guidance_scale(c.guidance, guide_)
        reference = guide_.denoiser(labels) if guide_ else self.denoiser(torch.full_like(labels, NULL))
        ends = [math.inf if share == 1 else path.time_at(share / (1 - share)) for share in (c.guide_from, c.guide_to)]
        return guide(self.denoiser(labels), reference, scale, (ends[0], ends[1]), c.rescale)

    def guidance_scale(self, wanted: float | None, guide_: "ImageGenerator | None") -> float:
        """The scale of guidance; null is what suits the model.

        Raises UserError where there is nothing to guide away from: without `guide`, that is the model's own estimate
        without a class, which a model trained with drop_condition=0 never learnt.
        """
        if guide_ or (self.classes and self.config.drop_condition > 0):
            return GUIDANCE if wanted is None else wanted
        if self.classes and wanted not in (None, 1.0):
            raise UserError(
                f"guidance={wanted:g}: the model always saw its class (model.drop_condition=0), so it has no estimate without one "
                "to guide away from; leave guidance out, or name another model by guide="
            )
        return 1.0

    def denoiser(self, labels: Tensor) -> Denoiser:
        """This model as a function (x_t, t) -> x_0, told these classes."""
        c = self.config
        assert c.sigma_data, "a run records what its data says (with_data)"
        return denoiser(lambda x, level: self.model(x, level, labels), path_of(c), c.prediction, c.sigma_data)

    def pixels(self, x: Tensor) -> Tensor:
        """What the model draws, as pixels, (B, C, H, W) uint8."""
        return to_uint8(self.codec.decode(self.codec.model.unwhitened(x.float())) if self.codec else x).cpu()

    def settings(self, how: DiffusionSettings, where: RunConfig) -> tuple["ImageGenerator | None", dict[str, Any]]:
        """Load the model to guide away from; return it, and the other settings by name, with the guidance that will be
        used."""
        guide_ = None
        if how.guide:
            guide_ = load_as(ImageGenerator, how.guide, Path(where.runs_dir), device=where.device)
        settings = {f.name: getattr(how, f.name) for f in fields(DiffusionSettings) if f.name != "guide"}
        return guide_, settings | {"guidance": self.guidance_scale(how.guidance, guide_)}

    def label_sampler(self, config: EvaluateConfig) -> LabelSampler:
        """Return what `evaluate` draws by: an image for each label."""
        guide_, settings = self.settings(config, config)
        asked = {f.name: getattr(config, f.name) for f in fields(DiffusionSettings)}
        return LabelSampler(
            lambda labels: self.generate(len(labels), labels, seed=config.seed, guide=guide_, **settings), asked
        )

    def drawn(self, config: DiffusionSampling) -> Iterator[Drawn]:
        guide_, settings = self.settings(config, config)
        turn, seed = turn_of(config.labels, self.classes), config.seed
        for samples in batches(config.n, config.batch_size):
            frames: list[Tensor] | None = [] if config.animation and samples.start < SHOWN else None
            labels = labels_at(turn, samples)
            asked: dict[str, Any] = {"first": samples.start, "frames": frames, "guide": guide_}
            images = self.generate(len(samples), labels, seed=seed, **asked, **settings)
            each = zip(samples, labels.tolist(), strict=True)
            facts = [{"index": i, "seed": seed} | settings | named(label, self.classes) for i, label in each]
            yield Drawn(images, facts, frames=frames or ())
