"""Rewards of answers under one protocol: a reward run, a registered function, or a weighted sum of them; and the best of n answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from gengen.checkpoints.format import read_tokenizer
from gengen.config.errors import UserError
from gengen.config.stage import weighted_reward
from gengen.data.chat import prompt_tokens
from gengen.data.tokenizer import TextTokenizer
from gengen.generation.load import load_generator
from gengen.generation.text import Sample, TextGenerator
from gengen.models.answers import right_padded
from gengen.models.reward import RewardModel
from gengen.registry import REWARDS, reward_function

BATCH = 256  # answers scored at once


@dataclass
class Answer:
    """One answer to a prompt, as tokens and as text. tokens: without the one that ends it, where it has ended."""

    prompt: list[int]
    tokens: list[int]
    ended: bool
    question: str = field(default="", compare=False)
    text: str = field(default="", compare=False)

    def row(self, end: int) -> tuple[list[int], list[int]]:
        """(prompt, what the policy drew, the end token included)."""
        return self.prompt, [*self.tokens, *([end] if self.ended else [])]


Reward = Callable[[Sequence[Answer]], Tensor]
"""Answers -> what each is worth, (B,) fp32 on the CPU; NaN: it cannot say, and the answer is left out."""


def answer_of(prompt: list[int], sample: Sample) -> Answer:
    return Answer(prompt, sample.tokens, sample.finish_reason == "end", sample.prompt, sample.text)


class Scorer:
    """Scores answers with a reward model; what `gengen.load` returns for a run of stage=reward."""

    command_hint = "to use:    stage=ppo stage.reward={run}, or best_of=8 reward={run} when another run is sampled"

    def __init__(self, model: RewardModel, tokenizer: TextTokenizer):
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def from_checkpoint(cls, model: RewardModel, directory: Path) -> Self:
        return cls(model, TextTokenizer.from_json(read_tokenizer(directory) or ""))

    def __call__(self, answers: Sequence[Answer]) -> Tensor:
        """Scores of mean 0 and variance 1 over answers like those of the run it started from, (B,)."""
        return self.model.normalized(self.outputs(answers).to(self.model.gain.device)).cpu()

    @torch.no_grad()
    def outputs(self, answers: Sequence[Answer]) -> Tensor:
        """The reward model's own outputs, whose differences are log-odds of being preferred, (B,)."""
        device, end = self.model.embedding.weight.device, self.tokenizer.eot
        parts = [answers[start : start + BATCH] for start in range(0, len(answers), BATCH)]
        return torch.cat([self.model.raw_scores(*right_padded([a.row(end) for a in part], device)).cpu() for part in parts])

    def answers(self, prompts: Sequence[str], responses: Sequence[str], ended: Sequence[bool] | None = None) -> list[Answer]:
        """Texts as answers; each prompt is one message of a user."""
        whole = ended if ended is not None else [True] * len(prompts)
        encode, rows = self.tokenizer.encode, zip(prompts, responses, whole, strict=True)
        asked = [(prompt_tokens(self.tokenizer, [{"role": "user", "content": p}]), p, r, e) for p, r, e in rows]
        return [Answer(tokens, encode(response), end, prompt, response) for tokens, prompt, response, end in asked]

    def score(self, prompts: Sequence[str], responses: Sequence[str], ended: Sequence[bool] | None = None) -> Tensor:
        """The score of each response, (B,)."""
        return self(self.answers(prompts, responses, ended))

    def raw(self, prompts: Sequence[str], responses: Sequence[str], ended: Sequence[bool] | None = None) -> Tensor:
        """The same before it is normalised, (B,)."""
        return self.outputs(self.answers(prompts, responses, ended))

    def command(self, config: Any, say: Callable[[str], None]) -> str:
        raise UserError(f"{config.run} scores answers and draws none: sample another run with best_of=8 reward={config.run}")


class RewardSum:
    """A weighted sum of rewards. networks: the reward models among them, which compute where they are moved."""

    def __init__(self, parts: Sequence[tuple[float, Reward]]):
        self.parts = parts
        self.networks = tuple(reward.model for _, reward in parts if isinstance(reward, Scorer))

    def __call__(self, answers: Sequence[Answer]) -> Tensor:
        return torch.stack([weight * reward(answers) for weight, reward in self.parts]).sum(0)


def load_reward(names: Sequence[str], runs_dir: Path, tokenizer: TextTokenizer, device: str = "auto") -> RewardSum:
    """The sum of the named rewards. Raises UserError for a run that is no reward model, or one of another tokenizer."""
    weighted = map(weighted_reward, names)
    return RewardSum([(weight, reward_of(name, runs_dir, tokenizer, device)) for weight, name in weighted])


def reward_of(name: str, runs_dir: Path, tokenizer: TextTokenizer, device: str) -> Reward:
    if name in REWARDS:
        function = reward_function(name)
        return lambda answers: torch.tensor([float(function(a.question, a.text, a.ended)) for a in answers])
    scorer = load_generator(name, runs_dir, device=device)
    if not isinstance(scorer, Scorer):
        raise UserError(f"{name} is no reward model: stage=reward trains one")
    if scorer.tokenizer.hash != tokenizer.hash:
        raise UserError(f"{name} was trained with another tokenizer; start it from the same run as the policy")
    return scorer


def best_of(generator: TextGenerator, prompts: Sequence[Any], n: int, of: int, reward: Reward, **settings: Any) -> list[Sample]:
    """n samples of each prompt, each the one with the highest reward of `of` that are drawn for it."""
    drawn = generator.generate(prompts, n=n * of, **settings)
    tokens = [generator.prompt_tokens(prompt) for prompt in prompts for _ in range(n * of)]
    scores = reward([answer_of(prompt, sample) for prompt, sample in zip(tokens, drawn, strict=True)]).view(-1, of)
    return [drawn[group * of + int(best)] for group, best in enumerate(scores.nan_to_num(-torch.inf).argmax(1))]
