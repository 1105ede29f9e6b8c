"""Direct preference optimisation: the policy itself is the reward model."""

from typing import Any

import torch
from torch import Tensor

from gengen.alignment.losses import PREFERENCE_LOSSES
from gengen.config.stage import DPOConfig
from gengen.config.train import TrainConfig
from gengen.data.dialogue.prepare import PreparedExamples
from gengen.models.completions import answer_log_probs
from gengen.models.gpt import GPT
from gengen.training.objective import Batch
from gengen.training.objectives.language import LanguageObjective, reference


class DirectPreference(LanguageObjective):
    """DPO (Rafailov et al. 2023) and its kin, by stage.loss, on log-probabilities of whole answers: sums over their
    tokens, or means (stage.reduction).

    A batch is {"tokens" (B, 2, T), "mask" (B, 2, T - 1)}, the preferred answer first. val/chosen and val/rejected are
    log pi - log ref of either: DPO is known to lower both.
    """

    metrics = ("val/loss", "val/accuracy", "val/chosen", "val/rejected")
    sums = 5
    unit = "pairs"

    def __init__(self, config: TrainConfig, model: GPT, prepared: PreparedExamples):
        super().__init__(config, model, prepared)
        assert isinstance(config.stage, DPOConfig)
        self.c = config.stage
        self.companions = self._reference = (reference(config) if prepared else model,)

    def log_ratios(self, network: Any, batch: Batch) -> Tensor:
        """log pi - log ref of both answers to each prompt, (B, 2), in one forward pass of each."""
        tokens, mask = batch["tokens"].flatten(0, 1), batch["mask"].flatten(0, 1)
        with torch.no_grad():
            before = answer_log_probs(self._reference[0], tokens, mask)
        ratios = (answer_log_probs(network, tokens, mask) - before).sum(1)
        return (ratios / mask.sum(1) if self.c.of_a_token else ratios).view(-1, 2)

    def losses(self, ratios: Tensor) -> Tensor:
        """Of each pair, (B,)."""
        return PREFERENCE_LOSSES[self.c.loss](ratios[:, 0] - ratios[:, 1], self.c.beta, self.c.smoothing)

    def loss_sum(self, batch: Batch) -> Tensor:
        return self.losses(self.log_ratios(self.network, batch)).sum()

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["tokens"]), device=self.device)

    def evaluation_sums(self, batch: Batch) -> Tensor:
        ratios = self.log_ratios(self.model, batch).double()
        right = (1 + (ratios[:, 0] - ratios[:, 1]).sign()).sum() / 2  # who cannot say is right half of the time
        return torch.stack([self.losses(ratios).sum(), right, *ratios.sum(0), right.new_tensor(len(ratios))])

    def evaluation_metrics(self, sums: Tensor) -> dict[str, float]:
        *totals, pairs = sums.tolist()
        return {name: total / pairs for name, total in zip(self.metrics, totals, strict=True)}
