"""What answers are worth: by a reward model, by a function, by a sum of them; and the best of several."""

import json
import math
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gengen.cli.sample_text import sample_text
from gengen.config.commands import DecodingSettings, TextSampling
from gengen.config.model import GPTConfig
from gengen.config.stage import weighted_reward
from gengen.data.dialogue.template import prompt_tokens
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.text import rewards
from gengen.generation.text.best_of import best_of
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.rewards import Answer, Scorer, load_reward
from gengen.models.gpt import GPT
from gengen.models.reward import RewardModel
from gengen.registry import REWARDS, register_reward
from gengen.training.monitor import interruption as signals
from gengen.training.monitor import watchdog
from gengen.training.monitor.interruption import Interruption

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
            p.copy_(
                torch.randn(p.shape, generator=draw) * (0.2 if p.dim() < 2 else p.shape[-1] ** -0.5) + (p.dim() < 2)
            )
    model.normalize(torch.tensor([1.0, 4.0]))
    return Scorer(model, CHAT)


QUESTIONS, SAID, ENDED = ["why", "how so?", "why"], ["because", "so", "no"], [True, False, True]


def test_a_score_is_read_at_the_last_token_of_a_users_question_and_its_answer(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end token, if it has ended; whatever else is scored with it."""
    by_hand = []
    for question, said, ended in zip(QUESTIONS, SAID, ENDED, strict=True):
        asked = [START, USER, *CHAT.encode(question), END, ASSISTANT]
        with torch.no_grad():
            by_hand.append(scorer.model(torch.tensor([[*asked, *CHAT.encode(said), *[END] * ended]]))[0, -1].item())
    raw = scorer.raw(QUESTIONS, SAID, ENDED)
    torch.testing.assert_close(raw, torch.tensor(by_hand))
    torch.testing.assert_close(scorer.score(QUESTIONS, SAID, ENDED), (raw - 2.5) / 1.5)
    assert (scorer.raw(QUESTIONS, SAID) == raw).tolist() == [
        True,
        False,
        True,
    ]  # all are whole if nothing is said of it
    monkeypatch.setattr(rewards, "BATCH", 2)
    torch.testing.assert_close(scorer.raw(QUESTIONS, SAID, ENDED), raw)


def answers() -> list[Answer]:
    asked = [prompt_tokens(CHAT, [{"role": "user", "content": question}]) for question in QUESTIONS]
    return [Answer(p, CHAT.encode(s), e, q, s) for p, s, e, q in zip(asked, SAID, ENDED, QUESTIONS, strict=True)]


def test_rewards_add_up_with_their_weights(scorer: Scorer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rewards, "load_generator", lambda *_, **__: scorer)
    by_function = torch.tensor(
        [len(s) + 100.0 * e + 1000 * len(q) for q, s, e in zip(QUESTIONS, SAID, ENDED, strict=True)]
    )
    total = load_reward(["letters", "0.5*runs/RM", "-2*letters"], tmp_path, CHAT)(answers())
    torch.testing.assert_close(total, 0.5 * scorer.score(QUESTIONS, SAID, ENDED) - by_function)
    assert load_reward(["letters", "0.1*no_idea_of_e"], tmp_path, CHAT)(answers()).isnan().tolist() == [
        True,
        False,
        False,
    ]


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
    with pytest.raises(
        UserError, match="runs/RM was trained with another tokenizer; start it from the same run as the policy"
    ):
        load_reward(["runs/RM"], tmp_path, other)
    with pytest.raises(UserError, match="runs/SFT is no reward model: stage=reward trains one"):
        load_reward(["2*runs/SFT"], tmp_path, CHAT)


def test_a_reward_model_draws_nothing(scorer: Scorer) -> None:
    with pytest.raises(
        UserError, match="runs/RM scores answers and draws none: sample another run with best_of=8 reward=runs/RM"
    ):
        sample_text(scorer, TextSampling(run="runs/RM"), print)


# --- a user's own


def raises(prompt: str, response: str, ended: bool) -> float:
    raise ValueError("no idea")


def deep(prompt: str, response: str, ended: bool) -> float:
    return json.loads(response)["score"]  # type: ignore[no-any-return]


def exits(prompt: str, response: str, ended: bool) -> float:
    sys.exit(3)


def asserts(prompt: str, response: str, ended: bool) -> float:
    assert ended, "cut off"
    return raises(prompt, response, ended)


def recurs(prompt: str, response: str, ended: bool) -> float:
    return recurs(prompt, response, ended)


def refuses(prompt: str, response: str, ended: bool) -> float:
    raise UserError("asks for no animal")


async def waits(prompt: str, response: str, ended: bool) -> float:
    return 1.0


def yields(prompt: str, response: str, ended: bool) -> Any:
    yield 1.0


class Verdict:
    def __init__(self, prompt: str, response: str, ended: bool):
        pass


def two(prompt: str, response: str) -> float:
    return 1.0


def four(prompt: str, response: str, ended: bool, reference: str) -> float:
    return 1.0


def by_name(*, prompt: str, response: str, ended: bool) -> float:
    return 1.0


def says(value: Any) -> Any:
    def reward(prompt: str, response: str, ended: bool) -> Any:
        return value

    return reward


CALLED = "it is called as mine(prompt, response, ended)"
GONE_WRONG: dict[str, tuple[Any, str]] = {  # a reward, and what the message says of it
    "raises": (raises, "reward mine raised ValueError: no idea\n  at .*test_rewards.py, line [0-9]+, in raises"),
    "raises in what it calls": (deep, "raised JSONDecodeError: .*\n  at .*test_rewards.py, line .*, in deep"),
    "exits": (exits, "raised SystemExit: 3"),
    "asserts": (asserts, "raised ValueError: no idea\n  at .*, in raises"),
    "never returns": (recurs, "raised RecursionError"),
    "refuses the prompt": (refuses, "raised UserError: asks for no animal"),
    "a coroutine": (waits, "reward mine returned coroutine"),
    "a generator": (yields, "reward mine returned generator"),
    "an object": (Verdict, "reward mine returned Verdict"),
    "a text": (says("0.5"), "reward mine returned str '0.5'; a number is due, or None where it cannot say"),
    "bytes": (says(b"1"), "returned bytes b'1'"),
    "a list of one": (says([0.5]), r"returned list \[0.5\]"),
    "a score for each of three": (says([1.0, 2.0, 3.0]), r"returned list \[1.0, 2.0, 3.0\]"),
    "nothing in a tuple": (says(()), r"returned tuple \(\)"),
    "a dictionary": (says({"score": 1}), "returned dict {'score': 1}"),
    "a tensor of two": (says(torch.ones(2)), r"returned Tensor tensor\(\[1., 1.\]\)"),
    "a complex number": (says(1j), "returned complex 1j"),
    "a number beyond all": (says(10**400), "returned int 1000"),
    "infinity": (says(math.inf), "reward mine is inf, times 2, where only finite numbers can be compared"),
    "minus infinity": (says(-math.inf), "reward mine is -inf, times 2"),
    "more than fp32 holds": (says(1e39), "reward mine is inf, times 2"),
    "more than fp32 holds when weighed": (says(3e38), r"reward mine is 3e\+38, times 2"),
    "takes two": (two, rf"mine is test_rewards.mine\(prompt: str, response: str\) -> float; {re.escape(CALLED)}"),
    "takes four": (four, rf"reference: str\) -> float; {re.escape(CALLED)}"),
    "takes names alone": (by_name, rf"is test_rewards.mine\(\*, prompt.*; {re.escape(CALLED)}"),
    "no function": (3, f"reward mine is test_rewards.mine, which is no function; {re.escape(CALLED)}"),
}


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], rewards.Reward]:
    """Twice a reward of this module called mine."""

    def load(function: Any) -> rewards.Reward:
        monkeypatch.setattr(sys.modules[__name__], "mine", function, raising=False)
        monkeypatch.setitem(REWARDS, "mine", f"{__name__}:mine")
        return load_reward(["2*mine"], Path(), CHAT)

    return load


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("kind", GONE_WRONG)
def test_a_reward_gone_wrong_is_one_message(own: Callable[[Any], rewards.Reward], kind: str) -> None:
    """That names it, what it did, and for what: at once where it cannot be called."""
    function, words = GONE_WRONG[kind]
    with pytest.raises(UserError, match=words) as error:
        own(function)(answers())
    asked = "\n  prompt: 'why'\n  answer: 'because' (ended)"
    assert str(error.value).endswith(asked) != (CALLED in str(error.value))


def test_what_a_message_shows_is_short(own: Callable[[Any], rewards.Reward]) -> None:
    found = [Answer([0], [5], False, "why\n", "no " * 500)]
    with pytest.raises(UserError) as error:
        own(says("no " * 500))(found)
    asked, said = str(error.value).splitlines()[1:]
    assert asked == r"  prompt: 'why\n'" and said.startswith("  answer: 'no no") and said.endswith("… (cut off)")
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("value,worth", [
    (True, 1), (3, 3), (0.5, 0.5), (np.float32(0.25), 0.25), (np.int64(-2), -2), (torch.tensor(0.5), 0.5),
    (torch.ones(1, requires_grad=True), 1), (Fraction(1, 4), 0.25), (Decimal("0.5"), 0.5),
])  # fmt: skip
def test_any_kind_of_number_is_a_reward(own: Callable[[Any], rewards.Reward], value: Any, worth: float) -> None:
    assert own(says(value))(answers()).tolist() == [2 * worth] * 3


def test_none_cannot_say(own: Callable[[Any], rewards.Reward]) -> None:
    """It is left out, like NaN, whatever other rewards say."""
    assert own(says(None))(answers()).isnan().all() and own(says(math.nan))(answers()).isnan().all()
    own(lambda prompt, response, ended: None if "b" in response else 1)
    assert load_reward(["mine", "letters"], Path(), CHAT)(answers()).isnan().tolist() == [True, False, False]


def test_a_reward_is_polled_for_signals_before_each_answer(own: Callable[[Any], rewards.Reward]) -> None:
    """So one that is slow is not taken for one that hangs, and a signal need not wait for all answers."""
    asked = list[str]()
    slow = own(lambda prompt, response, ended: asked.append(response) or 1.0)
    polls = iter([False, False, True])
    assert slow(answers(), lambda: next(polls)).isnan().tolist() == [False, False, True]
    assert asked == ["because", "so"]


def test_a_reward_that_hangs_is_found_by_the_watchdog(
    own: Callable[[Any], rewards.Reward], monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    """One message; the stacks name the function."""
    ended, codes = threading.Event(), list[int]()
    monkeypatch.setattr(watchdog.os, "_exit", lambda code: codes.append(code) or ended.set())

    def hangs(prompt: str, response: str, is_whole: bool) -> float:
        assert ended.wait(30)
        return 1.0

    interruption = Interruption()
    with watchdog.Watchdog(0.1, lambda: interruption.polls, tmp_path / "stacks.txt"):
        own(hangs)(answers()[:1], interruption)
    said = capsys.readouterr().err
    assert codes and "error: nothing has moved for 0 s (trainer.watchdog); the stacks of all threads are in" in said
    assert re.search(r'test_rewards.py", line \d+ in hangs', (tmp_path / "stacks.txt").read_text())


def test_a_second_signal_ends_at_once_and_says_so(monkeypatch: Any, capfd: Any) -> None:
    """Out of a reward that hangs, say."""
    codes = list[int]()
    monkeypatch.setattr(signals.os, "_exit", codes.append)
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption() and capfd.readouterr().err == ""
        signal.raise_signal(signal.SIGINT)
    assert codes == [130]
    assert capfd.readouterr().err == "error: a second signal came; ended at once, and nothing more is saved\n"


# --- the best of several


def lengths(found: Sequence[Answer]) -> Tensor:
    assert [CHAT.decode(answer.prompt) for answer in found] == [answer.question for answer in found]
    return torch.tensor([float(len(answer.text)) for answer in found])


def test_the_best_of_each_prompts_own(generator: TextGenerator) -> None:
    """The more are drawn, the better the best is; each is one of those that were drawn, and two are the best of either
    half.
    """
    prompts, settings = ["once", [0, 5, 6], ""], DecodingSettings(max_tokens=12, seed=3, temperature=1.5)
    drawn = list(generator.samples(prompts, settings, n=16))
    worth = [len(sample.text) for sample in drawn]
    means = []
    for of in (1, 2, 4, 8, 16):
        found = list(best_of(generator, prompts, lengths, settings, n=16 // of, of=of))
        assert [sample.text for sample in found] == [
            drawn[at + worth[at : at + of].index(max(worth[at : at + of]))].text for at in range(0, 48, of)
        ]
        assert [sample.prompt for sample in found] == [
            p for p in (drawn[0].prompt, drawn[16].prompt, "") for _ in range(16 // of)
        ]
        means.append(sum(len(sample.text) for sample in found) / len(found))
    assert means == sorted(means) and means[-1] > means[0]


def unrated(found: Sequence[Answer]) -> Tensor:
    return torch.full((4,), math.nan)


def test_what_cannot_be_scored_is_not_the_best(generator: TextGenerator) -> None:
    def rated(found: Sequence[Answer]) -> Tensor:
        assert [answer.prompt[0] for answer in found] == [0] * 4
        return torch.tensor([math.nan, -9.0, math.nan, -8.0])

    drawn = generator.generate("once", n=4, max_tokens=5)
    (best,) = best_of(generator, ["once"], rated, DecodingSettings(max_tokens=5), n=1, of=4)
    assert best.index == 3 and best.text == drawn[3].text
    (one,) = best_of(generator, ["once"], unrated, DecodingSettings(max_tokens=5), n=1, of=4)
    assert one in drawn


def test_the_first_is_the_best_where_none_can_be_scored(generator: TextGenerator) -> None:
    drawn = generator.generate("once", n=4, max_tokens=5)
    (first,) = best_of(generator, ["once"], unrated, DecodingSettings(max_tokens=5), n=1, of=4)
    assert (first.index, first.text) == (0, drawn[0].text)


def test_a_chat_models_prompt_is_a_users_message() -> None:
    """As text; tokens are taken as they are."""
    model = GPT(GPTConfig(**SHAPE)).eval()  # type: ignore[arg-type]
    generator = TextGenerator(model, CHAT)
    asked = [START, USER, *CHAT.encode("why?"), END, ASSISTANT]
    assert generator.prompt_tokens("why?") == generator.prompt_tokens(asked) == asked
    assert TextGenerator(model, TextTokenizer.byte()).prompt_tokens("why?") == [0, *CHAT.encode("why?")]
    said, same = generator.generate(["why?", asked], max_tokens=3, temperature=0)
    assert said.tokens == same.tokens and (said.prompt, same.prompt) == ("why?", "why?")
