"""What is learnt from conversations (SFT), preferences (DPO) and ratings (KTO): of what, and of nothing else."""

import copy
import math
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch import Tensor

from gengen.alignment.losses import PREFERENCE_LOSSES, kto, orpo, simpo
from gengen.checkpoints.layout import Checkpoint, unique_state, write
from gengen.config.compose import compose_train, read_command_line
from gengen.config.model import GPTConfig
from gengen.config.resume import stored
from gengen.config.schema import build
from gengen.config.train import TrainConfig
from gengen.data.dialogue.packing import Conversations, Preferences, Prompts, Ratings
from gengen.data.dialogue.prepare import PreparedExamples
from gengen.data.text.tokenizer import TextTokenizer
from gengen.models.completions import answer_log_probs
from gengen.models.gpt import GPT
from gengen.training.build import build_datamodule, build_trainer
from gengen.training.objective import Batch, Objective
from gengen.training.objectives import preference
from gengen.training.objectives.kto import RatedAnswers
from gengen.training.objectives.language import FineTuning
from gengen.training.objectives.preference import DirectPreference

TOKENIZER = TextTokenizer.byte().with_chat()
CONTEXT = 48
SHAPE = {
    "layers": 2,
    "width": 32,
    "heads": 2,
    "kv_heads": 1,
    "ff": 48,
    "context": CONTEXT,
    "vocab_size": TOKENIZER.vocab_size,
}
CUTS: list[list[str]] = [[], ["data.micro_batch_size=4"], ["data.micro_batch_size=1"]]


@cache
def composed(*settings: str) -> TrainConfig:
    shape = [f"model.{key}={value}" for key, value in SHAPE.items()]
    alone = ["init_from=runs/SFT", "optim.warmup_ratio=0", "optim.schedule=constant", "run=r", "data.batch_size=8"]
    return compose_train(
        read_command_line(
            [*shape, *alone, "trainer.device=cpu", "trainer.precision=fp32", "trainer.threads=1", *settings]
        )
    )


def lively(model: Any, document_token: int | None = None) -> Any:
    """The model with weights as they might be after training."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(
                torch.randn(p.shape, generator=draw) * (0.2 if p.dim() < 2 else p.shape[-1] ** -0.5) + (p.dim() < 2)
            )
    return model.train()


def pairs(n: int = 12) -> Preferences:
    """Preferences with answers of one to eleven letters."""
    draw = np.random.default_rng(0)
    answers = [["".join(draw.choice(list("abcd"), size=draw.integers(0, 11))) for _ in range(2)] for _ in range(n)]
    asked = [[{"role": "user", "content": "why " * (i % 3)}] for i in range(n)]
    rows = [
        {
            "prompt": asked[i],
            "chosen": answers[i][0],
            "rejected": answers[i][1],
            "chosen_ended": True,
            "rejected_ended": i % 2 == 0,
        }
        for i in range(n)
    ]
    rows = [row if row["rejected"] else row | {"rejected": "d"} for row in rows]
    return Preferences([row | {"margin": 0.1 * i, "origin": ""} for i, row in enumerate(rows)], TOKENIZER, CONTEXT, "")


def prepared(config: TrainConfig, part: Prompts) -> PreparedExamples:
    return PreparedExamples(config.data, TOKENIZER, {"fingerprint": ""}, part, part)  # type: ignore[arg-type]


def gradients(monkeypatch: pytest.MonkeyPatch, objective: Objective, prepared: Any) -> dict[str, Tensor]:
    """The model's in the first step."""
    found, update = dict[str, Tensor](), Objective.apply_gradients

    def recorded(self: Objective, network: Any, optimizer: Any, loss: Tensor) -> Any:
        found.update({name: p.grad.clone() for name, p in network.named_parameters()})
        return update(self, network, optimizer, loss)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "apply_gradients", recorded)
        build_trainer(objective.config, L.Callback(), 1).fit(
            objective, datamodule=build_datamodule(objective.config, prepared)
        )
    return found


def same_gradients(whole: dict[str, Tensor], *cut: dict[str, Tensor]) -> None:
    assert max(gradient.abs().max().item() for gradient in whole.values()) > 1e-3
    for part in cut:
        torch.testing.assert_close(part, whole, rtol=0, atol=2e-6)


# --- conversations


def talk(*texts: str) -> dict[str, Any]:
    return {
        "messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)],
        "origin": "",
    }


TALKS = [talk("hi", "hello"), talk("a?", "b", "c?", "de"), talk("how?", "so")]


@pytest.fixture(scope="module")
def tuning() -> FineTuning:
    config = composed("stage=sft")
    model = lively(GPT(GPTConfig(**SHAPE, document_token=TOKENIZER.start)))  # type: ignore[arg-type]
    return FineTuning(config, model, None)


