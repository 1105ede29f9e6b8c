"""PPO and GRPO as whole loops: answers drawn, judged, and trained on, by a policy that first answers with letters
drawn at random.
"""

import copy
import json
import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor

from gengen.alignment.advantages import gae, group_advantages, token_rewards, whiten
from gengen.alignment.kl import k2
from gengen.checkpoints.layout import Checkpoint, unique_state, write
from gengen.config.compose import compose_train, read_command_line
from gengen.config.model import GPTConfig
from gengen.config.resume import stored
from gengen.config.schema import plain
from gengen.config.train import TrainConfig
from gengen.data.dialogue.packing import Prompts
from gengen.data.dialogue.prepare import PreparedExamples
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.rewards import Answer
from gengen.models import completions
from gengen.models.completions import answer_log_probs, right_padded
from gengen.models.gpt import GPT
from gengen.models.reward import RewardModel
from gengen.registry import register_reward
from gengen.training.build import build_datamodule, build_trainer
from gengen.training.objective import Objective
from gengen.training.objectives import online_rl
from gengen.training.objectives.grpo import GRPO as GroupRelative
from gengen.training.objectives.online_rl import OnlineRL
from gengen.training.objectives.ppo import PPO as ProximalPolicy

TOKENIZER = TextTokenizer.byte().with_chat()
CONTEXT, LETTERS = 24, "abcdefgh"
SHAPE = {
    "layers": 1,
    "width": 32,
    "heads": 2,
    "kv_heads": 1,
    "ff": 48,
    "context": CONTEXT,
    "vocab_size": TOKENIZER.vocab_size,
}


@register_reward("share_of_a")
def share_of_a(prompt: str, response: str, ended: bool) -> float:
    return response.count("a") / max(len(response), 1)


@register_reward("how_many_a")
def how_many_a(prompt: str, response: str, ended: bool) -> float:
    return response.count("a") / 10


@register_reward("share_of_a_or_none")
def share_of_a_or_none(prompt: str, response: str, ended: bool) -> float:
    """It cannot say what an answer with a "b" is worth."""
    return math.nan if "b" in response else share_of_a(prompt, response, ended)


@register_reward("never_says")
def never_says(prompt: str, response: str, ended: bool) -> float:
    return math.nan


@register_reward("of_the_prompt")
def of_the_prompt(prompt: str, response: str, ended: bool) -> float:
    """All answers to some prompts are alike; to others they are not."""
    return share_of_a(prompt, response, ended) if prompt.startswith("a") else 1.0


@register_reward("all_alike")
def all_alike(prompt: str, response: str, ended: bool) -> float:
    return 1.0


def prompts(texts: Sequence[str]) -> Prompts:
    records = [{"prompt": [{"role": "user", "content": text}], "origin": text} for text in texts]
    return Prompts(records, TOKENIZER, CONTEXT, "")


@pytest.fixture(scope="module")
def letters() -> GPT:
    """Answers a user with one to nine letters at random, then ends."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, draw = GPT(GPTConfig(**SHAPE)), torch.Generator().manual_seed(0)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        rows = []
        for length in torch.randint(1, 10, (32,), generator=draw).tolist():
            said = [LETTERS[i] for i in torch.randint(8, (length + 2,), generator=draw).tolist()]
            rows.append(
                (prompts([said[0] * (length % 3 + 1)])[0], [*TOKENIZER.encode("".join(said[2:])), TOKENIZER.eot])
            )
        tokens, mask = right_padded(rows)
        loss = -answer_log_probs(model, tokens, mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@cache
def composed(*settings: str) -> TrainConfig:
    shape = [f"model.{key}={value}" for key, value in SHAPE.items()]
    alone = ["init_from=runs/letters", "optim.warmup_ratio=0", "optim.schedule=constant", "run=r"]
    machine = [
        "trainer.device=cpu",
        "trainer.precision=fp32",
        "trainer.threads=1",
        "data.batch_size=16",
        "stage.max_tokens=10",
    ]
    return compose_train(read_command_line([*shape, *machine, *alone, *settings]))


def online(folder: Path, policy: GPT, *settings: str, reward: str = "share_of_a") -> OnlineRL:
    """The objective of a run in folder/r, whose reference is the policy as it is."""
    config = copy.deepcopy(composed(*settings, f"stage.reward={reward}"))
    config.runs_dir = str(folder)
    texts = [letter * n for n in (1, 2, 3) for letter in LETTERS]
    train, val = prompts(texts[:-4]), prompts(texts[-4:])
    prepared = PreparedExamples(config.data, TOKENIZER, {"fingerprint": ""}, train, val)  # type: ignore[arg-type]
    if not (reference := folder / "r" / "reference").exists():
        reference.mkdir(parents=True)
        write(reference, Checkpoint(0, stored(config), unique_state(policy), tokenizer=TOKENIZER.to_json()))
    objective = {"ppo": ProximalPolicy, "grpo": GroupRelative}[config.stage.name]
    return objective(config, copy.deepcopy(policy).train(), prepared)


class Rhythm(L.Callback):
    """What a run does between steps for an objective that draws. logged: what each step logged; buffers: the answers
    it was taken from, with the cursor."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.buffers: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: L.Trainer, objective: Any) -> None:
        assert objective.ready(lambda: False)

    def on_train_batch_start(self, trainer: L.Trainer, objective: Any, batch: Any, index: int) -> None:
        step = {"rows": objective.rows(objective.cursor), "cursor": torch.tensor(objective.cursor)}
        self.buffers.append(objective.rollout.tensors() | step)

    def on_train_batch_end(self, trainer: L.Trainer, objective: Any, outputs: Any, batch: Any, index: int) -> None:
        assert not any(value.requires_grad for value in objective.logged.values())  # they would keep the step's graph
        self.logged.append({name: float(value) for name, value in objective.logged.items()})
        assert objective.global_step == objective.trainer.max_steps or objective.ready(lambda: False)


