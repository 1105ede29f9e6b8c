"""Prepared text as batches: whole steps in an order that is a function of the step, and validation windows."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gengen.config.data import TextConfig
from gengen.config.model import ModelConfig
from gengen.data.loader import StepData
from gengen.data.order import window
from gengen.data.sources.files import Say
from gengen.data.text.prepare import PreparedText, prepare
from gengen.data.text.shards import TokenStream
from gengen.data.text.tokenizer import TextTokenizer

__all__ = ["PreparedText", "TextData", "prepare"]

NO_LABEL = -100  # what torch's cross-entropy ignores


def shifted(span: np.ndarray, counted: int) -> tuple[np.ndarray, np.ndarray]:
    """span: (T + 1,) tokens -> (inputs, labels), both (T,), of which the first `counted` labels count."""
    labels = span[1:].copy()
    labels[counted:] = NO_LABEL
    return span[:-1], labels


def batch(rows: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Tensor]:
    tokens, labels = zip(*rows, strict=True)
    return {"tokens": torch.from_numpy(np.stack(tokens)), "labels": torch.from_numpy(np.stack(labels))}  # (B, T) each


class Steps(Dataset[dict[str, Tensor]]):
    """step -> the rows of that step's batch that fall to one rank."""

    def __init__(self, stream: TokenStream, context: int, seed: int, batch_size: int, rank: int, world: int):
        self.stream, self.context, self.seed = stream, context, seed
        self.batch_size, self.rank, self.world = batch_size, rank, world

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        share = self.batch_size // self.world
        first = step * self.batch_size + self.rank * share
        return batch([self.row(position) for position in range(first, first + share)])

    def row(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        start, counted = window(position, self.seed, len(self.stream), self.context)
        return shifted(
            self.stream.read(start - 1, self.context + 1), counted
        )  # the first label's input is the token before it


class TextData(StepData):
    """Batches of prepared text. A batch is {"tokens", "labels"}, both (B, T) int64; labels are -100 where nothing
    counts.
    """

    def __init__(
        self, config: TextConfig, prepared: PreparedText, *, context: int, seed: int, rank: int = 0, world: int = 1
    ):
        super().__init__(config, Steps(prepared.train, context, seed, config.batch_size, rank, world), rank, world)
        self.prepared, self.context = prepared, context

    def val_batches(self) -> Iterator[dict[str, Tensor]]:
        """Non-overlapping windows over the validation part: every token but the first, which nothing precedes, is a
        label once.
        """
        stream, context = self.prepared.val, self.context
        starts = range(0, len(stream) - 1, context)
        for part in self.val_parts(len(starts)):
            yield batch(
                [shifted(stream.read(starts[i], context + 1), min(context, len(stream) - 1 - starts[i])) for i in part]
            )


def datamodule_for(
    config: TextConfig, prepared: PreparedText, model: ModelConfig, *, seed: int, rank: int = 0, world: int = 1
) -> TextData:
    """The datamodule for a model: windows of its context."""
    return TextData(config, prepared, context=getattr(model, "context"), seed=seed, rank=rank, world=world)


def prepare_for(config: TextConfig, model: ModelConfig, say: Say, tokenizer: str | None) -> PreparedText:
    """The prepared data for a model: its vocabulary size, unless the data's own is set or a tokenizer (as JSON) is
    brought along.
    """
    vocab_size = config.vocab_size or getattr(model, "vocab_size", None) or 2048
    config = replace(config, vocab_size=vocab_size)
    return prepare(config, vocab_size, say, TextTokenizer.from_json(tokenizer) if tokenizer else None)
