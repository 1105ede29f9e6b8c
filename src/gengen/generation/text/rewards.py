"""Rewards of answers under one contract: a reward run, a registered function, or a weighted sum of them."""

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
from gengen.generation.load import load_generator
from gengen.models.completions import right_padded
from gengen.models.reward import RewardModel
from gengen.registry import REWARDS, reward_function

BATCH = 256  # answers scored at once
SHOWN = 200  # characters of a text in an error


Interrupted = Callable[[], bool]
"""Polled between pieces of work: once it is true, what is under way is left as it is."""


def never() -> bool:
    return False


class DrawnText(Protocol):
    """What a reward needs of a sample: the part of `generator.Sample` that says what was asked and what was drawn."""

    prompt: str
    text: str
    tokens: list[int]  # without the one that ended it
    finish_reason: str  # "end": the model ended its text
    index: int  # place among all samples of one call


@dataclass
class Answer:
    """One answer to a prompt, as tokens and as text. tokens: without the one that ends it, where it has ended."""

    prompt: list[int]
    tokens: list[int]
    ended: bool
    question: str = field(default="", compare=False)
    text: str = field(default="", compare=False)

    def row(self, end: int) -> tuple[list[int], list[int]]:
        """Return (prompt, what the policy drew, the end token included)."""
        return self.prompt, [*self.tokens, *([end] if self.ended else [])]


class Reward(Protocol):
    """Answers in, a number for each out: what rollouts, best-of-n and preference pairs ask.

    A reward model (`Scorer`), a registered function (`registered`) and a weighted sum (`RewardSum`) are rewards.
    """

    def __call__(self, answers: Sequence[Answer], interrupted: Interrupted = never) -> Tensor:
        """Return what each of B answers is worth, (B,) fp32 on the CPU and finite; NaN where it cannot say, and the
        answer is left out. Answers that come after an interruption are NaN."""
        ...


def answer_of(prompt: list[int], sample: DrawnText) -> Answer:
    return Answer(prompt, sample.tokens, sample.finish_reason == "end", sample.prompt, sample.text)


class Scorer:
    """Scores answers with a reward model. `gengen.load` returns one for a run of stage=reward."""

    command_hint = "to use:    stage=ppo stage.reward={run}, or best_of=8 reward={run} when another run is sampled"

    def __init__(self, model: RewardModel, tokenizer: TextTokenizer):
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def from_checkpoint(cls, model: RewardModel, directory: Path) -> Self:
        return cls(model, TextTokenizer.from_json(read_tokenizer(directory) or ""))

    def __call__(self, answers: Sequence[Answer], interrupted: Interrupted = never) -> Tensor:
        """Return scores, (B,), of mean 0 and variance 1 over answers like those of the run it started from."""
        return self.model.normalized(self.outputs(answers).to(self.model.gain.device)).cpu()

    @torch.no_grad()
    def outputs(self, answers: Sequence[Answer]) -> Tensor:
        """Return the reward model's own outputs, (B,), whose differences are log-odds of being preferred."""
        device, end = self.model.embedding.weight.device, self.tokenizer.eot
        parts = [answers[start : start + BATCH] for start in range(0, len(answers), BATCH)]
        return torch.cat(
            [self.model.raw_scores(*right_padded([a.row(end) for a in part], device)).cpu() for part in parts]
        )

    def answers(
        self, prompts: Sequence[str], responses: Sequence[str], ended: Sequence[bool] | None = None
    ) -> list[Answer]:
        """Make answers of texts; each prompt is one message of a user. ended: of each response; None = all have."""
        found, whole = [], [True] * len(prompts) if ended is None else ended
        for prompt, response, end in zip(prompts, responses, whole, strict=True):
            asked = prompt_tokens(self.tokenizer, [{"role": "user", "content": prompt}])
            found.append(Answer(asked, self.tokenizer.encode(response), end, prompt, response))
        return found

    def score(self, prompts: Sequence[str], responses: Sequence[str], ended: Sequence[bool] | None = None) -> Tensor:
        """Return the score of each response, (B,)."""
        return self(self.answers(prompts, responses, ended))

    def raw(self, prompts: Sequence[str], responses: Sequence[str], ended: Sequence[bool] | None = None) -> Tensor:
        """Return the reward model's own output for each response, (B,)."""
        return self.outputs(self.answers(prompts, responses, ended))


