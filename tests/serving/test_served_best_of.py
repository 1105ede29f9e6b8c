"""The best of several texts by a reward run, over HTTP: those that the library chooses, and what they are worth."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gengen.config.commands import DecodingSettings
from gengen.generation.text.best_of import best_of
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.rewards import answer_of, load_reward
from gengen.serving.app import Application
from gengen.serving.best_of import chosen_of
from gengen.serving.pieces import Piece
from helpers.served import during, served_here, write_reward

SETTINGS: dict[str, Any] = {"max_tokens": 20, "temperature": 1.2, "seed": 5, "stop": ["a"]}
ASKED: dict[str, Any] = {"model": "chat", "reward": "reward", "best_of": 6, **SETTINGS}
NAMES = ("story", "chat", "reward")
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def scored(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of text, and beside them `reward`."""
    folder = tmp_path_factory.mktemp("scored")
    for name in ("story", "chat"):
        (folder / name).symlink_to(runs / name)
    write_reward(folder / "reward")
    return folder


def test_the_best_is_the_library_s(scored: Path, chat: TextGenerator) -> None:
    """Stop strings cut texts and not what is scored; the usage counts all that was drawn."""
    settings = DecodingSettings(**SETTINGS, overflow="end")
    reward = load_reward([str(scored / "reward")], scored, chat.tokenizer, "cpu")
    best = next(best_of(chat, ["Hi"], reward, settings, n=1, of=6))
    samples = list(chat.samples(["Hi"], settings, n=6))
    scores = reward([answer_of(chat.prompt_tokens("Hi"), sample) for sample in samples])
    assert len(set(scores.tolist())) > 3 and len({sample.finish_reason for sample in samples}) > 1
    plain = {key: value for key, value in ASKED.items() if key not in ("reward", "best_of")}

    async def test(post: Any, application: Application) -> None:
        answer = (await post("/v1/chat/completions", **ASKED, messages=MESSAGES, n=3)).json()
        order = scores.argsort(descending=True, stable=True).tolist()[:3]
        assert order[0] == best.index and answer["choices"][0]["message"]["content"] == best.text
        for place, (choice, i) in enumerate(zip(answer["choices"], order, strict=True)):
            assert (choice["index"], choice["message"]["content"]) == (place, samples[i].text)
            assert choice["gengen"]["sample"] == i
            assert choice["gengen"]["reward"] == pytest.approx(float(scores[i]), abs=1e-5)
        usage = (await post("/v1/chat/completions", **plain, messages=MESSAGES, n=6)).json()["usage"]
        assert answer["usage"]["completion_tokens"] == usage["completion_tokens"]
        assert answer["usage"]["prompt_tokens"] == usage["prompt_tokens"]

    during(served_here(scored, names=NAMES), test)


def test_each_prompt_has_its_own_best(scored: Path, chat: TextGenerator) -> None:
    """Sample p * best_of + j of prompt p, as the library numbers them; completions echo the right prompt."""
    reward = load_reward([str(scored / "reward")], scored, chat.tokenizer, "cpu")
    found = best_of(chat, ["x", "yz"], reward, DecodingSettings(**SETTINGS, overflow="end"), n=1, of=6)
    best = list(found)

    async def test(post: Any, application: Application) -> None:
        answer = (await post("/v1/completions", **ASKED, prompt=["x", "yz"], echo=True)).json()
        for choice, sample, prompt in zip(answer["choices"], best, ["x", "yz"], strict=True):
            start = chat.tokenizer.decode(chat.prompt_tokens(prompt))
            assert choice["text"] == start + sample.text and choice["gengen"]["sample"] == sample.index

    during(served_here(scored, names=NAMES), test)


def test_of_equal_rewards_the_first_drawn_comes_first() -> None:
    drawn = [Piece(i, text=str(i), drawn=i, reused=9 * (i in (0, 4))) for i in range(8)]
    chosen = chosen_of(drawn, [1, 3, 3, 2, 0, 0, 0, 0], of=4, n=3)
    assert [piece.text for piece in chosen] == ["1", "2", "3", "4", "5", "6"]
    assert [piece.choice for piece in chosen] == list(range(6)) == [0, 1, 2, 3, 4, 5]
    assert [piece.reward for piece in chosen] == [3, 3, 2, 0, 0, 0]
    assert [piece.reused for piece in chosen] == [9] * 6
    assert [piece.text for piece in chosen_of(drawn[:4], [None, -5, None, -6], of=4, n=3)] == ["1", "3", "0"]


@pytest.mark.parametrize(
    "change, status, code, param",
    [
        ({"stream": True}, 400, "invalid_value", "stream"),
        ({"best_of": None}, 400, "invalid_value", "best_of"),
        ({"best_of": 2, "n": 3}, 400, "invalid_value", "best_of"),
        ({"reward": None}, 400, "invalid_value", "best_of"),
        ({"best_of": 17}, 400, "invalid_value", "best_of"),
        ({"reward": "gone"}, 404, "model_not_found", "reward"),
        ({"reward": "story"}, 400, "wrong_kind_of_model", "reward"),
        ({"model": "story"}, 400, "wrong_kind_of_model", "reward"),
        ({"max_tokens": 256}, 400, "context_length_exceeded", "max_tokens"),
        ({"max_tokens": 3000}, 400, "invalid_value", "max_tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen_among(scored: Path, change: dict[str, Any], status: int, code: str, param: str) -> None:
    """Before anything is drawn, in one sentence that names the parameter."""

    async def test(post: Any, application: Application) -> None:
        answer = await post("/v1/completions", **{**ASKED, "prompt": "x", **change})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
        assert application.jobs == 0 and application.runs["chat"].worker.accepted == 0

    during(served_here(scored, names=NAMES), test)


def test_what_was_chosen_is_filtered_like_any_text(scored: Path, chat: TextGenerator) -> None:
    """The reward reads what was drawn; filters what is shown of it."""
    settings = ASKED | {"choice": ["I am me@example.org"], "max_tokens": 40, "stop": []}

    async def test(post: Any, application: Application) -> None:
        answer = (await post("/v1/completions", **settings, prompt="x", n=2)).json()
        for choice in answer["choices"]:
            assert (choice["text"], choice["finish_reason"]) == ("I am ", "content_filter")
            assert choice["gengen"]["found"] == "e-mail" and isinstance(choice["gengen"]["reward"], float)

    during(served_here(scored, names=NAMES, filter=["patterns"]), test)


def test_an_answer_without_an_instruction_takes_what_the_reward_can_read(scored: Path) -> None:
    async def test(post: Any, application: Application) -> None:
        long = [{"role": "user", "content": "Hi" * 110}]
        asked = {"model": "chat", "messages": long, "reward": "reward", "best_of": 2, "seed": 1}
        answer = (await post("/v1/chat/completions", **asked, logit_bias={"0": -100})).json()
        assert answer["choices"][0]["finish_reason"] in ("length", "stop")
        assert torch.tensor([choice["gengen"]["reward"] for choice in answer["choices"]]).isfinite().all()

    during(served_here(scored, names=NAMES), test)
