"""Reward models: learn to score the preferred answer above the other."""

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
    n_eval_sums = 3 + 3 * BINS
    unit = "pairs"
    model: RewardModel
    prepared: PreparedExamples

    def __init__(self, config: TrainConfig, model: RewardModel, prepared: PreparedExamples):
        super().__init__(config, model, prepared)
        assert isinstance(config.stage, RewardConfig)
        self.stage_config = config.stage

    def outputs(self, network: torch.nn.Module, batch: Batch) -> Tensor:
        """Return the outputs for both answers to each prompt, (B, 2), in one forward pass."""
        assert isinstance(network, RewardModel)
        return network.raw_scores(batch["tokens"].flatten(0, 1), batch["mask"].flatten(0, 1)).view(-1, 2)

    def loss_sum(self, batch: Batch) -> Tensor:
        chosen, rejected = self.outputs(self.network, batch).unbind(1)
        return bradley_terry(chosen, rejected, batch["margin"], self.stage_config.centring).sum()

    def loss_count(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["tokens"]), device=self.device)

    def before_save(self) -> None:
        """Set the scale of scores for the weights that are used. Training never reads it, so stops leave no trace."""
        with self.ema_weights():
            outputs = self.reference_outputs()
        self.model.normalize(outputs)
        if self.ema is not None:
            self.ema |= {name: getattr(self.model, name).clone() for name in ("gain", "bias")}

    @torch.no_grad()
    def reference_outputs(self) -> Tensor:
        """Return the outputs for the answers of the first training pairs, (N,)."""
        rows, size = np.arange(min(REFERENCE, len(self.prepared.train))), self.config.data.batch_size
        outputs = []
        for start in range(0, len(rows), size):
            batch = self.prepared.train.batch(rows[start : start + size])
            for part in self.micro_batches({name: tensor.to(self.device) for name, tensor in batch.items()}):
                with self.autocast():
                    outputs.append(self.outputs(self.model, part).flatten())
        return torch.cat(outputs)

    def evaluation_sums(self, batch: Batch) -> Tensor:
        """Return the sums of losses, of right answers and of pairs; then, for each bin of the likelier answer's
        probability, the sums of pairs, of probabilities and of right answers."""
        chosen, rejected = self.outputs(self.model, batch).double().unbind(1)
        gap = chosen - rejected
        confidence, right = gap.abs().sigmoid(), (1 + gap.sign()) / 2  # equal scores are right half of the time
        pairs, bins = torch.ones_like(gap), ((confidence - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
        curve = [torch.zeros(BINS).to(gap).index_add(0, bins, x) for x in (pairs, confidence, right)]
        loss = bradley_terry(chosen, rejected, batch["margin"], 0.0)
        return torch.cat([torch.stack([loss.sum(), right.sum(), pairs.sum()]), *curve])

    def evaluation_metrics(self, sums: Tensor) -> dict[str, float]:
        loss, right, pairs = sums[:3].tolist()
        _, confidence, bin_right = sums[3:].view(3, BINS)
        ece = float((confidence - bin_right).abs().sum()) / pairs
        return {"val/loss": loss / pairs, "val/accuracy": right / pairs, "val/ece": ece}

    def write_samples(self, stem: object, interrupted: object) -> None:
        """Write nothing: a reward model draws no samples."""
