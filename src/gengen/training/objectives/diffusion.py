"""Diffusion, on pixels or latents: hide data under noise along a path, and learn to say what was hidden."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gengen.config.model import UNetConfig
from gengen.config.train import TrainConfig
from gengen.diffusion.parameterizations import network_inputs, target
from gengen.diffusion.times import TIME_SAMPLERS, indexed, stratified
from gengen.diffusion.weightings import weight
from gengen.generation.image.autoencoder import AutoencoderGenerator
from gengen.generation.image.diffusion import ImageGenerator, path_of
from gengen.generation.image.files import enlarged, grid, write_png
from gengen.generation.load import load_as
from gengen.generation.noise import Noise
from gengen.models.flops import forward_flops
from gengen.models.unet import NULL, UNet
from gengen.training.objective import Batch, Objective


class Diffusion(Objective):
    """The weighted squared error of the network's answer at a drawn time, averaged over an image's values.

    A batch is {"images"} in [-1, 1], or {"mean", "std"} of whitened latents, of which one is drawn anew each time; and
    labels.
    """

    sums = 2
    unit = "images"
    model: UNet

    def __init__(self, config: TrainConfig, model: UNet, prepared: Any):
        super().__init__(config, model)
        self.prepared = prepared
        self.diffusion: UNetConfig = model.config
        self.path = path_of(model.config)

    def draws(self, rows: int, generator: torch.Generator) -> Batch:
        c = self.diffusion
        shape = (rows, c.channels, c.resolution, c.resolution)
        drawn = {
            "u": stratified(rows, generator),
            "eps": torch.randn(shape, generator=generator),  # type: ignore[arg-type]
            "told": torch.rand(rows, generator=generator) >= c.drop_condition,
        }
        if self.prepared.dependencies:  # latents: a point of each one's posterior
            drawn["posterior"] = torch.randn(shape, generator=generator)  # type: ignore[arg-type]
        return drawn

    def data(self, batch: Batch) -> Tensor:
        """What is to be generated, (B, C, R, R): images, or a draw of their latents."""
        return batch["mean"] + batch["std"] * batch["posterior"] if "mean" in batch else batch["images"]

    def errors(self, network: Callable[..., Tensor], batch: Batch, labels: Tensor) -> Tensor:
        """The weighted squared error of each image, (B,) fp32."""
        c, x0, eps = self.diffusion, self.data(batch), batch["eps"]
        assert c.sigma_data, "the data says it (with_data)"
        t = TIME_SAMPLERS[c.times](batch["u"], self.path).to(x0.dtype)
        out = network(*network_inputs(self.path.add_noise(x0, eps, t), t, self.path, c.sigma_data), labels)
        wanted = target(c.prediction, x0, eps, t, self.path, c.sigma_data)
        return weight(c.weighting, t, self.path, c.prediction, c.sigma_data) * (out.float() - wanted).square().mean(
            dim=(1, 2, 3)
        )

    def loss_sum(self, batch: Batch) -> Tensor:
        return self.errors(self.network, batch, torch.where(batch["told"], batch["labels"], NULL)).sum()

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["labels"]), device=self.device)

    def evaluation_sums(self, batch: Batch) -> Tensor:
        """At times and with noise that are a function of the image's index: the same at every evaluation."""
        c, index = self.diffusion, batch["index"]
        assert c.channels and c.resolution
        noise = Noise(self.config.seed, index.tolist(), (c.channels, c.resolution, c.resolution), self.device)
        drawn = {"u": indexed(index), "eps": noise(), "posterior": noise()}
        errors = self.errors(self.model, batch | drawn, batch["labels"])
        return torch.stack([errors.double().sum(), self.count(batch).double()])

    def evaluation_metrics(self, sums: Tensor) -> dict[str, float]:
        error, images = sums.tolist()
        return {"val/loss": error / images}

    def write_samples(self, stem: Path, interrupted: Callable[[], bool]) -> str | None:
        """A grid of up to 40 images, a column a class, always of the same seed, to stem.png."""
        folder = self.prepared.dependencies.get("codec")
        codec = load_as(AutoencoderGenerator, str(folder), device=str(self.device)) if folder else None
        generator = ImageGenerator(self.model, codec)
        labels = range(min(10, len(self.diffusion.classes)))
        columns = len(labels) or 8
        images = generator.generate(
            4 * columns, labels, seed=self.config.seed, sampler="dpmpp_2m", interrupted=interrupted
        )
        if interrupted():
            return None
        write_png(stem.with_suffix(".png"), grid(enlarged(images), columns))
        return str(stem.with_suffix(".png"))

    def flops_per_row(self) -> float:
        c = self.diffusion
        with torch.device("meta"):
            x = torch.empty(1, c.channels or 0, c.resolution or 0, c.resolution or 0)
            return 3 * forward_flops(UNet(c), x, torch.empty(1))
