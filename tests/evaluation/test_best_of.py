"""The best of several pictures, by a reward that is known."""

import pytest
import torch
from torch import Tensor

from gengen.config.commands import DiffusionSampling
from gengen.config.schema import build
from gengen.errors import UserError
from gengen.evaluation.best_of import best_drawn, best_of, image_reward
from gengen.generation.image.files import Drawn


def flat(*levels: int) -> Tensor:
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)


def brightness(images: Tensor, prompts: list[str]) -> Tensor:
    """Of "dark", the darker the better."""
    sign = torch.tensor([-1.0 if prompt == "dark" else 1.0 for prompt in prompts])
    return sign * images.double().mean((1, 2, 3))


def test_the_best_of_each_group_is_kept() -> None:
    images = flat(10, 30, 20, 5, 1, 9)
    rows, scores = best_of(images, ["bright"] * 3 + ["dark"] * 3, brightness, 3)
    assert rows.tolist() == [1, 4] and scores.tolist() == [30, -1]


def test_what_cannot_be_scored_is_passed_over_and_the_first_of_equals_wins() -> None:
    nan = float("nan")
    scores = torch.tensor([nan, 3.0, 3.0, nan, nan, nan])
    rows, _ = best_of(flat(*range(6)), [""] * 6, lambda images, prompts: scores, 3)
    assert rows.tolist() == [1, 3]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 12])
def test_groups_go_over_the_edges_of_batches(size: int) -> None:
    levels = [3, 9, 1, 200, 100, 50, 7, 8, 9, 4, 5, 6]
    facts = [{"index": i, "prompt": "dark" if 3 <= i < 6 else "bright"} for i in range(12)]
    parts = [Drawn(flat(*levels[i : i + size]), facts[i : i + size]) for i in range(0, 12, size)]
    kept = list(best_drawn(parts, brightness, 3))
    assert [fact["index"] for part in kept for fact in part.facts] == [1, 5, 8, 11]
    assert torch.equal(torch.cat([part.images for part in kept]), flat(9, 50, 9, 6))
    assert [fact["reward"] for part in kept for fact in part.facts] == [9, -50, 9, 6]


def test_an_unknown_reward_and_half_a_request_are_one_message() -> None:
    with pytest.raises(UserError, match=r"no reward of pictures is called 'follow_prompt'.*\n.*follows_prompt"):
        image_reward("follow_prompt", lambda: None, print)  # type: ignore[arg-type,return-value]
    for half in ({"best_of": 4}, {"reward": "follows_prompt"}):
        with pytest.raises(UserError, match="best_of=N and reward=NAME go together"):
            build(DiffusionSampling, {"run": "r"} | half).check()
