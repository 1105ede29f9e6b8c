"""Rewards of answers under one protocol: a reward run, a registered function, or a weighted sum of them."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from gengen.checkpoints.layout import read_tokenizer
from gengen.config.stage import weighted_reward
from gengen.data.dialogue.template import prompt_tokens
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError, raised
from gengen.generation.base import Sample
from gengen.generation.load import load_generator
from gengen.generation.text.generator import never
from gengen.models.completions import right_padded
from gengen.models.reward import RewardModel
from gengen.registry import REWARDS, reward_function

BATCH = 256  # answers scored at once
SHOWN = 200  # characters of a text in an error


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


class Reward(Protocol):
    def __call__(self, answers: Sequence[Answer], interrupted: Callable[[], bool] = never) -> Tensor:
        """What each answer is worth, (B,) fp32 on the CPU and finite, or NaN: it cannot say, and the answer is left
        out. Those that come after an interruption are NaN."""


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

    def __call__(self, answers: Sequence[Answer], interrupted: Callable[[], bool] = never) -> Tensor:
        """Scores of mean 0 and variance 1 over answers like those of the run it started from, (B,)."""
        return self.model.normalized(self.outputs(answers).to(self.model.gain.device)).cpu()

    @torch.no_grad()
    def outputs(self, answers: Sequence[Answer]) -> Tensor:
        """The reward model's own outputs, whose differences are log-odds of being preferred, (B,)."""
        device, end = self.model.embedding.weight.device, self.tokenizer.eot
        parts = [answers[start : start + BATCH] for start in range(0, len(answers), BATCH)]
        return torch.cat(
            [self.model.raw_scores(*right_padded([a.row(end) for a in part], device)).cpu() for part in parts]
        )

    def answers(
        self, prompts: Sequence[str], responses: Sequence[str], ended: Sequence[bool] | None = None
    ) -> list[Answer]:
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


class RewardSum:
    """A weighted sum of rewards. networks: the reward models among them, which compute where they are moved."""

    def __init__(self, parts: Sequence[tuple[float, str, Reward]]):
        """parts: (weight, name, reward) of each."""
        self.parts = parts
        self.networks = tuple(reward.model for _, _, reward in parts if isinstance(reward, Scorer))

    def __call__(self, answers: Sequence[Answer], interrupted: Callable[[], bool] = never) -> Tensor:
        found = []
        for weight, name, reward in self.parts:
            scores = reward(answers, interrupted)
            found.append(weight * scores)
            for infinite in (scores.isinf() | found[-1].isinf()).nonzero()[:1, 0].tolist():
                of = f"reward {name} is {scores[infinite]:g}, times {weight:g}"
                raise UserError(f"{of}, where only finite numbers can be compared{shown(answers[infinite])}")
        return torch.stack(found).sum(0)


def load_reward(
    names: Sequence[str],
    runs_dir: Path,
    tokenizer: TextTokenizer,
    device: str = "auto",
    frozen: bool = False,
) -> RewardSum:
    """The sum of the named rewards. frozen: they are a run's own copies, which go on as that run began with them.
    Raises UserError for a run that is no reward model, for one of another tokenizer, and for one without a scale."""
    weighted = [weighted_reward(name) for name in names]
    return RewardSum(
        [(weight, name, reward_of(name, runs_dir, tokenizer, device, frozen)) for weight, name in weighted]
    )


def shown(answer: Answer) -> str:
    """An answer and its prompt, as further lines of an error."""
    texts = repr(answer.question), repr(answer.text)
    prompt, text = (said if len(said) <= SHOWN else said[:SHOWN] + "…" for said in texts)
    return f"\n  prompt: {prompt}\n  answer: {text} ({'ended' if answer.ended else 'cut off'})"


def registered(name: str) -> Reward:
    """A function of the user's as a reward. Raises UserError where it cannot be called as one; and, when it is called,
    where it raises or returns what is no number. None is NaN."""
    function, (module, _, attribute) = reward_function(name), REWARDS[name].partition(":")
    try:
        inspect.signature(function).bind("", "", True)
    except TypeError:
        takes = inspect.signature(function) if callable(function) else ", which is no function"
        wanted = f"it is called as {name}(prompt, response, ended)"
        raise UserError(f"reward {name} is {module}.{attribute}{takes}; {wanted}") from None
    except ValueError:  # written in C, it does not say
        pass

    def worth(answer: Answer) -> float:
        try:
            value = function(answer.question, answer.text, answer.ended)
        except (Exception, SystemExit) as error:
            raise UserError(f"reward {name} raised {raised(error, [module.split('.')[0]])}{shown(answer)}") from error
        try:
            if isinstance(value, (str, bytes)):
                raise TypeError("a text is no number")
            return math.nan if value is None else float(value.detach() if isinstance(value, Tensor) else value)
        except Exception:
            found = f"{type(value).__name__} {repr(value)[:SHOWN]}"
            due = "a number is due, or None where it cannot say"
            raise UserError(f"reward {name} returned {found}; {due}{shown(answer)}") from None

    def score(answers: Sequence[Answer], interrupted: Callable[[], bool] = never) -> Tensor:
        return torch.tensor([math.nan if interrupted() else worth(answer) for answer in answers])

    return score


def check_scale(name: str, weights: dict[str, Tensor]) -> None:
    """Raise UserError for a reward model whose scores were never given mean 0 and variance 1: once, only the last step
    did that."""
    if weights["gain"] == 1 and weights["bias"] == 0:
        raise UserError(
            f"{name} was stopped before its scores were given mean 0 and variance 1, and nothing can be said of their size; "
            f"python scripts/train.py run={name} goes on with it, and its next checkpoint has them"
        )


def reward_of(name: str, runs_dir: Path, tokenizer: TextTokenizer, device: str, frozen: bool) -> Reward:
    if name in REWARDS:
        return registered(name)
    scorer = load_generator(name, runs_dir, device=device)
    if not isinstance(scorer, Scorer):
        raise UserError(f"{name} is no reward model: stage=reward trains one")
    if scorer.tokenizer.hash != tokenizer.hash:
        raise UserError(f"{name} was trained with another tokenizer; start it from the same run as the policy")
    if not frozen:
        check_scale(name, dict(scorer.model.named_buffers()))
    return scorer
