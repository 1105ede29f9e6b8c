"""Prepared images as batches: whole steps in an order that is a function of the step, and the validation images in turn."""

from collections.abc import Iterator, Sized
from typing import Protocol

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gengen.config.data import ImageConfig
from gengen.config.errors import UserError
from gengen.config.model import ModelConfig
from gengen.data import order
from gengen.data.image_files import decode
from gengen.data.image_prepare import ImageSet, PreparedImages, prepare
from gengen.data.sources import Say

__all__ = ["ImageData", "ImageSet", "PreparedImages", "decode", "prepare"]


class Batches(Protocol):
    """What batches are drawn from: prepared images, or what another model has made of them."""

    @property
    def train(self) -> Sized: ...

    @property
    def val(self) -> Sized: ...

    def batch(self, split: str, index: Tensor, flipped: Tensor) -> dict[str, Tensor]: ...


class Steps(Dataset[dict[str, Tensor]]):
    """step -> the images of that step's batch that fall to one rank."""

    def __init__(self, prepared: Batches, flip: bool, seed: int, batch_size: int, rank: int, world: int):
        self.prepared, self.flip, self.seed = prepared, flip, seed
        self.batch_size, self.rank, self.world = batch_size, rank, world

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        share = self.batch_size // self.world
        first = step * self.batch_size + self.rank * share
        index, mirrored = order.images(first, share, self.seed, len(self.prepared.train))
        return self.prepared.batch("train", torch.from_numpy(index), torch.from_numpy(mirrored & self.flip))


class ImageData(L.LightningDataModule):
    """Batches of prepared images, {"images", "labels", "index"} (see PreparedImages.batch), or whatever `prepared` makes.

    One item of the train loader is one step's whole batch, or this rank's slice of it. There is no state to save: the
    loader starts at the trainer's global step, and the number of workers changes nothing.
    """

    def __init__(self, config: ImageConfig, prepared: Batches, *, seed: int, rank: int = 0, world: int = 1):
        super().__init__()
        if config.batch_size % world:
            raise UserError(f"data.batch_size={config.batch_size} cannot be cut into equal parts for {world} ranks")
        self.config, self.prepared = config, prepared
        self.seed, self.rank, self.world = seed, rank, world

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self.loader(self.trainer.global_step if self.trainer else 0)

    def loader(self, start_step: int) -> DataLoader[dict[str, Tensor]]:
        """The batches of start_step, start_step + 1, ..., without end."""
        return DataLoader(
            Steps(self.prepared, self.config.flip, self.seed, self.config.batch_size, self.rank, self.world),
            batch_size=None,
            sampler=order.From(start_step),
            num_workers=self.config.num_workers,
            generator=torch.Generator(),  # its own: a loader draws a seed for its workers even if they use none
        )

    def val_batches(self) -> Iterator[dict[str, Tensor]]:
        """Every validation image once, in order, none mirrored. Of world ranks, rank r takes batches r, r + world, ..."""
        size, n = self.config.micro_batch_size or self.config.batch_size, len(self.prepared.val)
        for first in range(self.rank * size, n, self.world * size):
            index = torch.arange(first, min(first + size, n))
            yield self.prepared.batch("val", index, torch.zeros(len(index), dtype=torch.bool))


def datamodule_for(config: ImageConfig, prepared: Batches, model: ModelConfig, *, seed: int, rank: int = 0, world: int = 1) -> ImageData:
    """The datamodule, the same for every model."""
    return ImageData(config, prepared, seed=seed, rank=rank, world=world)


def prepare_for(config: ImageConfig, model: ModelConfig, say: Say, tokenizer: str | None) -> PreparedImages:
    """The prepared images, the same for every model; the last two parameters are text's."""
    return prepare(config, say)
