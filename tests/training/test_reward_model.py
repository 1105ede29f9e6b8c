"""Reward models: what they learn from preferences whose truth is known, how sure they are of it, and their scale."""

import copy
import math

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from test_preference import CUTS, SHAPE, TOKENIZER, composed, gradients, lively, pairs, prepared, same_gradients
from torch import Tensor

from gengen.config.model import GPTConfig
from gengen.evaluation.preference import spearman
from gengen.generation.text.rewards import Answer, Scorer
from gengen.models.reward import RewardModel
from gengen.training.build import build_datamodule, build_trainer
from gengen.training.objective import Batch
from gengen.training.objectives.reward import RewardModeling


def rating(*settings: str, **shape: int) -> RewardModeling:
    config = copy.deepcopy(composed("stage=reward", *settings))
    model = lively(RewardModel(GPTConfig(**SHAPE | shape)))  # type: ignore[arg-type]
    return RewardModeling(config, model, prepared(config, pairs()))


# --- before it has learnt anything


def test_a_head_of_zero_knows_nothing() -> None:
    """ln 2, right half of the time, and sure of no more than that."""
    objective = rating()
    torch.nn.init.zeros_(objective.model.value.weight)
    torch.nn.init.zeros_(objective.model.value.bias)
    batch = objective.prepared.train.batch(np.arange(12)) | {"margin": torch.zeros(12)}
    assert objective.loss_sum(batch).item() / 12 == pytest.approx(math.log(2), abs=1e-6)
    metrics = objective.evaluate([batch])
    assert metrics == pytest.approx({"val/loss": math.log(2), "val/accuracy": 0.5, "val/ece": 0}, abs=1e-6)


def test_the_loss_by_hand() -> None:
    """-log sigma(gap - margin) + centring (sum)^2 of outputs at the last tokens; a constant moves but the second."""
    objective = rating("stage.centring=0.03")
    batch = objective.prepared.train.batch(np.arange(12))
    with torch.no_grad():
        outputs = torch.tensor(
            [
                [objective.model(torch.from_numpy(t[None]).long())[0, -1].item() for t, _ in e]
                for e in examples(objective)
            ]
        )
        gap, total = outputs[:, 0] - outputs[:, 1], outputs.sum(1)
        by_hand = torch.log1p((batch["margin"] - gap).exp()) + 0.03 * total**2
        assert objective.loss_sum(batch).item() == pytest.approx(by_hand.sum().item(), abs=1e-4)
        objective.model.value.bias += 2
        by_hand = by_hand - 0.03 * total**2 + 0.03 * (total + 4) ** 2
        assert objective.loss_sum(batch).item() == pytest.approx(by_hand.sum().item(), abs=1e-4)


def examples(objective: RewardModeling) -> list[list[np.ndarray]]:
    return objective.prepared.train.examples


