"""The best of several pictures, by a reward, and the reward that says whether a picture follows its prompt."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gengen.data.image.prepare import PreparedImages
from gengen.errors import UserError
from gengen.evaluation.prompt_judges import SELECTS, prompt_judge_for, trusted
from gengen.generation.image.files import Drawn
from gengen.io import Say
from gengen.registry import image_reward_maker

ImageReward: TypeAlias = Callable[[Tensor, Sequence[str]], Tensor]
"""uint8 images (N, C, H, W) and the prompt of each ("" for none) -> what each is worth, (N,); NaN where it cannot say.
"""
Data: TypeAlias = Callable[[], PreparedImages]
"""Opens the data that the run was trained on."""


def best_of(images: Tensor, prompts: Sequence[str], reward: ImageReward, of: int) -> tuple[Tensor, Tensor]:
    """Return which images have the highest reward of each `of` that follow each other (the first of them where none
    can be scored), (N / of,) int64, and those rewards.

    images: uint8 (N, C, H, W); prompts: N.
    """
    scores = reward(images, prompts).view(-1, of).nan_to_num(-torch.inf)  # (groups, of)
    best = scores.argmax(1)
    return best + of * torch.arange(len(best)), scores.gather(1, best[:, None])[:, 0]


def best_drawn(parts: Iterable[Drawn], reward: ImageReward, of: int) -> Iterator[Drawn]:
    """Yield the best of each `of` images that are drawn, in batches as they come; what is said of each is kept, and
    its reward is added."""
    images, facts = torch.empty(0, dtype=torch.uint8), list[dict[str, Any]]()
    for part in parts:
        images, facts = torch.cat([images, part.images]) if len(facts) else part.images, [*facts, *part.facts]
        whole = len(facts) // of * of
        if whole:
            rows, scores = best_of(images[:whole], [fact.get("prompt", "") for fact in facts[:whole]], reward, of)
            chosen = zip(rows.tolist(), scores.tolist(), strict=True)
            yield Drawn(images[rows], [facts[i] | {"reward": score, "best_of": of} for i, score in chosen])
            images, facts = images[whole:], facts[whole:]


def image_reward(name: str, data: Data, say: Say) -> ImageReward:
    """Return the registered reward of pictures of that name."""
    make: Callable[[Data, Say], ImageReward] = image_reward_maker(name)
    return make(data, say)


def follows_prompt(data: Data, say: Say) -> ImageReward:
    """Return the log-probability that a picture shows what its prompt asks for, by a judge of the run's own data that
    reports no figure. Raises UserError where there is none, or none that can be believed.
    """
    judge = prompt_judge_for(data(), say, SELECTS)
    if judge is None:
        raise UserError("reward=follows_prompt: the pictures of this run's data show no things with two attributes")
    return trusted(judge).log_probs
