"""Diffusion, on pixels, latents or other tensors: hide data under noise along a path, and learn what was hidden."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from gengen.config.model import DiffusionConfig, DiffusionProcess
from gengen.config.train import TrainConfig
from gengen.data.prepared import CaptionedRows, PreparedRows
from gengen.diffusion.masks import NUMBERS, known_part, masks
from gengen.diffusion.parameterizations import network_inputs, target
from gengen.diffusion.times import TIME_SAMPLERS, indexed, stratified
from gengen.diffusion.weightings import weight
from gengen.generation.diffusion import path_of
from gengen.generation.image.autoencoder import AutoencoderGenerator
from gengen.generation.image.diffusion import ImageGenerator
from gengen.generation.image.files import enlarged, grid, write_png
from gengen.generation.image.sentences import SentenceEncoder
from gengen.generation.load import load_as
from gengen.generation.noise import Noise, stream
from gengen.models.diffusion_network import DiffusionNetwork
from gengen.models.flops import forward_flops
from gengen.models.layers import NO_CLASS
from gengen.models.text_encoder import CaptionTable, TextAdapter, TextCondition
from gengen.training.objective import Batch, Objective


class Diffusion(Objective):
    """The weighted squared error of the network's output at a drawn time, averaged over a sample's values.

    A batch is {"images"} in [-1, 1], or {"mean", "std"} of whitened latents, of which one is drawn anew each time;
    with labels and the index. The model is a `gengen.models.diffusion_network.DiffusionNetwork`. Another modality
    overrides `data`, `write_samples` and `unit`.
    """

    n_eval_sums = 2
    unit = "images"
    can_shard = True

    def __init__(self, config: TrainConfig, model: nn.Module, prepared: PreparedRows):
        assert isinstance(config.model, DiffusionProcess)
        frozen = frozen_captions(config.model, model, prepared)  # before an average of the model begins
        super().__init__(config, model)
        self.companions = frozen
        self.prepared = prepared
        self.process = config.model
        self.path = path_of(self.process)

    def draws(self, rows: int, generator: torch.Generator) -> Batch:
        shape = (rows, *self.process.sample_shape())
        drawn = {
            "u": stratified(rows, generator),
            "eps": torch.randn(shape, generator=generator),
            "keep_condition": torch.rand(rows, generator=generator) >= self.process.drop_condition,
        }
        if "codec" in self.prepared.dependencies:  # latents: a point of each one's posterior
            drawn["posterior"] = torch.randn(shape, generator=generator)
        if self.process.text:
            drawn["which_caption"] = torch.rand(rows, generator=generator)
        if self.inpaints:
            drawn["mask"] = torch.rand(rows, NUMBERS, generator=generator)
        return drawn

    @property
    def inpaints(self) -> bool:
        """Whether the network is trained for inpainting."""
        return isinstance(self.process, DiffusionConfig) and self.process.inpaint

    def known(self, batch: Batch) -> Batch:
        """Return what a network for inpainting is told of each row, behind the mask that was drawn for it."""
        if not self.inpaints:
            return {}
        x0 = self.data(batch)
        return {"known": known_part(x0, masks(batch["mask"], x0.shape[-1]))}

    def conditions(self, batch: Batch) -> Batch:
        """Return the labels, and for a network of text the captions, that each row is trained with: one of its own,
        or none where the condition is dropped; and what is known, which is not dropped with it.
        """
        keep = batch["keep_condition"]
        given = {"labels": torch.where(keep, self.labels(batch), NO_CLASS)}
        if self.process.text:
            which = (batch["which_caption"] * batch["caption_count"]).long()
            captions = self.read(batch["captions"][torch.arange(len(which), device=which.device), which])
            empty = cast(TextCondition, self.model.text).empty(len(captions), captions.shape[1])
            given["text"] = torch.where(keep.view(-1, *[1] * (captions.dim() - 1)), captions, empty)
        return given | self.known(batch)

    def read(self, captions: Tensor) -> Tensor:
        """Return captions as the network's text encoder reads them: tokens, (B, L), as they are, or, of numbers (B,),
        what a frozen text encoder said of them, (B, L, D').
        """
        return captions if self.process.text_encoder == "own" else self.companions[0](captions)

    def labels(self, batch: Batch) -> Tensor:
        """Return the class of each row, (B,): none for a network that knows no classes, as one of text."""
        return batch["labels"] if self.process.classes else torch.full_like(batch["labels"], NO_CLASS)

    def data(self, batch: Batch) -> Tensor:
        """Return what is to be generated, (B, *sample_shape): images, or a draw of their latents."""
        return batch["mean"] + batch["std"] * batch["posterior"] if "mean" in batch else batch["images"]

    def errors(self, network: DiffusionNetwork, batch: Batch, conditions: Batch) -> Tensor:
        """Return the weighted squared error of each sample, (B,) fp32. conditions: what the network is told of each
        row, by the names it has for that.
        """
        c, x0, eps = self.process, self.data(batch), batch["eps"]
        assert c.sigma_data, "the data says it (with_data)"
        t = TIME_SAMPLERS[c.times](batch["u"], self.path).to(x0.dtype)
        x_t, level = network_inputs(self.path.add_noise(x0, eps, t), t, self.path, c.sigma_data)
        wanted = target(c.prediction, x0, eps, t, self.path, c.sigma_data)
        error = (network(x_t, level, **conditions).float() - wanted).square().mean(dim=tuple(range(1, x0.dim())))
        return weight(c.weighting, t, self.path, c.prediction, c.sigma_data) * error

    def loss_sum(self, batch: Batch) -> Tensor:
        return self.errors(cast(DiffusionNetwork, self.network), batch, self.conditions(batch)).sum()

    def loss_count(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["labels"]), device=self.device)

    def evaluation_sums(self, batch: Batch) -> Tensor:
        """Return summed errors and a count, at times, with noise and behind masks that are a function of the sample's
        index: the same at every evaluation. No condition is dropped, and the captions are the plainest.
        """
        index = batch["index"]
        noise = Noise(self.config.seed, index.tolist(), self.process.sample_shape(), self.device)
        batch = batch | {"u": indexed(index), "eps": noise(), "posterior": noise()}
        if self.inpaints:
            batch["mask"] = self.evaluation_masks(index)
        conditions = {"labels": self.labels(batch)}
        if self.process.text:
            conditions["text"] = self.read(batch["captions"][:, 0])
        errors = self.errors(cast(DiffusionNetwork, self.evaluated), batch, conditions | self.known(batch))
        return torch.stack([errors.double().sum(), self.loss_count(batch).double()])

    def evaluation_masks(self, index: Tensor) -> Tensor:
        """Return the numbers that each sample's mask is made of, (B, NUMBERS)."""
        rows = [stream(self.config.seed, i, "mask").random(NUMBERS, dtype=np.float32) for i in index.tolist()]
        return torch.from_numpy(np.stack(rows)).to(self.device)

    def evaluation_metrics(self, sums: Tensor) -> dict[str, float]:
        error, samples = sums.tolist()
        return {"val/loss": error / samples}

    def write_samples(self, stem: Path, interrupted: Callable[[], bool]) -> str | None:
        """Write a grid of up to 40 images, always of the same seed, to stem.png: a column a class, or a row a held-out
        caption.
        """
        folder = self.prepared.dependencies.get("codec")
        codec = load_as(AutoencoderGenerator, str(folder), device=str(self.device)) if folder else None
        captioned = cast(CaptionedRows, self.prepared) if self.process.text else None
        encoder = self.prepared.dependencies.get("text_encoder")
        sentences = SentenceEncoder.load(encoder) if encoder else None
        generator = ImageGenerator(self.model, codec, captioned.tokenizer if captioned else None, sentences)
        labels = range(min(10, len(self.process.classes)))
        captions = captioned.held_out_captions(10) if captioned else []
        columns = 4 if captions else len(labels) or 8
        n = columns if captions else 4 * columns
        images = generator.generate(
            n, labels, prompts=captions, seed=self.config.seed, sampler="dpmpp_2m", interrupted=interrupted
        )
        if interrupted():
            return None
        write_png(path := stem.with_suffix(".png"), grid(enlarged(images), columns))
        return f"{path}" + (f", a row each: {'; '.join(captions)}" if captions else "")

    def flops_per_row(self) -> float:
        """Count three forward passes: the backward pass costs two."""
        network = type(self.model)
        with torch.device("meta"):
            x = torch.empty(1, *self.process.sample_shape())
            return 3 * forward_flops(network(self.process), x, torch.empty(1))


def frozen_captions(process: DiffusionProcess, model: nn.Module, prepared: PreparedRows) -> tuple[CaptionTable, ...]:
    """Return what a frozen text encoder said of the captions, and tell the model what it said of the empty one; none
    for a model with its own text encoder, or without.
    """
    if process.text_encoder == "own":
        return ()
    features = cast(CaptionedRows, prepared).caption_features()
    adapter = cast(TextAdapter, cast(TextCondition, model.text).encoder)
    adapter.null.copy_(features[0, : len(adapter.null)])
    return (CaptionTable(features),)
