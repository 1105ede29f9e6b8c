"""What answers are worth: by a reward model, by a function, by a sum of them; and the best of several."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gengen.config.errors import UserError
from gengen.config.model import GPTConfig
from gengen.config.stage import weighted_reward
from gengen.data.chat import prompt_tokens
from gengen.data.tokenizer import TextTokenizer
from gengen.generation import rewards
from gengen.generation.rewards import Answer, Scorer, best_of, load_reward
from gengen.generation.text import TextGenerator
from gengen.models.gpt import GPT
from gengen.models.reward import RewardModel
from gengen.registry import register_reward

CHAT = TextTokenizer.byte().with_chat()
START, USER, ASSISTANT, END = 0, 258, 259, 260
SHAPE = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "ff": 48, "vocab_size": CHAT.vocab_size, "context": 64}


@register_reward("letters")
def letters(prompt: str, response: str, ended: bool) -> float:
    return len(response) + 100.0 * ended + 1000.0 * len(prompt)


@register_reward("no_idea_of_e")
def no_idea_of_e(prompt: str, response: str, ended: bool) -> float:
    return math.nan if "e" in response else 1.0


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    model, draw = RewardModel(GPTConfig(**SHAPE)).eval(), torch.Generator().manual_seed(0)  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * (0.2 if p.dim() < 2 else p.shape[-1] ** -0.5) + (p.dim() < 2))
    model.normalize(torch.tensor([1.0, 4.0]))
    return Scorer(model, CHAT)


QUESTIONS, SAID, ENDED = ["why", "how so?", "why"], ["because", "so", "no"], [True, False, True]


def test_a_score_is_read_at_the_last_token_of_a_users_question_and_its_answer(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end token, if it has ended; whatever else is scored with it."""
    by_hand = []
    for question, said, ended in zip(QUESTIONS, SAID, ENDED, strict=True):
        asked = [START, USER, *CHAT.encode(question), END, ASSISTANT]
        with torch.no_grad():
            by_hand.append(scorer.model(torch.tensor([[*asked, *CHAT.encode(said), *[END] * ended]]))[0, -1].item())
    raw = scorer.raw(QUESTIONS, SAID, ENDED)
    torch.testing.assert_close(raw, torch.tensor(by_hand))
    torch.testing.assert_close(scorer.score(QUESTIONS, SAID, ENDED), (raw - 2.5) / 1.5)
    assert (scorer.raw(QUESTIONS, SAID) == raw).tolist() == [True, False, True]  # all are whole if nothing is said of it
    monkeypatch.setattr(rewards, "BATCH", 2)
    torch.testing.assert_close(scorer.raw(QUESTIONS, SAID, ENDED), raw)


def answers() -> list[Answer]:
    asked = [prompt_tokens(CHAT, [{"role": "user", "content": question}]) for question in QUESTIONS]
    return [Answer(p, CHAT.encode(s), e, q, s) for p, s, e, q in zip(asked, SAID, ENDED, QUESTIONS, strict=True)]


def test_rewards_add_up_with_their_weights(scorer: Scorer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rewards, "load_generator", lambda *_, **__: scorer)
    by_function = torch.tensor([len(s) + 100.0 * e + 1000 * len(q) for q, s, e in zip(QUESTIONS, SAID, ENDED, strict=True)])
    total = load_reward(["letters", "0.5*runs/RM", "-2*letters"], tmp_path, CHAT)(answers())
    torch.testing.assert_close(total, 0.5 * scorer.score(QUESTIONS, SAID, ENDED) - by_function)
    assert load_reward(["letters", "0.1*no_idea_of_e"], tmp_path, CHAT)(answers()).isnan().tolist() == [True, False, False]


@pytest.mark.parametrize("name,read", [
    ("runs/RM", (1.0, "runs/RM")), ("0.5*runs/RM", (0.5, "runs/RM")), ("-1e-1*a", (-0.1, "a")),
])  # fmt: skip
def test_a_weight_stands_before_a_name(name: str, read: tuple[float, str]) -> None:
    assert weighted_reward(name) == read