def fit(objective: OnlineRL, steps: int) -> Rhythm:
    rhythm = Rhythm()
    data = build_datamodule(objective.config, objective.prepared)
    build_trainer(objective.config, rhythm, steps).fit(objective, datamodule=data)
    return rhythm


# --- the first step of an iteration is on policy

PPO = ["stage=ppo", "stage.minibatches=2", "stage.epochs=2"]
GRPO = ["stage=grpo", "stage.group_size=4", "stage.minibatches=2", "stage.beta=0"]


@pytest.mark.parametrize("argv", [PPO, GRPO], ids=["ppo", "grpo"])
@pytest.mark.parametrize("more", [[], ["stage.temperature=0.7", "data.micro_batch_size=4"]], ids=["", "cut"])
def test_the_first_step_of_an_iteration_is_on_policy(
    letters: GPT, tmp_path: Path, argv: list[str], more: list[str]
) -> None:
    """Exactly: ratio 1, no KL, nothing clipped, loss = -mean advantage over its tokens."""
    run = fit(online(tmp_path, letters, *argv, *more), 8)
    firsts = [i for i, buffer in enumerate(run.buffers) if buffer["cursor"] == 0]
    assert len(firsts) == 8 // (4 if argv is PPO else 2)
    for i, (logged, buffer) in enumerate(zip(run.logged, run.buffers, strict=True)):
        if i in firsts:
            assert (logged["ratio_max"], logged["approx_kl"], logged["clip_fraction"]) == (1, 0, 0)
            there = buffer["mask"][buffer["rows"]] > 0
            mean = buffer["advantages"][buffer["rows"]][there].double().mean().item()
            assert logged["loss"] == pytest.approx(-mean, abs=1e-6)
        else:
            assert logged["ratio_max"] > 1 and logged["approx_kl"] > 0


def test_what_is_not_computed_as_it_was_drawn_is_an_error(letters: GPT, tmp_path: Path) -> None:
    """The bug put back: dropout in the policy. Every ratio would be noise."""
    objective = online(tmp_path, letters, *PPO)
    for block in objective.model.blocks:
        block.dropout.p = 0.1  # type: ignore[union-attr, assignment]
    with pytest.raises(UserError, match="the first step sees log-probabilities that are"):
        fit(objective, 1)


