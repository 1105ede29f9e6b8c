"""Reward models: score the preferred answer above the other."""

import numpy as np
import torch
from torch import Tensor

from gengen.alignment.losses import bradley_terry
from gengen.config.stage import RewardConfig
from gengen.config.train import TrainConfig
from gengen.data.dialogue.prepare import PreparedExamples
from gengen.models.reward import RewardModel
from gengen.training.objective import Batch
from gengen.training.objectives.language import LanguageObjective

BINS = 10  # of the calibration curve, between probabilities .5 and 1
REFERENCE = 512  # training pairs whose answers' scores get mean 0 and variance 1


class RewardModeling(LanguageObjective):
    """Bradley-Terry: the preferred answer wins with probability sigma(difference of outputs) (Christiano et al. 2017).

    A batch is {"tokens" (B, 2, T), "mask" (B, 2, T - 1), "margin" (B,)}, the preferred answer first. val/ece is the
    expected calibration error: how far the probabilities of the likelier answers are from the share of them that were
    preferred.
    """

    metrics = ("val/loss", "val/accuracy", "val/ece")
    sums = 3 + 3 * BINS
    unit = "pairs"
    model: RewardModel
    prepared: PreparedExamples

    def __init__(self, config: TrainConfig, model: RewardModel, prepared: PreparedExamples):
        super().__init__(config, model, prepared)
        assert isinstance(config.stage, RewardConfig)
        self.c = config.stage

    def outputs(self, network: torch.nn.Module, batch: Batch) -> Tensor:
        """Of both answers to each prompt, (B, 2), in one forward pass."""
        assert isinstance(network, RewardModel)
        return network.raw_scores(batch["tokens"].flatten(0, 1), batch["mask"].flatten(0, 1)).view(-1, 2)

    def loss_sum(self, batch: Batch) -> Tensor:
        chosen, rejected = self.outputs(self.network, batch).unbind(1)
        return bradley_terry(chosen, rejected, batch["margin"], self.c.centring).sum()

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["tokens"]), device=self.device)

    def before_save(self) -> None:
        """Set the scale of scores, of the weights that are used. Training never reads it, so stops leave no trace."""
        with self.averaged():
            outputs = self.reference_outputs()
        self.model.normalize(outputs)
        if self.ema is not None:
            self.ema |= {name: getattr(self.model, name).clone() for name in ("gain", "bias")}

    @torch.no_grad()
    def reference_outputs(self) -> Tensor:
        """Of the answers to the first training prompts, which the reference drew."""
        rows, size = np.arange(min(REFERENCE, len(self.prepared.train))), self.config.data.batch_size
        batches = (self.prepared.train.batch(rows[start : start + size]) for start in range(0, len(rows), size))
        parts = (part for batch in batches for part in self.micro_batches(batch))
        with self.autocast():
            return torch.cat(
                [self.outputs(self.model, {n: t.to(self.device) for n, t in part.items()}).flatten() for part in parts]
            )

    def evaluation_sums(self, batch: Batch) -> Tensor:
        """Loss, right answers, pairs; and for each bin of the likelier answer's probability pairs, probabilities and
        right ones.
        """
        chosen, rejected = self.outputs(self.model, batch).double().unbind(1)
        gap = chosen - rejected
        sure, right = gap.abs().sigmoid(), (1 + gap.sign()) / 2  # who cannot say is right half of the time
        bins = ((sure - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
        curve = torch.stack(
            [torch.zeros(BINS).to(gap).index_add(0, bins, x) for x in (torch.ones_like(gap), sure, right)]
        )
        loss = bradley_terry(chosen, rejected, batch["margin"], 0.0)
        return torch.cat([torch.stack([loss.sum(), right.sum(), torch.ones_like(gap).sum()]), curve.flatten()])

    def evaluation_metrics(self, sums: Tensor) -> dict[str, float]:
        loss, right, pairs = sums[:3].tolist()
        _, sure, were_right = sums[3:].view(3, BINS)
        return {
            "val/loss": loss / pairs,
            "val/accuracy": right / pairs,
            "val/ece": float((sure - were_right).abs().sum()) / pairs,
        }

    def write_samples(self, stem: object, interrupted: object) -> None:
        """It draws nothing."""
