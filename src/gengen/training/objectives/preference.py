"""Direct preference optimisation: the policy itself is the reward model."""

from typing import cast

import torch
from torch import Tensor

from gengen.alignment.losses import PREFERENCE_LOSSES, orpo, simpo
from gengen.config.stage import DPOConfig
from gengen.config.train import TrainConfig
from gengen.data.dialogue.prepare import PreparedExamples
from gengen.models.completions import answer_log_probs
from gengen.models.gpt import GPT
from gengen.training.objective import Batch
from gengen.training.objectives.language import LanguageObjective, reference
from gengen.training.objectives.side_network import Companion


class DirectPreference(LanguageObjective):
    """DPO (Rafailov et al. 2023) and its kin, by stage.loss, on log-probabilities of whole answers: sums over their
    tokens, or means (stage.reduction).

    A batch is {"tokens" (B, 2, T), "mask" (B, 2, T - 1)}, the preferred answer first. val/chosen and val/rejected are
    log pi - log ref of each, or log pi where there is no reference: DPO is known to lower both.
    """

    metrics = ("val/loss", "val/accuracy", "val/chosen", "val/rejected")
    n_eval_sums = 5
    unit = "pairs"

    def __init__(self, config: TrainConfig, model: GPT, prepared: PreparedExamples):
        super().__init__(config, model, prepared)
        assert isinstance(config.stage, DPOConfig)
        self.stage_config = config.stage
        self.reference: Companion[GPT] | None = None
        if config.stage.needs_reference:
            self.reference = Companion(reference(config, model) if prepared else model)
            self.companions = (self.reference.network,)

    def log_ratios(self, policy: GPT, batch: Batch) -> Tensor:
        """Return log pi - log ref of both answers to each prompt, (B, 2), in one forward pass of each network; without
        a reference log pi itself."""
        tokens, mask = batch["tokens"].flatten(0, 1), batch["mask"].flatten(0, 1)  # (2B, T), (2B, T - 1)
        log_probs = answer_log_probs(policy, tokens, mask)
        if self.reference is not None:
            with torch.no_grad():
                ref_log_probs = answer_log_probs(self.reference.network, tokens, mask)
            log_probs = log_probs - ref_log_probs
        ratios = log_probs.sum(1)
        return (ratios / mask.sum(1) if self.stage_config.takes_mean else ratios).view(-1, 2)

    def losses(self, ratios: Tensor) -> Tensor:
        """Return the loss of each pair, (B,), for its log ratios (B, 2)."""
        c, (chosen, rejected) = self.stage_config, ratios.unbind(1)
        if c.loss == "simpo":
            return simpo(chosen, rejected, c.beta, c.margin)
        if c.loss == "orpo":
            return orpo(chosen, rejected, c.beta)
        return PREFERENCE_LOSSES[c.loss](chosen - rejected, c.beta, c.smoothing)

    def loss_sum(self, batch: Batch) -> Tensor:
        return self.losses(self.log_ratios(cast(GPT, self.network), batch)).sum()

    def loss_count(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["tokens"]), device=self.device)

    def evaluation_sums(self, batch: Batch) -> Tensor:
        ratios = self.log_ratios(cast(GPT, self.evaluated), batch).double()
        right = (1 + (ratios[:, 0] - ratios[:, 1]).sign()).sum() / 2  # equal ratios are right half of the time
        return torch.stack([self.losses(ratios).sum(), right, *ratios.sum(0), right.new_tensor(len(ratios))])

    def evaluation_metrics(self, sums: Tensor) -> dict[str, float]:
        *totals, pairs = sums.tolist()
        return {name: total / pairs for name, total in zip(self.metrics, totals, strict=True)}
