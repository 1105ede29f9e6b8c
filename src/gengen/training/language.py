"""Pretraining of language models: predict the next token."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gengen.checkpoints.files import replace_text
from gengen.config.redact import redact
from gengen.config.train import TrainConfig
from gengen.generation.text import TextGenerator
from gengen.models.cross_entropy import IGNORED
from gengen.models.flops import gpt_flops_per_token
from gengen.models.gpt import GPT
from gengen.training.objective import Batch, Objective


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Total nats / ln 2 / raw UTF-8 bytes: a loss that does not depend on the tokenizer."""
    return nats / math.log(2) / text_bytes


class Pretraining(Objective):
    """Cross-entropy of every token given those before it in its window."""

    metrics = ("val/loss", "val/bpb")
    monitor = "val/bpb"
    sums = 2
    compiles_on_cpu = True
    unit = "tokens"
    model: GPT

    def __init__(self, config: TrainConfig, model: GPT, prepared: Any):
        super().__init__(config, model)
        self.prepared = prepared

    def use_compiled(self) -> None:
        self._network = (self.model.compiled(),)

    def loss_sum(self, batch: Batch) -> Tensor:
        return self.network(batch["tokens"], labels=batch["labels"])

    def count(self, batch: Batch) -> Tensor:
        return (batch["labels"] != IGNORED).sum()

    def evaluation_sums(self, batch: Batch) -> Tensor:
        nats = self.model(batch["tokens"], labels=batch["labels"])
        return torch.stack([nats.double(), self.count(batch).double()])

    def evaluation_metrics(self, sums: Tensor) -> dict[str, float]:
        nats, tokens = sums.tolist()
        return {"val/loss": nats / tokens, "val/bpb": bits_per_byte(nats, self.prepared.val_bytes)}

    def write_samples(self, stem: Path, interrupted: Callable[[], bool]) -> str | None:
        """A continuation of each of data.prompts, always of the same seed, to stem.txt."""
        generator = TextGenerator(self.model, self.prepared.tokenizer)
        prompts = self.config.data.prompts  # type: ignore[attr-defined]
        samples = generator.generate(prompts, max_tokens=100, seed=self.config.seed, interrupted=interrupted)
        if interrupted():
            return None
        replace_text(stem.with_suffix(".txt"), redact("\n\n---\n\n".join(s.prompt + s.text for s in samples) + "\n"))
        return " ".join((samples[0].prompt + samples[0].text).split())[:120]

    def flops_per_row(self) -> float:
        c: Any = self.config.model
        return c.context * gpt_flops_per_token(c, c.context)