class RewardSum:
    """A weighted sum of rewards. networks: the reward models among them, each of which computes on its own device."""

    def __init__(self, parts: Sequence[tuple[float, str, Reward]]):
        """parts: (weight, name, reward) of each."""
        self.parts = parts
        self.networks = tuple(reward.model for _, _, reward in parts if isinstance(reward, Scorer))

    def __call__(self, answers: Sequence[Answer], interrupted: Interrupted = never) -> Tensor:
        terms = []
        for weight, name, reward in self.parts:
            scores = reward(answers, interrupted)
            terms.append(weight * scores)
            for first in (scores.isinf() | terms[-1].isinf()).nonzero()[:1, 0].tolist():
                what = f"reward {name} is {scores[first]:g}, times {weight:g}"
                raise UserError(f"{what}, where only finite numbers can be compared{shown(answers[first])}")
        return torch.stack(terms).sum(0)


def load_reward(
    names: Sequence[str],
    runs_dir: Path,
    tokenizer: TextTokenizer,
    device: str = "auto",
    frozen: bool = False,
) -> RewardSum:
    """Load the sum of the named rewards. frozen: they are a run's own copies, used as they were when that run began.
    Raises UserError for a run that is no reward model, for one of another tokenizer, and for one without a scale."""
    weighted = [weighted_reward(name) for name in names]
    return RewardSum(
        [(weight, name, find_reward(name, runs_dir, tokenizer, device, frozen)) for weight, name in weighted]
    )


def shown(answer: Answer) -> str:
    """Return an answer and its prompt as further lines of an error."""
    prompt, text = cut(repr(answer.question)), cut(repr(answer.text))
    return f"\n  prompt: {prompt}\n  answer: {text} ({'ended' if answer.ended else 'cut off'})"


def cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def registered(name: str) -> Reward:
    """Make a reward of a registered function f(prompt, response, ended) -> number, or None where it cannot say.

    Raises UserError where it cannot be called so; and, when it is called, where it raises or returns no number."""
    function, (module, _, attribute) = reward_function(name), REWARDS[name].partition(":")
    try:
        inspect.signature(function).bind("", "", True)
    except TypeError:
        takes = inspect.signature(function) if callable(function) else ", which is no function"
        wanted = f"it is called as {name}(prompt, response, ended)"
        raise UserError(f"reward {name} is {module}.{attribute}{takes}; {wanted}") from None
    except ValueError:  # a function written in C does not tell its arguments
        pass

    def worth(answer: Answer) -> float:
        try:
            value: object = function(answer.question, answer.text, answer.ended)
        except (Exception, SystemExit) as error:
            raise UserError(f"reward {name} raised {raised(error, [module.split('.')[0]])}{shown(answer)}") from error
        try:
            return as_number(value)
        except Exception:
            found = f"{type(value).__name__} {repr(value)[:SHOWN]}"
            due = "a number is due, or None where it cannot say"
            raise UserError(f"reward {name} returned {found}; {due}{shown(answer)}") from None

    def score(answers: Sequence[Answer], interrupted: Interrupted = never) -> Tensor:
        return torch.tensor([math.nan if interrupted() else worth(answer) for answer in answers])

    return score


def as_number(value: object) -> float:
    """Return what a reward function returned as a float: None is NaN; raises what float() raises for no number."""
    if value is None:
        return math.nan
    if isinstance(value, (str, bytes)):
        raise TypeError("a text is no number")
    return float(value.detach() if isinstance(value, Tensor) else value)  # type: ignore[arg-type]


def check_scale(name: str, weights: dict[str, Tensor]) -> None:
    """Raise UserError for a reward model whose scores were never given mean 0 and variance 1: an older gengen did that
    in the last step alone."""
    if weights["gain"] == 1 and weights["bias"] == 0:
        raise UserError(
            f"{name} was stopped before its scores were given mean 0 and variance 1, and nothing can be said of "
            f"their size; python scripts/train.py run={name} goes on with it, and its next checkpoint has them"
        )


def find_reward(name: str, runs_dir: Path, tokenizer: TextTokenizer, device: str, frozen: bool) -> Reward:
    """Return the reward that a name means: a registered function, or a run of stage=reward."""
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
