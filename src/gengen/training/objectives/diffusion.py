"""Diffusion, on pixels, latents or other tensors: hide data under noise along a path, and learn what was hidden."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from gengen.config.model import DiffusionProcess
from gengen.config.train import TrainConfig
from gengen.data.prepared import PreparedRows
from gengen.diffusion.parameterizations import network_inputs, target
from gengen.diffusion.times import TIME_SAMPLERS, indexed, stratified
from gengen.diffusion.weightings import weight
from gengen.generation.diffusion import path_of
from gengen.generation.image.autoencoder import AutoencoderGenerator
from gengen.generation.image.diffusion import ImageGenerator
from gengen.generation.image.files import enlarged, grid, write_png
from gengen.generation.load import load_as
from gengen.generation.noise import Noise
from gengen.models.flops import forward_flops
from gengen.models.layers import NO_CLASS
from gengen.training.objective import Batch, Objective


class Diffusion(Objective):
    """The weighted squared error of the network's output at a drawn time, averaged over a sample's values.

    A batch is {"images"} in [-1, 1], or {"mean", "std"} of whitened latents, of which one is drawn anew each time;
    with labels and the index. The model is a `gengen.diffusion.network.DiffusionNetwork`. Another modality
    overrides `data`, `write_samples` and `unit`.
    """

    n_eval_sums = 2
    unit = "images"

    def __init__(self, config: TrainConfig, model: nn.Module, prepared: PreparedRows):
        super().__init__(config, model)
        assert isinstance(config.model, DiffusionProcess)
        self.prepared = prepared
        self.process = config.model
        self.path = path_of(self.process)

    def draws(self, rows: int, generator: torch.Generator) -> Batch:
        shape = (rows, *self.process.sample_shape())
        drawn = {
            "u": stratified(rows, generator),
            "eps": torch.randn(shape, generator=generator),
            "keep_label": torch.rand(rows, generator=generator) >= self.process.drop_condition,
        }
        if self.prepared.dependencies:  # latents: a point of each one's posterior
            drawn["posterior"] = torch.randn(shape, generator=generator)
        return drawn

    def data(self, batch: Batch) -> Tensor:
        """Return what is to be generated, (B, *sample_shape): images, or a draw of their latents."""
        return batch["mean"] + batch["std"] * batch["posterior"] if "mean" in batch else batch["images"]

    def errors(self, network: Callable[[Tensor, Tensor, Tensor], Tensor], batch: Batch, labels: Tensor) -> Tensor:
        """Return the weighted squared error of each sample, (B,) fp32. network: see `DiffusionNetwork`."""
        c, x0, eps = self.process, self.data(batch), batch["eps"]
        assert c.sigma_data, "the data says it (with_data)"
        t = TIME_SAMPLERS[c.times](batch["u"], self.path).to(x0.dtype)
        x_t, level = network_inputs(self.path.add_noise(x0, eps, t), t, self.path, c.sigma_data)
        wanted = target(c.prediction, x0, eps, t, self.path, c.sigma_data)
        error = (network(x_t, level, labels).float() - wanted).square().mean(dim=tuple(range(1, x0.dim())))
        return weight(c.weighting, t, self.path, c.prediction, c.sigma_data) * error

    def loss_sum(self, batch: Batch) -> Tensor:
        labels = torch.where(batch["keep_label"], batch["labels"], NO_CLASS)
        return self.errors(self.network, batch, labels).sum()

    def loss_count(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["labels"]), device=self.device)

    def evaluation_sums(self, batch: Batch) -> Tensor:
        """Return summed errors and a count, at times and with noise that are a function of the sample's index: the
        same at every evaluation.
        """
        index = batch["index"]
        noise = Noise(self.config.seed, index.tolist(), self.process.sample_shape(), self.device)
        drawn = {"u": indexed(index), "eps": noise(), "posterior": noise()}
        errors = self.errors(self.model, batch | drawn, batch["labels"])
        return torch.stack([errors.double().sum(), self.loss_count(batch).double()])

    def evaluation_metrics(self, sums: Tensor) -> dict[str, float]:
        error, samples = sums.tolist()
        return {"val/loss": error / samples}

    def write_samples(self, stem: Path, interrupted: Callable[[], bool]) -> str | None:
        """Write a grid of up to 40 images, a column a class, always of the same seed, to stem.png."""
        folder = self.prepared.dependencies.get("codec")
        codec = load_as(AutoencoderGenerator, str(folder), device=str(self.device)) if folder else None
        generator = ImageGenerator(self.model, codec)
        labels = range(min(10, len(self.process.classes)))
        columns = len(labels) or 8
        images = generator.generate(
            4 * columns, labels, seed=self.config.seed, sampler="dpmpp_2m", interrupted=interrupted
        )
        if interrupted():
            return None
        write_png(stem.with_suffix(".png"), grid(enlarged(images), columns))
        return str(stem.with_suffix(".png"))

    def flops_per_row(self) -> float:
        """Count three forward passes: the backward pass costs two."""
        network = type(self.model)
        with torch.device("meta"):
            x = torch.empty(1, *self.process.sample_shape())
            return 3 * forward_flops(network(self.process), x, torch.empty(1))