@pytest.mark.parametrize("argv", [PPO, GRPO], ids=["ppo", "grpo"])
def test_a_policy_that_learns_nothing_stays_where_it_is(
    letters: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    """Learning rate 0, three iterations, prompts and answers of many lengths: every ratio of every pass is 1, and
    there is no KL (trlx#508)."""
    monkeypatch.setattr("gengen.training.objective.rate", lambda *_: 0.0)
    run = fit(online(tmp_path, letters, *argv, "stage.temperature=0.7"), 12)
    lengths = torch.cat([buffer["mask"].sum(1) for buffer in run.buffers])
    assert len(lengths.unique()) > 5
    for logged in run.logged:
        assert logged["ratio_max"] == pytest.approx(1, abs=1e-6) and logged["approx_kl"] <= 1e-12
        assert logged["kl"] == logged["kl_k3"] == 0 and logged["return"] == logged["score"]


@pytest.mark.parametrize("argv", [
    PPO,
    [*PPO, "stage.kl_in=loss", "stage.kl_estimator=k2", "stage.entropy=0.1", "stage.aggregate=sequence"],
    [*GRPO, "stage.beta=0.1", "stage.aggregate=constant"],
    [*GRPO, "stage.beta=0.1", "stage.kl_estimator=k3", "stage.advantage=rloo"],
], ids=["ppo", "ppo, all in the loss", "grpo, constant", "grpo"])  # fmt: skip
def test_micro_batches_change_nothing(
    letters: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    """The gradients of the second step, off policy, of policy and critic."""
    reward_run(tmp_path, letters)
    whole, *cut = (
        gradients(monkeypatch, online(tmp_path, letters, *argv, *size, reward="runs/RM"), 2)[-2:] for size in CUTS
    )
    assert all(g.abs().max() > 1e-5 for of in whole for g in of.values())
    for part in cut:
        for one, two in zip(whole, part, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=2e-6)


CUTS: list[list[str]] = [[], ["data.micro_batch_size=4"], ["data.micro_batch_size=1"]]


def gradients(monkeypatch: pytest.MonkeyPatch, objective: OnlineRL, steps: int) -> list[dict[str, Tensor]]:
    """Those of every update, by the parameter's name; of what has none, zero."""
    kept, update = list[dict[str, Tensor]](), Objective.apply_gradients

    def recorded(self: Objective, network: Any, optimizer: Any, loss: Tensor) -> Any:
        kept.append(
            {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in network.named_parameters()}
        )
        return update(self, network, optimizer, loss)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "apply_gradients", recorded)
        fit(objective, steps)
    return kept


# --- what is drawn


def test_where_memory_runs_out_fewer_are_drawn_and_judged(
    letters: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than 20 answers at once are too many to draw, than 4 to judge: the same answers, worth the same, and
    smaller micro-batches.
    """
    whole, cut = (online(tmp_path, letters, *PPO) for _ in range(2))
    assert whole.ready(lambda: False)
    generate, evaluate = TextGenerator.generate, online_rl.answer_log_probs

    def drawn(self: TextGenerator, *args: Any, **settings: Any) -> Any:
        if self.batch_size > 20:
            raise torch.OutOfMemoryError
        return generate(self, *args, **settings)

    def evaluated(model: GPT, tokens: Tensor, *args: Any) -> Tensor:
        if len(tokens) > 4:
            raise torch.OutOfMemoryError
        return evaluate(model, tokens, *args)

    monkeypatch.setattr(TextGenerator, "generate", drawn)
    monkeypatch.setattr(online_rl, "answer_log_probs", evaluated)
    assert cut.ready(lambda: False)
    assert (cut.draw_batch_size, cut.micro_batch_size) == (16, 4)
    assert cut.rollout and whole.rollout
    torch.testing.assert_close(cut.rollout.tensors(), whole.rollout.tensors(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("argv", [PPO, GRPO], ids=["ppo", "grpo"])
def test_answers_are_a_function_of_seed_and_iteration(letters: GPT, tmp_path: Path, argv: list[str]) -> None:
    def drawn(iteration: int, seed: int = 0, threads: int = 1) -> list[Answer]:
        objective = online(tmp_path, letters, *argv, f"seed={seed}")
        objective.iteration = iteration
        torch.set_num_threads(threads)
        try:
            answers = objective.collect(lambda: False)
        finally:
            torch.set_num_threads(1)
        assert answers is not None
        return answers

    first = drawn(0)
    assert drawn(0) == drawn(0, threads=2) == first and len(first) == 32
    for others in (drawn(1), drawn(0, seed=1)):
        assert [a.tokens for a in others] != [a.tokens for a in first] and [a.prompt for a in others] != [
            a.prompt for a in first
        ]
    group = 4 if argv is GRPO else 1
    asked = [tuple(answer.prompt) for answer in first]
    assert all(len(set(asked[i : i + group])) == 1 for i in range(0, 32, group))
    assert len(set(asked)) == (8 if argv is GRPO else 20)  # each of the 20 prompts once a pass


@pytest.mark.parametrize("document_token", [None, TOKENIZER.start])
def test_what_is_learnt_from_is_what_was_drawn(letters: GPT, document_token: int | None) -> None:
    """The log-probabilities of decoding with a cache, token by token, are those of a training step, prompts and
    answers of all lengths in one batch."""
    model = copy.deepcopy(letters)
    model.config.document_token = document_token
    asked = prompts([letter * n for n in (1, 5, 3) for letter in LETTERS])
    samples = TextGenerator(model, TOKENIZER).generate(list(asked), max_tokens=10, temperature=1)
    assert len({len(sample.tokens) for sample in samples}) > 5
    tokens, mask = right_padded([(prompt, sample.tokens) for prompt, sample in zip(asked, samples, strict=True)])
    with torch.no_grad():
        found = answer_log_probs(model, tokens, mask)
    for row, there, sample in zip(found, mask > 0, samples, strict=True):
        torch.testing.assert_close(row[there], torch.tensor(sample.logprobs), atol=1e-4, rtol=0)


class Scripted(GPT):
    """Answers any prompt of three tokens with what is written."""

    def __init__(self, script: str):
        super().__init__(GPTConfig(**SHAPE))  # type: ignore[arg-type]
        self.script = torch.tensor([*TOKENIZER.encode(script), TOKENIZER.eot])

    def forward(self, tokens: Tensor, cache: Any = None, labels: Tensor | None = None) -> Tensor:
        place = (cache.lengths - (self.prompt - 1)).clamp(0, len(self.script) - 1)
        return torch.nn.functional.one_hot(self.script[place], self.vocab_size)[:, None] * 1e4

    prompt = 0


@pytest.mark.parametrize(
    "script,ended,score", [("aaaaaaaaa", True, 1), ("aaaaaaaaaa", False, -1), ("", True, 0), ("ab", True, 0.5)]
)
def test_an_answer_without_an_end_gets_what_is_set_for_it(
    letters: GPT, tmp_path: Path, script: str, ended: bool, score: float
) -> None:
    """Ten tokens: nine and the end in the last slot are an end; ten are none."""
    objective = online(tmp_path, letters, *PPO)
    objective.model = Scripted(script)
    Scripted.prompt = len(asked := objective.prepared.train[0])
    (answer,) = objective.answers([asked], 1, 0, lambda: False) or []
    assert (answer.text, answer.ended) == (script[:10], ended)
    tokens, mask = right_padded([answer.row(TOKENIZER.eot)])
    assert mask.sum() == min(len(script) + 1, 10) and (tokens[0, -1] == TOKENIZER.eot) == ended
    assert objective.score([answer]).tolist() == [score]
    objective.stage_config.missing_end = None
    assert objective.score([answer]).tolist() == [share_of_a("", answer.text, ended)]


def test_an_answer_loses_by_its_last_tokens(letters: GPT, tmp_path: Path) -> None:
    """Of ten at most the last four cost a quarter each, the end among them."""
    objective = online(tmp_path, letters, *PPO, "stage.missing_end=null", "stage.overlong=4")
    asked = objective.prepared.train[0]
    lost = []
    for letters_drawn, ended in ((5, True), (6, True), (9, True), (10, False)):
        answer = Answer(asked, [0] * letters_drawn, ended, text="a" * letters_drawn)
        lost.append(share_of_a("", answer.text, ended) - objective.score([answer]).item())
    assert lost == pytest.approx([0, 0.25, 1, 1])


def test_an_answer_must_fit_the_context(letters: GPT, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"stage.max_tokens=18 after a prompt of 7 tokens .* context of 24: at most stage.max_tokens=17",
    ):
        online(tmp_path, letters, *PPO, "stage.max_tokens=18")
    online(tmp_path, letters, *PPO, "stage.max_tokens=17")


# --- what it is worth


def judged(objective: OnlineRL) -> tuple[list[Answer], Tensor, Tensor]:
    """An iteration's answers, their scores, and the log-probabilities of their tokens."""
    answers = objective.collect(lambda: False)
    assert answers is not None
    objective.score_rollout(answers)
    tokens, mask = right_padded([answer.row(TOKENIZER.eot) for answer in answers])
    with torch.no_grad():
        return answers, objective.score(answers), answer_log_probs(objective.model, tokens, mask)


def rollout_of(objective: OnlineRL) -> dict[str, Tensor]:
    assert objective.rollout
    return objective.rollout.tensors()


def test_ppo_leaves_out_what_has_no_reward(letters: GPT, tmp_path: Path) -> None:
    """Everything else is as if those answers had not been drawn."""
    objective = online(tmp_path, letters, *PPO, reward="share_of_a_or_none")
    moved(objective.model)
    _, scores, log_probs = judged(objective)
    said, buffer = ~scores.isnan(), rollout_of(objective)
    assert 3 < said.sum() < 30
    assert not buffer["mask"][~said].any() and not buffer["advantages"][~said].any()
    mask = (log_probs != 0).float()[said]
    kl = log_probs[said] - buffer["ref_log_probs"][said]
    torch.testing.assert_close(buffer["old_log_probs"][said], log_probs[said])
    assert kl[mask > 0].abs().min() > 0
    advantages, returns = gae(token_rewards(scores[said], kl, mask, 0.05), torch.zeros_like(kl), mask, 1.0, 0.95)
    torch.testing.assert_close(buffer["advantages"][said], whiten(advantages, mask), atol=1e-5, rtol=0)
    torch.testing.assert_close(buffer["returns"][said], returns, atol=1e-6, rtol=0)
    assert objective.figures["score"] == pytest.approx(scores[said].mean().item())
    assert objective.figures["kl"] == pytest.approx((kl * mask).sum(1).mean().item(), rel=1e-4)


@pytest.mark.parametrize("how", ["grpo", "rloo", "dr_grpo"])
def test_a_group_is_judged_without_what_has_no_reward(letters: GPT, tmp_path: Path, how: str) -> None:
    objective = online(tmp_path, letters, *GRPO, f"stage.advantage={how}", reward="share_of_a_or_none")
    _, scores, _ = judged(objective)
    some, buffer = 0, rollout_of(objective)
    for rewards, mask, advantages in zip(
        scores.view(-1, 4), *(buffer[n].view(8, 4, -1) for n in ("mask", "advantages")), strict=True
    ):
        there = ~rewards.isnan()
        if there.sum() > 1 and len(rewards[there].unique()) > 1:
            some += 1 - int(there.all())
            expected = group_advantages(rewards[there][None], how)[0]
            torch.testing.assert_close(advantages[there], expected[:, None] * mask[there])
            assert mask[there].any(1).all()
        else:
            assert not advantages.any()
        assert not mask[~there].any()
    assert some > 1


def test_the_kl_of_an_answer_may_be_taken_from_what_a_group_compares(letters: GPT, tmp_path: Path) -> None:
    in_reward = ["stage.kl_in=reward", "stage.kl_estimator=k1", "stage.beta=0.5", "stage.advantage=dr_grpo"]
    objective = online(tmp_path, letters, *GRPO, *in_reward)
    moved(objective.model)
    _, scores, log_probs = judged(objective)
    kl = (log_probs - rollout_of(objective)["ref_log_probs"]).sum(1)
    expected = group_advantages((scores - 0.5 * kl).view(8, 4), "dr_grpo").view(32, 1)
    assert kl.abs().max() > 0.1
    torch.testing.assert_close(
        rollout_of(objective)["advantages"], expected * rollout_of(objective)["mask"], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("how", ["grpo", "rloo", "dr_grpo"])
def test_the_kl_of_answers_that_score_the_same_is_not_magnified(letters: GPT, tmp_path: Path, how: str) -> None:
    """All that is known of such answers is that a nat costs beta: advantages are no larger than that."""
    in_reward = ["stage.kl_in=reward", "stage.kl_estimator=k1", "stage.beta=1e-3", f"stage.advantage={how}"]
    objective = online(tmp_path, letters, *GRPO, *in_reward, reward="all_alike")
    moved(objective.model)
    _, scores, log_probs = judged(objective)
    assert (scores[scores > 0] == 1).all()
    kl = (log_probs - rollout_of(objective)["ref_log_probs"]).sum(1).view(8, 4)
    alike = (scores.view(8, 4) == 1).all(1)
    found = rollout_of(objective)["advantages"].sum(1).view(8, 4) / rollout_of(objective)["mask"].sum(1).view(8, 4)
    factor = 4 / 3 if how == "rloo" else 1
    assert alike.any() and kl[alike].abs().max() > 0.1
    torch.testing.assert_close(found[alike], factor * 1e-3 * (kl.mean(1, keepdim=True) - kl)[alike], atol=1e-6, rtol=0)


@pytest.mark.parametrize("argv", [PPO, GRPO], ids=["ppo", "grpo"])
def test_nothing_that_could_be_scored_is_an_error(letters: GPT, tmp_path: Path, argv: list[str]) -> None:
    with pytest.raises(UserError, match="none of the 32 answers of iteration 0 could be scored"):
        judged(online(tmp_path, letters, *argv, "stage.missing_end=null", reward="never_says"))


def test_a_group_that_is_all_alike_keeps_its_kl(letters: GPT, tmp_path: Path) -> None:
    """Its advantages are 0, and its KL is in the mean like any other's; where all are alike, only the KL is left."""
    objective = online(tmp_path, letters, *GRPO, "stage.beta=0.1", reward="of_the_prompt")
    answers, scores, _ = judged(objective)
    alike = torch.tensor([len(set(group)) == 1 for group in scores.view(-1, 4).tolist()]).repeat_interleave(4)
    assert 4 <= alike.sum() <= 28 and not rollout_of(objective)["advantages"][alike].any()
    assert objective.loss_count(rollout_of(objective)) == sum(len(answer.row(0)[1]) for answer in answers)
    moved(objective.model)
    objective.rollout = None
    run = fit(objective, 1)
    drawn = {name: tensor[run.buffers[0]["rows"]] for name, tensor in run.buffers[0].items() if tensor.dim() == 2}
    losses = -drawn["advantages"] + 0.1 * k2(drawn["old_log_probs"], drawn["ref_log_probs"])
    silent = (drawn["advantages"] == 0).all(1)[:, None] & (drawn["mask"] > 0)
    assert 0 < silent.sum() < drawn["mask"].sum() and losses[silent].mean() > 1e-4
    assert run.logged[0]["loss"] == pytest.approx(losses[drawn["mask"] > 0].mean().item(), abs=1e-6)
    objective = online(tmp_path, letters, *GRPO, "stage.beta=0.1", reward="all_alike")
    moved(objective.model)
    run = fit(objective, 2)
    assert all(logged["loss"] > 0 and logged["grad_norm"] > 0 for logged in run.logged)


def moved(model: GPT) -> None:
    """Away from the reference."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn(p.shape, generator=draw) * 0.1 * p.std()


# --- the critic


def reward_run(folder: Path, policy: GPT) -> RewardModel:
    """A reward model, kept in the run as its first reward."""
    model = RewardModel(policy.config)
    model.load_state_dict(model.adapt_weights(policy.state_dict(), policy.vocab_size), strict=False)
    model.normalize(torch.tensor([1.0, 3.0]))
    config = {"model": plain(policy.config), "stage": {"name": "reward"}}
    (kept := folder / "r" / "reward-0").mkdir(parents=True)
    write(kept, Checkpoint(0, config, unique_state(model), tokenizer=TOKENIZER.to_json()))
    return model


def test_the_critic_starts_from_the_reward_model_and_leaves_it_alone(letters: GPT, tmp_path: Path) -> None:
    rated = reward_run(tmp_path, letters)
    objective = online(tmp_path, letters, *PPO, reward="0.5*runs/RM")
    answers = objective.collect(lambda: False)
    assert answers is not None and objective.critic is not None
    tokens, mask = right_padded([answer.row(TOKENIZER.eot) for answer in answers])
    with torch.no_grad():
        scores = rated.normalized(rated.raw_scores(tokens, mask))
        values = rated.normalized(rated(tokens))[:, :-1]
    objective.score_rollout(answers)
    torch.testing.assert_close(objective.reward(answers), scores / 2)
    torch.testing.assert_close(rollout_of(objective)["values"], values * mask)
    fit(objective, 4)
    torch.testing.assert_close(objective.reward(answers), scores / 2)  # the reward is what it was
    after: Any = objective.critic.network
    assert (after.value.weight - rated.value.weight).abs().max() > 1e-4 and (after.gain, after.bias) == (
        rated.gain,
        rated.bias,
    )


def test_a_critic_without_a_reward_model_says_0_at_first(letters: GPT, tmp_path: Path) -> None:
    objective = online(tmp_path, letters, *PPO)
    judged(objective)
    assert not rollout_of(objective)["values"].any() and objective.figures["explained_variance"] == pytest.approx(
        0, abs=1e-6
    )
    before = {name: p.clone() for name, p in objective.critic.network.named_parameters()}  # type: ignore[union-attr]
    torch.testing.assert_close(before["embedding.weight"], letters.embedding.weight)
    objective.rollout = None
    fit(objective, 4)
    for name, p in objective.critic.network.named_parameters():  # type: ignore[union-attr]
        assert (p != before[name]).any(), name


@pytest.mark.parametrize("length", [1, 10])
def test_an_iteration_may_be_one_answer(letters: GPT, tmp_path: Path, length: int) -> None:
    """Of one token, too, the advantage of which is 0 and the explained variance 1: a single value does not vary."""
    alone = ["stage.minibatches=1", "stage.epochs=1", "data.batch_size=1", "data.micro_batch_size=1"]
    run = fit(online(tmp_path, letters, "stage=ppo", *alone, f"stage.max_tokens={length}"), 3)
    for logged, buffer in zip(run.logged, run.buffers, strict=True):
        assert all(math.isfinite(value) for value in logged.values()), logged
        if length == 1:
            assert not buffer["advantages"].any() and buffer["mask"].sum() == 1 and logged["explained_variance"] == 1


def test_the_critic_has_a_learning_rate_of_its_own(letters: GPT, tmp_path: Path) -> None:
    """On the policy's schedule: of four steps down to 0 the last has a quarter."""
    falling = ["optim.schedule=wsd", "optim.decay_ratio=1", "optim.lr=1e-4", "stage.critic_lr=3e-4"]
    objective = online(tmp_path, letters, *PPO, *falling)
    fit(objective, 4)
    critic, policy = objective.critic.optimizer, objective.trainer.optimizers[0]  # type: ignore[union-attr]
    assert [group["lr"] for group in critic.param_groups] == pytest.approx([3e-4 / 4] * 2)
    assert [group["lr"] for group in policy.param_groups] == pytest.approx([1e-4 / 4] * 2)


def test_a_critic_that_diverges_is_a_bad_step(letters: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ProximalPolicy.value_loss_sum
    monkeypatch.setattr(ProximalPolicy, "value_loss_sum", lambda self, batch: whole(self, batch) * math.inf)
    objective = online(tmp_path, letters, *PPO)
    fit(objective, 2)
    assert int(objective.bad_steps) == 2


# --- precision


@pytest.mark.parametrize(
    "argv", [[*PPO, "stage.minibatches=1"], [*GRPO, "stage.epochs=2", "stage.minibatches=1"]], ids=["ppo", "grpo"]
)
def test_no_cast_of_a_rollout_lives_on(
    letters: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    """In bf16 every parameter of policy and critic has a gradient in the step after a rollout (pytorch#112583)."""
    found = gradients(monkeypatch, online(tmp_path, letters, *argv, "trainer.precision=bf16"), 2)
    for of in found[-2:]:
        for name, gradient in of.items():
            assert gradient.isfinite().all() and gradient.any(), name


def test_a_step_computes_what_was_computed_before_it(
    letters: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of as many rows of the head, for in bf16 fewer may be rounded otherwise."""
    places, of = list[int](), completions.token_values

    def counted(model: GPT, tokens: Tensor, mask: Tensor, what: Any) -> Any:
        places.append(int(mask.sum()))
        return of(model, tokens, mask, what)

    for module in (completions, online_rl):
        monkeypatch.setattr(module, "token_values", counted)
    objective = online(tmp_path, letters, *GRPO, "stage.beta=0.1", "trainer.precision=bf16", reward="of_the_prompt")
    run = fit(objective, 2)
    assert run.logged[0]["ratio_max"] == 1 and run.logged[0]["count"] == places[0]
    assert places[:2] == places[2:4] == places[4:]  # by the policy, by its reference, in the two steps


# --- an iteration


def test_an_iteration_ends_early_where_the_policy_has_moved_enough(letters: GPT, tmp_path: Path) -> None:
    objective = online(tmp_path, letters, *PPO, "stage.kl_stop=1e-9")
    run = fit(objective, 8)
    assert objective.iteration == 4 and [int(buffer["cursor"]) for buffer in run.buffers] == [0, 1] * 4


def test_beta_moves_once_an_iteration(letters: GPT, tmp_path: Path) -> None:
    """By 32 answers in 100, at most a fifth of that; the row holds what the rewards had."""
    run = fit(online(tmp_path, letters, *PPO, "stage.kl_target=1e6", "stage.kl_horizon=100"), 12)
    factor = 1 - 0.2 * 0.32
    assert [logged["beta"] for logged in run.logged] == pytest.approx(
        [0.05 * factor ** (step // 4) for step in range(12)]
    )


def test_every_answer_is_in_the_table(letters: GPT, tmp_path: Path) -> None:
    objective = online(
        tmp_path, letters, *GRPO, "stage.table_every=2", "stage.group_size=2", reward="share_of_a_or_none"
    )
    run = fit(objective, 8)
    found = sorted((tmp_path / "r" / "samples").iterdir())
    assert [path.name for path in found] == ["step-000000000-answers.jsonl", "step-000000004-answers.jsonl"]
    lines = [json.loads(line) for line in found[1].read_text().splitlines()]
    assert len(lines) == 32 and list(lines[0]) == ["prompt", "answer", "ended", "score", "kl", "tokens"]
    assert all(line["prompt"] == other["prompt"] for line, other in zip(lines[::2], lines[1::2], strict=True))
    for line in lines:
        assert line["score"] == (
            None if "b" in line["answer"] else pytest.approx(share_of_a("", line["answer"], True), abs=1e-4)
        )
    scored = [line["score"] for line in lines if line["score"] is not None]
    assert run.logged[4]["score"] == pytest.approx(sum(scored) / len(scored), abs=1e-4)


def test_evaluation_by_hand(letters: GPT, tmp_path: Path) -> None:
    """One answer to each held-out prompt; of a policy that is its reference there is no KL. What cannot be scored
    counts for nothing.
    """
    objective = online(tmp_path, letters, *PPO, reward="share_of_a_or_none")
    metrics = objective.evaluate([{"index": torch.arange(4)}])
    answers = objective.answers([objective.prepared.val[i] for i in range(4)], 1, 0, lambda: False)
    assert answers is not None and metrics is not None
    scores = objective.score(answers)
    assert (
        metrics["val/kl"] == pytest.approx(0, abs=1e-5) and metrics["val/ended"] == sum(a.ended for a in answers) / 4
    )
    assert metrics["val/score"] == pytest.approx(scores.nan_to_num().mean().item())
    assert metrics["val/loss"] == pytest.approx(-metrics["val/score"], abs=1e-5)


def test_an_evaluation_without_a_score_is_none(letters: GPT, tmp_path: Path) -> None:
    """A score of 0 would be the best that many a run has seen."""
    objective = online(tmp_path, letters, *PPO, "stage.missing_end=null", reward="never_says")
    metrics = objective.evaluate([{"index": torch.arange(4)}])
    assert metrics is not None and math.isnan(metrics["val/score"]) and math.isnan(metrics["val/loss"])
    assert metrics["val/kl"] == pytest.approx(0, abs=1e-5)


def test_a_signal_while_answers_are_scored_changes_nothing(letters: GPT, tmp_path: Path) -> None:
    """Those that are not scored yet are not asked for."""
    objective, polls = online(tmp_path, letters, *GRPO, "stage.beta=0.1"), list[int]()
    answers = objective.collect(lambda: False)
    assert answers is not None

    def interrupted() -> bool:
        polls.append(1)
        return len(polls) > 5

    assert not objective.score_rollout(answers, interrupted)
    assert objective.rollout is None and not objective.figures and objective.cursor == objective.iteration == 0
    assert objective.score_rollout(answers) and objective.rollout


# --- does it learn

LEARNING = ["optim.lr=3e-3", "stage.missing_end=null", "data.batch_size=32", "stage.minibatches=2", "stage.epochs=2"]
OF_EACH = {
    "ppo": ["stage.critic_lr=5e-3"],
    "grpo": ["stage.group_size=8", "stage.advantage=rloo", "stage.kl_in=reward", "stage.kl_estimator=k1"],
}


def after(objective: OnlineRL, iterations: int = 40) -> dict[str, float]:
    """What the last eight iterations logged at their first steps, in the mean."""
    rows = [logged for logged in fit(objective, 4 * iterations).logged if logged["ratio_max"] == 1]
    assert len(rows) == iterations
    return {name: sum(row[name] for row in rows[-8:]) / 8 for name in rows[0]}


def best(objective: OnlineRL, beta: float) -> tuple[float, float]:
    """(score, KL) of the policy that is best for a beta, ref e^(r / beta) / Z, from 4,000 answers of the reference."""
    answers = objective.answers(list(objective.prepared.train), 200, 0, lambda: False)
    assert answers is not None
    rewards = objective.reward(answers).double()
    weights = (rewards / beta).softmax(0)
    return float(weights @ rewards), float(weights @ (weights * len(rewards)).log())


@pytest.mark.slow
@pytest.mark.parametrize("stage,seed", [("ppo", 0), ("ppo", 1), ("ppo", 2), ("grpo", 0)])
def test_a_reward_that_can_be_verified_is_learnt(letters: GPT, tmp_path: Path, stage: str, seed: int) -> None:
    """The share of one letter rises from an eighth to what is best for beta, .68, at the KL which that costs; with ten
    times the beta, hardly. (With its KL in the loss GRPO stays at .5: there, a token is not charged what it makes
    later ones cost.)"""
    argv = [f"stage={stage}", *LEARNING, *OF_EACH[stage], f"seed={seed}"]
    objective = online(tmp_path, letters, *argv, "stage.beta=0.2")
    before, (score, kl) = float(objective.reward(objective.collect(lambda: False) or []).mean()), best(objective, 0.2)
    end = after(objective)
    assert end["score"] >= before + 0.3 and end["kl"] <= 10 and end["ended"] >= 0.95
    assert end["score"] == pytest.approx(score, abs=0.12) and end["kl"] == pytest.approx(kl, abs=0.6)
    held = after(online(tmp_path, letters, *argv, "stage.beta=2"))
    assert held["kl"] < end["kl"] / 5 and held["score"] < end["score"] - 0.3


@pytest.mark.slow
@pytest.mark.parametrize("stage", OF_EACH)
def test_without_a_kl_a_reward_is_overdone(letters: GPT, tmp_path: Path, stage: str) -> None:
    """The reward counts a letter, where the truth is that it should not come twice in a row. Near the reference both
    rise.
    """

    def worth(objective: OnlineRL) -> tuple[float, float]:
        answers = objective.answers(list(objective.prepared.train), 20, 0, lambda: False)
        assert answers is not None
        twice = [sum(a + b == "aa" for a, b in pairwise(answer.text)) for answer in answers]
        proxy = float(objective.reward(answers).mean())
        return proxy, proxy - 0.15 * sum(twice) / len(answers)

    argv = [f"stage={stage}", *LEARNING, *OF_EACH[stage]]
    objective = online(tmp_path, letters, *argv, "stage.beta=0.1", reward="how_many_a")
    proxy, gold = worth(objective)
    after(objective, 24)
    held_proxy, held_gold = worth(objective)
    assert held_proxy > proxy + 0.04 and held_gold > gold + 0.02
    free = online(tmp_path, letters, *argv, "stage.beta=0", reward="how_many_a")
    after(free, 24)
    free_proxy, free_gold = worth(free)
    assert free_proxy > held_proxy + 0.5 and free_gold < gold
    assert free_proxy - free_gold > 5 * (held_proxy - held_gold)
