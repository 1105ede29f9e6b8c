"""A rollout: the answers that one iteration of online RL drew, and all that its steps need to know of them.

It is made in phases, which `OnlineRL.ready` calls in this order:
1. `collect`: the policy draws answers to an iteration's prompts;
2. `score`: the reward says what each is worth;
3. `OnlineRL.with_log_probs`: policy and reference say how likely each token is;
4. `OnlineRL.with_advantages`: PPO (with a critic) and GRPO (with groups) each turn that into advantages.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from gengen.alignment.advantages import overlong
from gengen.alignment.kl import k3
from gengen.checkpoints.files import without_special_floats
from gengen.config.stage import OnlineConfig
from gengen.data.text.prepare import PreparedTokens
from gengen.data.text.tokenizer import TextTokenizer
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.rewards import Answer, Interrupted, Reward, answer_of
from gengen.models.completions import right_padded
from gengen.training.objective import Batch

ON_DISK = {"old_log_probs": "old", "ref_log_probs": "ref"}
"""Fields that have another name in a checkpoint's `buffer`; scores are left out there."""


class PromptSplit(Protocol):
    """Prompts as tokens, by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> list[int]: ...


class PromptData(PreparedTokens, Protocol):
    """Prepared prompts, as online RL asks for them."""

    @property
    def train(self) -> PromptSplit: ...

    @property
    def val(self) -> PromptSplit: ...

    def prompts(self, split: str, iteration: int, count: int, seed: int) -> np.ndarray:
        """Return the numbers of an iteration's prompts, (count,): each once a pass."""
        ...


@dataclass(frozen=True)
class Rollout:
    """N answers, those to one prompt side by side; T is the longest prompt with its answer.

    Per token all lives on the shifted axis: index i belongs to tokens[:, i + 1], and all is 0 off the mask.
    `values` and `returns` are a critic's, and None without one.
    """

    tokens: Tensor  # (N, T) int64, prompt and answer, zeros to the right
    mask: Tensor  # (N, T - 1), 1 where the token is part of an answer that has a score
    scores: (
        Tensor  # (N,) fp32, NaN where the reward cannot say; after a resume all are NaN, as nothing reads them then
    )
    old_log_probs: Tensor  # (N, T - 1) fp32, of the policy that drew the answers
    ref_log_probs: Tensor  # (N, T - 1) fp32, of the reference
    advantages: Tensor | None = None  # (N, T - 1)
    values: Tensor | None = None  # (N, T - 1), of the state before the token, when the answer was drawn
    returns: Tensor | None = None  # (N, T - 1), what the critic learns to say

    @property
    def kl(self) -> Tensor:
        """k1 of each answer to the reference, in nats, (N,)."""
        return ((self.old_log_probs - self.ref_log_probs) * self.mask).sum(1)

    def tensors(self) -> Batch:
        """Return all that a step needs, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None and name != "scores"}

    def minibatch(self, rows: Tensor) -> Batch:
        """Return the rows (B,) of every tensor, by name."""
        return {name: tensor[rows] for name, tensor in self.tensors().items()}

    def to_state(self) -> Batch:
        """Return what a checkpoint inside an iteration keeps."""
        return {ON_DISK.get(name, name): tensor for name, tensor in self.tensors().items()}

    @classmethod
    def from_state(cls, state: Batch, device: torch.device) -> Self:
        """The inverse of `to_state`."""
        names = {stored: name for name, stored in ON_DISK.items()}
        tensors = {names.get(stored, stored): tensor.to(device) for stored, tensor in state.items()}
        scores = torch.full((len(tensors["tokens"]),), math.nan, device=device)
        return cls(scores=scores, **tensors)


def collect(
    generator: TextGenerator,
    prompts: Sequence[list[int]],
    n: int,
    seed: int,
    c: OnlineConfig,
    interrupted: Interrupted,
) -> list[Answer]:
    """Draw n answers to each prompt, those to one prompt side by side: a function of the weights and the seed."""
    samples = generator.generate(
        prompts, n=n, seed=seed, max_tokens=c.max_tokens, temperature=c.temperature, interrupted=interrupted
    )
    asked = [prompt for prompt in prompts for _ in range(n)]
    return [answer_of(prompt, sample) for prompt, sample in zip(asked, samples, strict=True)]


def score(reward: Reward, completions: Sequence[Answer], c: OnlineConfig, interrupted: Interrupted) -> Tensor:
    """Return what each answer is worth, (N,): its reward or, where it did not end, what is set for that; less what its
    length costs."""
    scores = reward(completions, interrupted)
    if c.missing_end is not None:
        scores = torch.where(torch.tensor([answer.ended for answer in completions]), scores, c.missing_end)
    if c.overlong is not None:
        lengths = torch.tensor([len(answer.tokens) + answer.ended for answer in completions])
        scores = scores - overlong(lengths, c.max_tokens, c.overlong)
    return scores


def padded(completions: Sequence[Answer], tokenizer: TextTokenizer, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return (tokens (N, T), mask (N, T - 1)) of answers, their end tokens included."""
    return right_padded([answer.row(tokenizer.eot) for answer in completions], device)


def figures(rollout: Rollout, completions: Sequence[Answer], beta: float) -> dict[str, float]:
    """Return what is logged of a rollout: means over the answers that have a score; lengths and ends are of all."""
    scored = ~rollout.scores.isnan()
    kl = float(rollout.kl[scored].mean())
    kl_k3 = (k3(rollout.old_log_probs, rollout.ref_log_probs) * rollout.mask).sum(1)
    lengths = torch.tensor([float(len(answer.row(0)[1])) for answer in completions])
    return {
        "score": float(rollout.scores.nanmean()),
        "kl": kl,
        "kl_k3": float(kl_k3[scored].mean()),
        "return": float(rollout.scores.nanmean() - beta * rollout.kl[scored].mean()),
        "answer_length": float(lengths.mean()),
        "ended": sum(answer.ended for answer in completions) / len(completions),
        "beta": beta,
    }


def table(rollout: Rollout, completions: Sequence[Answer]) -> str:
    """Return a line of JSON for each answer."""
    lines = []
    for answer, worth, nats in zip(completions, rollout.scores.tolist(), rollout.kl.tolist(), strict=True):
        line = {"prompt": answer.question, "answer": answer.text, "ended": answer.ended}
        line |= {"score": None if math.isnan(worth) else round(worth, 4), "kl": round(nats, 4)}
        line |= {"tokens": len(answer.tokens)}
        lines.append(json.dumps(without_special_floats(line), ensure_ascii=False) + "\n")
    return "".join(lines)