def test_calibration_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pairs at probability .7, of which two are right, and one at .9, which is wrong: |2 - 2.1| / 4 + |0 - .9| /
    4. The batches do not matter."""
    objective = rating()
    gaps = torch.tensor([math.log(7 / 3), -math.log(7 / 3), math.log(7 / 3), -math.log(9)])
    monkeypatch.setattr(
        RewardModeling,
        "outputs",
        lambda self, network, batch: torch.stack([batch["gap"], torch.zeros_like(batch["gap"])], 1),
    )
    for cut in ([4], [1, 3], [2, 1, 1]):
        metrics = objective.evaluate([{"gap": part, "margin": torch.zeros(len(part))} for part in gaps.split(cut)])
        assert metrics is not None
        assert metrics["val/ece"] == pytest.approx(0.25 * (0.1 + 0.9)) and metrics["val/accuracy"] == 0.5
        assert metrics["val/loss"] == pytest.approx(-(2 * math.log(0.7) + math.log(0.3) + math.log(0.1)) / 4)


def test_micro_batches_of_pairs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    same_gradients(
        *(gradients(monkeypatch, objective, objective.prepared) for objective in (rating(*cut) for cut in CUTS))
    )


@pytest.mark.parametrize("ema", [[], ["optim.ema=0.9"]], ids=["", "averaged"])
def test_a_save_sets_the_scale(ema: list[str]) -> None:
    """Of the weights that are used, which may be an average; nothing that is trained changes by it."""

    def trained(saves: list[int]) -> RewardModeling:
        objective = rating("optim.lr=1e-2", "data.micro_batch_size=4", *ema)

        class Saving(L.Callback):
            def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
                if trainer.global_step in saves:
                    objective.before_save()

        data = build_datamodule(objective.config, objective.prepared)
        build_trainer(objective.config, Saving(), 4).fit(objective, datamodule=data)
        return objective

    objective, again = trained([4]), trained([1, 3, 4])
    assert objective.model.gain != 1
    torch.testing.assert_close(objective.state_dict(), again.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(objective.ema, again.ema, rtol=0, atol=0)
    with objective.ema_weights():
        scorer = Scorer(objective.model, TOKENIZER)
        sides = [pair.astype(int) for example in examples(objective) for pair in example]
        scores = scorer(
            [Answer(tokens[mask == 0].tolist(), tokens[mask == 1].tolist(), False) for tokens, mask in sides]
        )
    assert scores.mean().item() == pytest.approx(0, abs=1e-5) and scores.std(correction=0).item() == pytest.approx(
        1, abs=1e-5
    )


def test_the_scale_is_found_in_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more rows at once than a step takes; of any cut, the same outputs."""
    rows, of = list[int](), RewardModel.raw_scores

    def counted(self: RewardModel, tokens: Tensor, mask: Tensor) -> Tensor:
        rows.append(len(tokens))
        return of(self, tokens, mask)

    monkeypatch.setattr(RewardModel, "raw_scores", counted)
    whole, cut = rating().reference_outputs(), rating("data.micro_batch_size=4").reference_outputs()
    assert rows == [16, 8, 8, 8, 8]  # both answers to 8 and 4 pairs, and to 4, 4 and 4
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=0)


# --- what it learns


def known(count: int, worth: Tensor, draw: torch.Generator) -> tuple[Batch, Tensor]:
    """Pairs of answers of four to eight letters, labelled by Bradley-Terry, and by how much the first is the better
    one: r* is the sum of what its letters are worth, and the gap's standard deviation is 2."""
    lengths = torch.randint(4, 9, (count, 2, 1), generator=draw)
    there = torch.arange(8) < lengths
    letters = torch.randint(len(worth), (count, 2, 8), generator=draw)
    truth = (worth[letters] * there).sum(-1)
    gap = truth[:, 0] - truth[:, 1]
    swap = torch.rand(count, generator=draw) > gap.sigmoid()
    tokens = torch.cat([torch.zeros(count, 2, 1, dtype=torch.long), (letters + 1) * there], -1)
    tokens, gap = torch.where(swap[:, None, None], tokens.flip(1), tokens), torch.where(swap, -gap, gap)
    return {"tokens": tokens, "mask": (tokens[..., 1:] > 0).float(), "margin": torch.zeros(count)}, gap


@pytest.mark.slow
def test_it_learns_what_can_be_known() -> None:
    """At a standard deviation of 2 the truth itself is right .778 of the time, at a loss of .462: so nearly is what is
    learnt, it says how sure it may be, and puts answers in the order of their worth. (The default centring makes it
    3/4 as sure: ECE .04 for .01.)"""
    draw = torch.Generator().manual_seed(0)
    worth = torch.randn(12, generator=draw)
    worth -= worth.mean()
    worth *= 2 / known(50_000, worth, draw)[1].square().mean().sqrt()
    held_out, gap = known(4000, worth, draw)
    truth = (gap > 0).double().mean().item(), -gap.double().sigmoid().log().mean().item()
    assert truth == pytest.approx((0.778, 0.462), abs=0.02)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RewardModel(GPTConfig(**SHAPE | {"layers": 1}))  # type: ignore[arg-type]
    objective = RewardModeling(composed("stage=reward", "stage.centring=0"), model, None)
    optimizer, steps = torch.optim.Adam(model.parameters(), eps=1e-5), 400
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        batch, _ = known(128, worth, draw)
        (objective.loss_sum(batch) / objective.loss_count(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    metrics = objective.evaluate([held_out])
    assert metrics is not None
    assert (
        metrics["val/accuracy"] >= truth[0] - 0.03
        and metrics["val/loss"] <= truth[1] + 0.03
        and metrics["val/ece"] <= 0.05
    )
    with torch.no_grad():
        found = objective.outputs(model, held_out)
    assert spearman((found[:, 0] - found[:, 1]).numpy(), gap.numpy()) >= 0.9
