"""Kahneman-Tversky optimisation: answers that are good or bad, each by itself, without another to compare it with."""

from typing import cast

import torch
from torch import Tensor

from gengen.alignment.losses import kto
from gengen.config.stage import KTOConfig
from gengen.config.train import TrainConfig
from gengen.data.dialogue.prepare import PreparedExamples
from gengen.models.completions import answer_log_probs
from gengen.models.gpt import GPT
from gengen.training.objective import Batch
from gengen.training.objectives.language import LanguageObjective, reference
from gengen.training.objectives.side_network import Companion


class RatedAnswers(LanguageObjective):
    """KTO (Ethayarajh et al. 2024) on log-probabilities of whole answers.

    A batch is {"tokens" (B, 2, T), "mask" (B, 2, T - 1), "good" (B,)}: a prompt with its answer, and with the answer
    to another prompt. From the second ones comes the baseline, an estimate of KL(pi || ref): the mean over the step's
    whole batch on all ranks, so the gradient does not depend on how the batch was cut. An evaluation takes the
    baseline of each batch.

    val/good and val/bad are log pi - log ref of such answers, val/kl is that of the second ones; val/accuracy is the
    share of answers whose ratio is on its side of the baseline.
    """

    metrics = ("val/loss", "val/accuracy", "val/good", "val/bad", "val/kl")
    n_eval_sums = 7
    unit = "answers"

    def __init__(self, config: TrainConfig, model: GPT, prepared: PreparedExamples):
        super().__init__(config, model, prepared)
        assert isinstance(config.stage, KTOConfig)
        self.stage_config = config.stage
        self.reference = Companion(reference(config, model) if prepared else model)
        self.companions = (self.reference.network,)
        self.baseline = torch.zeros(())  # of the step under way

    def log_ratios(self, policy: GPT, batch: Batch, side: int) -> Tensor:
        """Return log pi - log ref, (B,), of each prompt with its own answer (side 0) or with another's (side 1)."""
        tokens, mask = batch["tokens"][:, side], batch["mask"][:, side]
        with torch.no_grad():
            ref_log_probs = answer_log_probs(self.reference.network, tokens, mask)
        return (answer_log_probs(policy, tokens, mask) - ref_log_probs).sum(1)

    def losses(self, ratios: Tensor, good: Tensor, baseline: Tensor) -> Tensor:
        """Return the loss of each answer, (B,)."""
        c = self.stage_config
        return kto(ratios, good, baseline, c.beta, c.good, c.bad)

    def optimize(self, batch: Batch, total: Tensor) -> Tensor:
        policy = cast(GPT, self.network)
        with torch.no_grad(), self.autocast():
            ratios = [self.log_ratios(policy, part, 1).sum() for part in self.micro_batches(batch)]
        self.baseline = (self.all_reduced(torch.stack(ratios).sum()) / total).clamp(min=0)
        return super().optimize(batch, total)

    def loss_sum(self, batch: Batch) -> Tensor:
        return self.losses(self.log_ratios(cast(GPT, self.network), batch, 0), batch["good"], self.baseline).sum()

    def loss_count(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["tokens"]), device=self.device)

    def evaluation_sums(self, batch: Batch) -> Tensor:
        good = batch["good"].double()
        policy = cast(GPT, self.evaluated)
        ratios, others = (self.log_ratios(policy, batch, side).double() for side in (0, 1))
        baseline = others.mean().clamp(min=0)
        right = (1 + (ratios - baseline).sign() * (2 * good - 1)).sum() / 2  # a ratio on the line is right half of it
        losses = self.losses(ratios, good, baseline).sum()
        sums = [losses, right, (ratios * good).sum(), (ratios * (1 - good)).sum(), others.sum(), good.sum()]
        return torch.stack([*sums, good.new_tensor(len(good))])

    def evaluation_metrics(self, sums: Tensor) -> dict[str, float]:
        loss, right, of_good, of_bad, others, good, count = sums.tolist()
        shares = (loss / count, right / count, of_good / max(good, 1), of_bad / max(count - good, 1), others / count)
        return dict(zip(self.metrics, shares, strict=True))