def test_what_is_no_weight_is_said() -> None:
    with pytest.raises(UserError, match=r"stage.reward=half\*runs/RM: write NAME or WEIGHT\*NAME"):
        weighted_reward("half*runs/RM")


def test_a_reward_of_another_tokenizer_and_what_is_no_reward_are_refused(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, generator: TextGenerator
) -> None:
    other = TextTokenizer.train(["a b a b " * 9], 300).with_chat()
    found: list[object] = [scorer, generator]
    monkeypatch.setattr(rewards, "load_generator", lambda *_, **__: found.pop(0))
    with pytest.raises(UserError, match="runs/RM was trained with another tokenizer; start it from the same run as the policy"):
        load_reward(["runs/RM"], tmp_path, other)
    with pytest.raises(UserError, match="runs/SFT is no reward model: stage=reward trains one"):
        load_reward(["2*runs/SFT"], tmp_path, CHAT)


def test_a_reward_model_draws_nothing(scorer: Scorer) -> None:
    from gengen.config.sample import TextSampling

    with pytest.raises(UserError, match="runs/RM scores answers and draws none: sample another run with best_of=8 reward=runs/RM"):
        scorer.command(TextSampling(run="runs/RM"), print)


# --- the best of several


def lengths(found: Sequence[Answer]) -> Tensor:
    assert [CHAT.decode(answer.prompt) for answer in found] == [answer.question for answer in found]
    return torch.tensor([float(len(answer.text)) for answer in found])


def test_the_best_of_each_prompts_own(generator: TextGenerator) -> None:
    """The more are drawn, the better the best is; each is one of those that were drawn, and two are the best of either half."""
    prompts, settings = ["once", [0, 5, 6], ""], {"max_tokens": 12, "seed": 3, "temperature": 1.5}
    drawn = generator.generate(prompts, n=16, **settings)
    worth = [len(sample.text) for sample in drawn]
    means = []
    for of in (1, 2, 4, 8, 16):
        found = list(best_of(generator, prompts, 16 // of, of, lengths, **settings))
        assert [sample.text for sample in found] == [
            drawn[at + worth[at : at + of].index(max(worth[at : at + of]))].text for at in range(0, 48, of)
        ]
        assert [sample.prompt for sample in found] == [p for p in (drawn[0].prompt, drawn[16].prompt, "") for _ in range(16 // of)]
        means.append(sum(len(sample.text) for sample in found) / len(found))
    assert means == sorted(means) and means[-1] > means[0]


def test_what_cannot_be_scored_is_not_the_best(generator: TextGenerator) -> None:
    def rated(found: Sequence[Answer]) -> Tensor:
        assert [answer.prompt[0] for answer in found] == [0] * 4
        return torch.tensor([math.nan, -9.0, math.nan, -8.0])

    drawn = generator.generate("once", n=4, max_tokens=5)
    (best,) = best_of(generator, ["once"], 1, 4, rated, max_tokens=5)
    assert best.index == 3 and best.text == drawn[3].text
    (one,) = best_of(generator, ["once"], 1, 4, lambda found: torch.full((4,), math.nan), max_tokens=5)
    assert one in drawn


def test_a_chat_models_prompt_is_a_users_message() -> None:
    """As text; tokens are taken as they are."""
    model = GPT(GPTConfig(**SHAPE)).eval()  # type: ignore[arg-type]
    generator = TextGenerator(model, CHAT)
    asked = [START, USER, *CHAT.encode("why?"), END, ASSISTANT]
    assert generator.prompt_tokens("why?") == generator.prompt_tokens(asked) == asked
    assert TextGenerator(model, TextTokenizer.byte()).prompt_tokens("why?") == [0, *CHAT.encode("why?")]
    said, same = generator.generate(["why?", asked], max_tokens=3, temperature=0)
    assert said.tokens == same.tokens and (said.prompt, same.prompt) == ("why?", "why?")
