"""Latents of a data set of images, kept on the disk: mean and deviation of each image's posterior, as it is and
mirrored.

    <folder>/  train-00000.safetensors ...  mirrored-00000.safetensors ...  val-00000.safetensors ...  codec/
    meta.json

In fp32: an autoencoder whose KL hardly counts is free in the scale of its latents and in how small a deviation it
takes, and fp16 ends at 6e-8. `codec/` is the autoencoder's checkpoint, with the statistics of these latents in it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import ConcatDataset, TensorDataset

from gengen.data.image.prepare import PreparedImages
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError

Posterior = tuple[Tensor, Tensor]
"""Mean and standard deviation, (N, Z, h, w) each."""


def write_latents(folder: Path, part: str, batches: Iterable[Posterior], shard: int = 8192) -> int:
    """Write posteriors one behind the other into part-00000.safetensors and so on, of `shard` images or a batch more.
    Returns how many.
    """
    count, number, waiting = 0, 0, list[Posterior]()

    def flush() -> None:
        nonlocal number, waiting
        mean, std = (torch.cat(tensors).float().cpu().contiguous() for tensors in zip(*waiting, strict=True))
        save_file({"mean": mean, "std": std}, folder / f"{part}-{number:05}.safetensors")
        number, waiting = number + 1, []

    for posterior in batches:
        waiting.append(posterior)
        count += len(posterior[0])
        if sum(len(mean) for mean, _ in waiting) >= shard:
            flush()
    if waiting:
        flush()
    return count


class Latents(ConcatDataset[tuple[Tensor, ...]]):
    """The posteriors of one part, memory-mapped: of each image mean and standard deviation, (Z, h, w) each."""

    def __init__(self, folder: Path, part: str):
        self._path = folder, part
        self.shards: list[Posterior] = []
        for path in sorted(folder.glob(f"{part}-[0-9]*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    self.shards.append((file.get_tensor("mean"), file.get_tensor("std")))
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: damaged ({error})") from None
        super().__init__([TensorDataset(*shard) for shard in self.shards] or [TensorDataset(torch.empty(0))])

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        """A spawned loader worker opens the files itself: a memory map would be copied to it whole."""
        return Latents, self._path


def statistics(posteriors: Iterable[Posterior]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of z ~ N(mean, std^2) in each channel, (Z,) fp32 each, over all images and
    positions: var z = E[mean^2 + std^2] - (E mean)^2, in fp64."""
    return from_moments(torch.stack([moments(mean, std) for mean, std in posteriors]).sum(0))


def moments(mean: Tensor, std: Tensor) -> Tensor:
    """Return the sums of 1, z and z^2 over images and positions, (3, Z) fp64, for z ~ N(mean, std^2), each of
    (N, Z, h, w).
    """
    mean, std = mean.double(), std.double()
    return torch.stack([torch.ones_like(mean), mean, mean.square() + std.square()]).sum((1, 3, 4))


def from_moments(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, (Z,) fp32 each, from sums (3, Z) as `moments` has them."""
    mean, square = sums[1] / sums[0], sums[2] / sums[0]
    variance = (square - mean.square()).clamp(min=1e-12)  # a quantizer's channel may be constant
    return mean.float(), variance.sqrt().float()


class EncodedImages:
    """Prepared images as another run's autoencoder encodes them: what latent diffusion is trained on.

    pixels: the prepared images themselves. mean, std: the statistics of each channel, (Z,), by which batches are
    whitened.
    """

    def __init__(self, folder: Path, pixels: PreparedImages, fingerprint: str, mean: Tensor, std: Tensor):
        self.folder, self.pixels, self.fingerprint = folder, pixels, fingerprint
        self.mean, self.std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
        self.config, self.classes = pixels.config, pixels.classes
        self.train, self.val = Latents(folder, "train"), Latents(folder, "val")
        self.mirrored = Latents(folder, "mirrored")
        found = len(self.train), len(self.val), len(self.mirrored)
        expected = len(pixels.train), len(pixels.val), len(pixels.train) if self.config.flip else 0
        if found != expected:
            raise UserError(f"{folder}: damaged (latents of {found} images, expected {expected})")

    @property
    def model_facts(self) -> dict[str, Any]:
        """Return what the data fixes of the model; whitened latents have a root mean square of 1."""
        channels, side, _ = self.train[0][0].shape
        return self.pixels.model_facts | {"resolution": side, "channels": channels, "sigma_data": 1.0}

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """Return the tokenizer of the captions; see `PreparedImages`."""
        return self.pixels.tokenizer

    def caption_features(self) -> Tensor:
        """Return what a frozen text encoder said of each different caption: see `PreparedImages`."""
        return self.pixels.caption_features()

    def held_out_captions(self, n: int) -> list[str]:
        """Return up to n different captions of what is held out, evenly spaced."""
        return self.pixels.held_out_captions(n)

    @property
    def dependencies(self) -> dict[str, Path]:
        """Return the folders that a run keeps a copy of, by the name they have there."""
        return {"codec": self.folder / "codec"} | self.pixels.dependencies

    def describe(self) -> list[str]:
        """Describe the data in aligned lines."""
        channels, side = self.model_facts["channels"], self.model_facts["resolution"]
        mirrored = ", the training images also mirrored" if self.config.flip else ""
        return [
            *self.pixels.describe(),
            f"{'latents':<12} {channels} x {side} x {side} of each image{mirrored}, in {self.folder}",
        ]

    def batch(self, split: str, index: Tensor, flipped: Tensor | None = None) -> dict[str, Tensor]:
        """split: train or val; index: (B,) int64; flipped: (B,) bool, which to mirror left to right; None = none.

        Returns the whitened posteriors, mean and std (B, Z, h, w) fp32, labels (B,) int64 and the index.
        """
        plain, pixels = (self.train, self.pixels.train) if split == "train" else (self.val, self.pixels.val)
        flips = [False] * len(index) if flipped is None else flipped.tolist()
        rows = [(self.mirrored if flip else plain)[i] for i, flip in zip(index.tolist(), flips, strict=True)]
        mean, std = (torch.stack(tensors) for tensors in zip(*rows, strict=True))
        words = self.pixels.words.rows(split, index) if self.pixels.words else {}
        return {
            "mean": (mean - self.mean) / self.std,
            "std": std / self.std,
            "labels": pixels.labels[index],
            "index": index,
        } | words
