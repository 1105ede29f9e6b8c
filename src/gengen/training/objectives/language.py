"""Language models: predict the next token, of texts or of the answers in conversations."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from gengen.checkpoints.files import replace_text
from gengen.config.model import GPTConfig
from gengen.config.redact import redact
from gengen.config.train import TrainConfig
from gengen.data.text.prepare import PreparedText, PreparedTokens
from gengen.errors import UserError
from gengen.generation.load import start_from
from gengen.generation.text.generator import Prompt, TextGenerator
from gengen.models.flops import gpt_flops_per_token
from gengen.models.gpt import GPT
from gengen.models.kernels.cross_entropy import IGNORED
from gengen.models.lora import without_adapters
from gengen.training.objective import Batch, Objective


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Total nats / ln 2 / raw UTF-8 bytes: a loss that does not depend on the tokenizer."""
    return nats / math.log(2) / text_bytes


def fits(generator: TextGenerator, prompt: Prompt) -> bool:
    """Whether the model's context holds the prompt."""
    try:
        return bool(generator.prompt_tokens(prompt))
    except UserError:
        return False


class LanguageObjective(Objective):
    """What is trained on text, whatever the stage."""

    compiles_on_cpu = True
    model: GPT
    prepared: PreparedTokens

    def __init__(self, config: TrainConfig, model: GPT, prepared: PreparedTokens):
        super().__init__(config, model)
        self.prepared = prepared

    def use_compiled(self) -> None:
        self._network = (self.model.compiled(),)

    def write_samples(self, stem: Path, interrupted: Callable[[], bool]) -> str | None:
        """A continuation of each of data.prompts, or an answer to each of the first prompts of the data, always of the
        same seed, to stem.txt."""
        generator = TextGenerator(self.model, self.prepared.tokenizer)
        prompts = getattr(self.config.data, "prompts", None) or self.prepared.sample_prompts(4)
        prompts = [prompt for prompt in prompts if fits(generator, prompt)] or [""]
        samples = generator.generate(prompts, max_tokens=100, seed=self.config.seed, interrupted=interrupted)
        if interrupted():
            return None
        texts = [
            f"{s.prompt}{'' if isinstance(prompt, str) else ' -> '}{s.text}"
            for prompt, s in zip(prompts, samples, strict=True)
        ]
        replace_text(stem.with_suffix(".txt"), redact("\n\n---\n\n".join(texts) + "\n"))
        return " ".join(texts[0].split())[:120]

    def flops_per_row(self) -> float | None:
        """What a stage does beside training on rows as wide as the context (references, critics, answers) has no
        formula here.
        """
        return None

    def work_per_row(self) -> float:
        c = cast(GPTConfig, self.config.model)
        assert c.context
        return c.context * gpt_flops_per_token(c, c.context)


class Pretraining(LanguageObjective):
    """Cross-entropy of every token given those before it in its window."""

    metrics: tuple[str, ...] = ("val/loss", "val/bpb")
    monitor = "val/bpb"
    n_eval_sums = 2
    unit = "tokens"
    can_shard = True

    def flops_per_row(self) -> float:
        return self.work_per_row()

    def loss_sum(self, batch: Batch) -> Tensor:
        return self.network(batch["tokens"], labels=batch["labels"])

    def loss_count(self, batch: Batch) -> Tensor:
        return (batch["labels"] != IGNORED).sum()

    def evaluation_sums(self, batch: Batch) -> Tensor:
        nats = self.evaluated(batch["tokens"], labels=batch["labels"])
        return torch.stack([nats.double(), self.loss_count(batch).double()])

    def evaluation_metrics(self, sums: Tensor) -> dict[str, float]:
        nats, tokens = sums.tolist()
        return {"val/loss": nats / tokens, "val/bpb": bits_per_byte(nats, cast(PreparedText, self.prepared).val_bytes)}


class FineTuning(Pretraining):
    """The same of a conversation's trained tokens: the assistant's, unless data.train_on says otherwise."""

    metrics = ("val/loss",)
    monitor = "val/loss"

    def evaluation_metrics(self, sums: Tensor) -> dict[str, float]:
        nats, tokens = sums.tolist()
        return {"val/loss": nats / tokens}


def reference(config: TrainConfig, model: GPT) -> GPT:
    """The model that the run started from, as the run's own was at the beginning; without gradients.

    Of an adapted model it is its base, which takes no further memory; else a copy that the run keeps, on the CPU until
    an objective takes it along.
    """
    if model.base_names:
        return without_adapters(model)
    frozen = GPT(config.model).eval()  # type: ignore[arg-type]
    start_from(frozen, Path(config.runs_dir) / str(config.run) / "reference")
    return frozen.requires_grad_(False)