def packed(*records: dict[str, Any]) -> Batch:
    part = Conversations(list(records), TOKENIZER, CONTEXT, "assistant")
    return part.batch(np.arange(len(part)))


def test_a_packed_row_is_worth_what_its_conversations_are(tuning: FineTuning) -> None:
    together, alone = packed(*TALKS), [packed(record) for record in TALKS]
    assert len(together["tokens"]) == 1
    nats = [tuning.loss_sum(batch).item() for batch in alone]
    counts = [tuning.loss_count(batch).item() for batch in alone]
    # every letter the assistant says and the end of what it says
    assert counts == [6, 5, 3] and tuning.loss_count(together) == 14
    assert tuning.loss_sum(together).item() / 14 == pytest.approx(sum(nats) / 14, abs=1e-5)
    metrics = tuning.evaluate([together])
    assert metrics is not None and metrics["val/loss"] == pytest.approx(sum(nats) / 14, abs=1e-5)


def test_a_conversation_does_not_see_the_one_before_it(tuning: FineTuning) -> None:
    """Another text in the first leaves the logits of the others as they were, to the bit; without isolation it would
    not.
    """
    tokens = packed(*TALKS)["tokens"]
    begins = (tokens[0] == TOKENIZER.start).nonzero()[1, 0].item()
    other = tokens.clone()
    other[0, 2 : int(begins) - 2] += 1
    with torch.no_grad():
        assert torch.equal(tuning.model(tokens)[:, begins:], tuning.model(other)[:, begins:])
        joined = copy.deepcopy(tuning.model)
        joined.config.document_token = None
        assert not torch.equal(joined(tokens)[:, begins:], joined(other)[:, begins:])


def test_nothing_is_learnt_from_what_the_user_says(tuning: FineTuning, monkeypatch: pytest.MonkeyPatch) -> None:
    """No gradient where the next token is the user's, a role or padding; and some at every other place."""
    batch = packed(*TALKS)
    with torch.no_grad():
        features = tuning.model.features(batch["tokens"])
    features.requires_grad_()
    monkeypatch.setattr(tuning.model, "features", lambda *_: features)
    tuning.loss_sum(batch).backward()
    assert features.grad is not None
    learnt = features.grad.abs().amax(-1) > 0
    assert torch.equal(learnt, batch["labels"] >= 0) and learnt.sum() == 14


def test_micro_batches_of_conversations_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with few and with many trained tokens."""
    part = Conversations(
        [talk("?" * (3 * i % 20), "ab" * (7 * i % 10) + "c") for i in range(40)], TOKENIZER, CONTEXT, "assistant"
    )
    model = lively(GPT(GPTConfig(**SHAPE, document_token=TOKENIZER.start)))  # type: ignore[arg-type]
    found = []
    for cut in CUTS:
        config = composed("stage=sft", *cut)
        objective = FineTuning(config, copy.deepcopy(model), prepared(config, part))
        found.append(gradients(monkeypatch, objective, objective.prepared))
    same_gradients(*found)


# --- preferences


def beside_reference(folder: Path, *settings: str) -> tuple[TrainConfig, GPT]:
    """The config of a run in folder/r, and its policy; the reference, which lies there, is the policy as it is."""
    config = copy.deepcopy(composed(*settings))
    config.runs_dir = str(folder)
    model = lively(GPT(GPTConfig(**SHAPE)))  # type: ignore[arg-type]
    if not (reference := folder / "r" / "reference").exists():
        reference.mkdir(parents=True)
        write(reference, Checkpoint(0, stored(config), unique_state(model), tokenizer=TOKENIZER.to_json()))
    return config, model


def preferring(folder: Path, *settings: str) -> DirectPreference:
    config, model = beside_reference(folder, "stage=dpo", *settings)
    return DirectPreference(config, model, prepared(config, pairs()))


def moved(model: GPT) -> None:
    """Away from the reference."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn(p.shape, generator=draw) * 0.1 * p.std()


