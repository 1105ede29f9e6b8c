"""Prepared text as batches: whole steps in an order that is a function of the step, and validation windows."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset

from gengen.config.data import TextConfig
from gengen.config.model import ModelConfig
from gengen.data.loader import StepData
from gengen.data.order import window
from gengen.data.prepared import Batch
from gengen.data.text.prepare import PreparedText
from gengen.data.text.shards import TokenStream

NO_LABEL = -100  # what torch's cross-entropy ignores


def shifted(span: np.ndarray, counted: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a span (T + 1,) of tokens to (inputs, labels), both (T,), of which the first `counted` labels count."""
    labels = span[1:].copy()
    labels[counted:] = NO_LABEL
    return span[:-1], labels


def batch(rows: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """Stack (inputs, labels), (T,) each, to tokens and labels (B, T)."""
    tokens, labels = zip(*rows, strict=True)
    return {"tokens": torch.from_numpy(np.stack(tokens)), "labels": torch.from_numpy(np.stack(labels))}


class Steps(Dataset[Batch]):
    """step -> the rows of that step's batch that fall to one rank."""

    def __init__(
        self, stream: TokenStream, context: int, seed: int, batch_size: int, rank: int, world: int, order: int = 1
    ):
        self.stream, self.context, self.seed, self.order = stream, context, seed, order
        self.batch_size, self.rank, self.world = batch_size, rank, world

    def __getitem__(self, step: int) -> Batch:
        share = self.batch_size // self.world
        first = step * self.batch_size + self.rank * share
        return batch([self.row(position) for position in range(first, first + share)])

    def row(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        start, counted = window(position, self.seed, len(self.stream), self.context, self.order)
        span = self.stream.read(start - 1, self.context + 1)  # the first label's input is the token before it
        return shifted(span, counted)


class TextData(StepData):
    """Batches of prepared text. A batch is {"tokens", "labels"}, both (B, T) int64; labels are -100 where nothing
    counts.
    """

    def __init__(
        self, config: TextConfig, prepared: PreparedText, *, context: int, seed: int, rank: int = 0, world: int = 1
    ):
        order = prepared.config.order or 1
        steps = Steps(prepared.train, context, seed, config.batch_size, rank, world, order)
        super().__init__(config, steps, rank, world)
        self.prepared, self.context = prepared, context

    def val_batches(self) -> Iterator[Batch]:
        """Yield non-overlapping windows over the validation part: every token but the first, which nothing precedes,
        is a label once."""
        stream, context = self.prepared.val, self.context
        starts = range(0, len(stream) - 1, context)
        for part in self.val_parts(len(starts)):
            left = {start: min(context, len(stream) - 1 - start) for start in (starts[i] for i in part)}
            yield batch([shifted(stream.read(start, context + 1), counted) for start, counted in left.items()])


def datamodule_for(
    config: TextConfig, prepared: PreparedText, model: ModelConfig, *, seed: int, rank: int = 0, world: int = 1
) -> TextData:
    """Build the datamodule for a model: windows of its context."""
    return TextData(config, prepared, context=getattr(model, "context"), seed=seed, rank=rank, world=world)