@pytest.mark.parametrize("loss,at_first", [("dpo", math.log(2)), ("cdpo", math.log(2)), ("ipo", 25.0)])
def test_a_policy_that_is_its_reference(tmp_path: Path, loss: str, at_first: float) -> None:
    """It knows no better than chance; the reference learns nothing and the first step makes the preferred answers
    likelier.
    """
    objective = preferring(tmp_path, f"stage.loss={loss}", "optim.lr=1e-3")
    everything = objective.prepared.train.batch(np.arange(12))
    metrics = objective.evaluate([everything])
    assert metrics == pytest.approx(
        {"val/loss": at_first, "val/accuracy": 0.5, "val/chosen": 0, "val/rejected": 0}, abs=1e-5
    )
    reference = [p.clone() for p in objective.reference.network.parameters()]
    data = build_datamodule(objective.config, objective.prepared)
    build_trainer(objective.config, L.Callback(), 12).fit(objective, datamodule=data)
    for p, before in zip(objective.reference.network.parameters(), reference, strict=True):
        assert p.grad is None and torch.equal(p, before)
    metrics = objective.evaluate([everything])
    assert metrics is not None and metrics["val/loss"] < at_first and metrics["val/accuracy"] > 0.9
    assert metrics["val/chosen"] > metrics["val/rejected"]


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_some_losses_need_no_reference(tmp_path: Path, loss: str) -> None:
    """They compare the mean log-probability of an answer's tokens, and one network is all there is."""
    objective = preferring(tmp_path, f"stage.loss={loss}", "stage.beta=2", "optim.lr=1e-3")
    assert objective.reference is None and not objective.companions
    everything = objective.prepared.train.batch(np.arange(12))
    tokens, mask = everything["tokens"].flatten(0, 1), everything["mask"].flatten(0, 1)
    with torch.no_grad():
        means = (answer_log_probs(objective.model, tokens, mask).sum(1) / mask.sum(1)).view(-1, 2)
    chosen, rejected = means.double().unbind(1)
    expected = simpo(chosen, rejected, 2.0, 0.5) if loss == "simpo" else orpo(chosen, rejected, 2.0)
    first = objective.evaluate([everything])
    assert first is not None and first["val/loss"] == pytest.approx(expected.mean().item(), abs=1e-5)
    assert first["val/chosen"] == pytest.approx(chosen.mean().item(), abs=1e-5)
    data = build_datamodule(objective.config, objective.prepared)
    build_trainer(objective.config, L.Callback(), 12).fit(objective, datamodule=data)
    last = objective.evaluate([everything])
    assert last is not None and last["val/loss"] < first["val/loss"] and last["val/accuracy"] > 0.9


def ratios_by_hand(objective: DirectPreference | RatedAnswers) -> Tensor:
    """Of each example's two sequences, (B, 2): log pi - log ref of the answer, each read on its own, in fp64."""
    examples = objective.prepared.train.examples
    ratios = torch.zeros(len(examples), 2, dtype=torch.float64)
    for row, example in enumerate(examples):
        for side, (tokens, mask) in enumerate(example):
            for sign, model in ((1, objective.model), (-1, objective.reference.network)):
                with torch.no_grad():
                    p = model(torch.from_numpy(tokens[None]).long())[0].double().log_softmax(-1)
                ratios[row, side] += sign * sum(p[i - 1, tokens[i]] for i in range(len(tokens)) if mask[i])
    return ratios


def test_what_is_compared_by_hand(tmp_path: Path) -> None:
    """Sums over the answers alone, each conversation read on its own, in fp64."""
    objective = preferring(tmp_path, "stage.loss=cdpo", "stage.beta=0.3", "stage.smoothing=0.2")
    moved(objective.model)
    part = objective.prepared.train
    ratios = ratios_by_hand(objective)
    batch = part.batch(np.arange(12))
    found = objective.log_ratios(objective.model, batch)
    torch.testing.assert_close(found.double(), ratios, atol=1e-4, rtol=0)
    h = ratios[:, 0] - ratios[:, 1]
    assert h.abs().min() > 1e-3 and 0 < (h > 0).sum() < 12
    losses = PREFERENCE_LOSSES["cdpo"](h, 0.3, 0.2)
    assert objective.loss_sum(batch).item() == pytest.approx(losses.sum().item(), abs=1e-3)
    expected = [losses.mean(), (h > 0).double().mean(), *ratios.mean(0)]
    assert list((objective.evaluate([batch]) or {}).values()) == pytest.approx([x.item() for x in expected], abs=1e-4)


H = (0.2 - 0.3 + 0.4) - (-0.1 + 0.7)  # -.3: sums over answers of 3 and 2 tokens
PER_TOKEN = (0.2 - 0.3 + 0.4) / 3 - (-0.1 + 0.7) / 2  # -.2


@pytest.mark.parametrize("settings,h,golden", [
    (["stage.loss=ipo"], PER_TOKEN, 7.29),  # (-.2 - 5 / 2)^2, which is trl's
    (["stage.loss=ipo", "stage.reduction=sum"], H, 7.84),
    (["stage.loss=dpo"], H, 0.723597),  # log(1 + e^.06)
    (["stage.loss=dpo", "stage.reduction=mean"], PER_TOKEN, 0.713347),
], ids=["ipo", "ipo of sums", "dpo", "dpo of means"])  # fmt: skip
def test_what_an_answers_log_probability_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], h: float, golden: float
) -> None:
    """ipo compares means over an answer's tokens, its end included; dpo compares sums."""
    objective = preferring(tmp_path, *settings, "stage.beta=0.2")
    ratios = torch.tensor([[0, 0.2, -0.3, 0.4], [0, -0.1, 0.7, 0]])
    batch = {"tokens": torch.zeros(1, 2, 5, dtype=torch.long), "mask": (ratios != 0).float()[None]}
    reference = objective.reference.network
    monkeypatch.setattr(preference, "answer_log_probs", lambda model, *_: ratios * (model is not reference))
    found = objective.log_ratios(objective.model, batch)
    assert (found[0, 0] - found[0, 1]).item() == pytest.approx(h, abs=1e-6)
    assert objective.loss_sum(batch).item() == pytest.approx(golden, abs=1e-5)


def test_an_older_run_of_ipo_compares_sums_as_it_did() -> None:
    """Its config has no reduction; that of a new one says auto."""
    new = stored(composed("stage=dpo", "stage.loss=ipo"))
    assert new["stage"].pop("reduction") == "auto" and build(TrainConfig, new).stage.reduction == "sum"


def test_micro_batches_of_pairs_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cut in CUTS:
        objective = preferring(tmp_path, *cut)
        moved(objective.model)
        found.append(gradients(monkeypatch, objective, objective.prepared))
    same_gradients(*found)


def test_padding_and_order_change_no_ratio(tmp_path: Path) -> None:
    objective = preferring(tmp_path)
    moved(objective.model)
    batch = objective.prepared.train.batch(np.arange(12))
    with torch.no_grad():
        whole = objective.log_ratios(objective.model, batch)
        longer = {name: torch.nn.functional.pad(batch[name], (0, 7)) for name in ("tokens", "mask")}
        torch.testing.assert_close(objective.log_ratios(objective.model, longer), whole, atol=1e-5, rtol=0)
        for row in range(12):
            one = objective.log_ratios(objective.model, objective.prepared.train.batch(np.array([row])))
            torch.testing.assert_close(one[0], whole[row], atol=2e-5, rtol=0)


# --- ratings


def rating(folder: Path, *settings: str) -> RatedAnswers:
    """The same pairs as good answers and bad ones."""
    config, model = beside_reference(folder, "stage=kto", *settings)
    found = [
        {"prompt": one["prompt"], "answer": one[side], "ended": True, "good": side == "chosen", "origin": ""}
        for one in pairs().records
        for side in ("chosen", "rejected")
    ]
    return RatedAnswers(config, model, prepared(config, Ratings(found, TOKENIZER, CONTEXT, "")))


def test_good_answers_become_likelier_than_bad_ones(tmp_path: Path) -> None:
    objective = rating(tmp_path, "optim.lr=1e-3")
    everything = objective.prepared.train.batch(np.arange(24))
    metrics = objective.evaluate([everything])
    at_first = {"val/loss": 0.5, "val/accuracy": 0.5, "val/good": 0, "val/bad": 0, "val/kl": 0}
    assert metrics == pytest.approx(at_first, abs=1e-5)
    data = build_datamodule(objective.config, objective.prepared)
    build_trainer(objective.config, L.Callback(), 30).fit(objective, datamodule=data)
    metrics = objective.evaluate([everything])
    assert metrics is not None and metrics["val/loss"] < 0.4 and metrics["val/good"] > 1 > -1 > metrics["val/bad"]


def test_ratings_by_hand(tmp_path: Path) -> None:
    """The baseline is the mean over other prompts' answers, each read on its own, in fp64; 0 where it is below."""
    objective = rating(tmp_path, "stage.beta=0.3", "stage.good=1.5")
    moved(objective.model)
    part = objective.prepared.train
    ratios = ratios_by_hand(objective)
    good, baseline = torch.tensor([1.0, 0.0] * 12), ratios[:, 1].mean().clamp(min=0)
    losses = kto(ratios[:, 0], good, baseline, 0.3, 1.5, 1.0)
    right = ((ratios[:, 0] > baseline) == (good > 0)).double().mean()
    expected = [losses.mean(), right, ratios[::2, 0].mean(), ratios[1::2, 0].mean(), ratios[:, 1].mean()]
    found = objective.evaluate([part.batch(np.arange(24))])
    assert list((found or {}).values()) == pytest.approx([x.item() for x in expected], abs=1e-4)


def test_micro_batches_of_ratings_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline is that of the whole step."""
    found = []
    for cut in CUTS:
        objective = rating(tmp_path, *cut)
        moved(objective.model)
        with torch.no_grad():
            for name, p in objective.model.named_parameters():
                if "embedding" in name:
                    p += 0.3  # so that the baseline is above 0
        found.append(gradients(monkeypatch, objective, objective.prepared))
        assert objective.baseline > 0.01
    same_gradients(*found)
