"""Filters in the server: prompts, answers and streams are what the library's filters make of the library's samples."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from gengen import registry
from gengen.errors import UserError
from gengen.generation.filters.base import FilterRequest, Finding, filtered_sample
from gengen.generation.text.generator import TextGenerator
from gengen.registry import register_filter
from gengen.serving.app import Application
from helpers.served import ENDLESS, during, served_here

SETTINGS: dict[str, Any] = {"max_tokens": 60, "temperature": 1.0, "seed": 3, "n": 4}


class Rare:
    """Finds runs of two characters of the byte model's random texts; reads prompts, and looks 3 characters around."""

    reach, reads_prompts = 3, True

    def find(self, text: str, prompt: str) -> Sequence[Finding]:
        pairs = ((i, text[i : i + 2]) for i in range(len(text) - 1))
        return [Finding(i, i + 2, "pair") for i, pair in pairs if pair.isalpha() and pair.isascii()]


class Long(Rare):
    """Finds whole texts."""

    reach, reads_prompts = None, False  # type: ignore[assignment]

    def find(self, text: str, prompt: str) -> Sequence[Finding]:
        return [Finding(0, len(text), "whole")] if len(text) > 30 and prompt == "12" else []


def make_rare(request: FilterRequest) -> Rare:
    return Rare()


def make_long(request: FilterRequest) -> Long:
    return Long()


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "FILTERS", dict(registry.FILTERS))
    register_filter("rare")(make_rare)
    register_filter("long")(make_long)
    yield


def streamed(answer: httpx.Response) -> dict[int, dict[str, Any]]:
    """The chunks of a stream, joined."""
    found: dict[int, dict[str, Any]] = {}
    for line in answer.text.split("\n\n"):
        if line.startswith("data: {"):
            for part in json.loads(line.removeprefix("data: "))["choices"]:
                whole = found.setdefault(part["index"], {"text": ""})
                assert "finish_reason" not in whole, "something follows the end"
                whole["text"] += part["text"]
                if part["finish_reason"]:
                    whole |= {key: part[key] for key in ("finish_reason", "gengen")}
    return found


@pytest.mark.parametrize("action", ["redact", "refuse"])
@pytest.mark.parametrize("name", ["rare", "long"])
def test_answers_are_the_library_s_filtered_samples(runs: Path, story: TextGenerator, name: str, action: Any) -> None:
    """Each choice, whole and streamed, with its reason; some are changed and some are not."""
    filters = [Rare()] if name == "rare" else [Long()]
    samples = story.generate("12", **SETTINGS, overflow="end")
    expected = [filtered_sample(filters, sample, action) for sample in samples]
    assert any(a.text != b.text for a, b in zip(expected, samples, strict=True))

    async def test(post: Any, application: Application) -> None:
        asked = {"model": "story", "prompt": "12", **SETTINGS}
        whole = (await post("/v1/completions", **asked)).json()["choices"]
        parts = streamed(await post("/v1/completions", **asked, stream=True))
        for sample, choice in zip(expected, whole, strict=True):
            assert choice["text"] == sample.text == parts[choice["index"]]["text"]
            reason = {"filtered": "content_filter", "end": "stop"}.get(sample.finish_reason, sample.finish_reason)
            assert choice["finish_reason"] == reason == parts[choice["index"]]["finish_reason"]
            assert choice["gengen"]["finish_reason"] == sample.finish_reason
            assert choice["gengen"].get("found") == (
                {"rare": "pair", "long": "whole"}[name] if reason == "content_filter" else None
            )
            assert choice["gengen"] == parts[choice["index"]]["gengen"]

    during(served_here(runs, filter=[name], filter_action=action), test)


def test_a_refused_prompt_names_its_filter_and_a_redacted_one_is_read_redacted(
    runs: Path, story: TextGenerator, chat: TextGenerator
) -> None:
    mail = "write to me@example.org"
    messages = [{"role": "system", "content": "hi"}, {"role": "user", "content": mail}]

    async def refusing(post: Any, application: Application) -> None:
        error = (await post("/v1/completions", model="story", prompt=["a", mail], n=2)).json()["error"]
        assert (error["param"], error["code"]) == ("prompt", "content_filter")
        assert error["message"] == "prompt: filter patterns refuses it: e-mail at characters 9 to 22"
        error = (await post("/v1/chat/completions", model="chat", messages=messages)).json()["error"]
        assert error["param"] == "messages[1].content" and "filter patterns" in error["message"]
        assert application.jobs == 0

    async def redacting(post: Any, application: Application) -> None:
        asked = {"max_tokens": 8, "seed": 1, "temperature": 1.0}
        answer = (await post("/v1/completions", model="story", prompt=mail, echo=True, **asked)).json()
        expected = story.generate("write to [e-mail]", **asked, overflow="end")[0]
        assert answer["choices"][0]["text"] == "write to [e-mail]" + expected.text
        tokens = story.prompt_tokens(mail)
        error = (await post("/v1/completions", model="story", prompt=tokens, **asked)).json()["error"]
        assert error["code"] == "content_filter" and "tokens" in error["message"]
        error = (await post("/v1/completions", model="story", prompt=[257], **asked)).json()["error"]
        assert (error["code"], error["param"]) == ("invalid_value", "prompt"), "no token, before any filter reads it"
        last = [{"role": "user", "content": mail}]
        answer = (await post("/v1/chat/completions", model="chat", messages=last, **asked)).json()
        expected = chat.generate("write to [e-mail]", **asked, overflow="end")[0]
        assert answer["choices"][0]["message"]["content"] == expected.text

    during(served_here(runs, filter=["patterns"], filter_action="refuse"), refusing)
    during(served_here(runs, filter=["patterns"]), redacting)


def test_nothing_tells_the_tokens_of_what_is_left_out(runs: Path) -> None:
    """Log-probabilities are refused by name, and so are next tokens, of which a text could be made."""

    async def test(post: Any, application: Application) -> None:
        text, said = (
            {"model": "story", "prompt": "1"},
            {"model": "chat", "messages": [{"role": "user", "content": "1"}]},
        )
        for path, body, key in [
            ("/v1/completions", text | {"logprobs": 0}, "logprobs"),
            ("/v1/completions", text | {"prompt_logprobs": True}, "prompt_logprobs"),
            ("/v1/chat/completions", said | {"logprobs": True}, "logprobs"),
            ("/v1/chat/completions", said | {"prompt_logprobs": True}, "prompt_logprobs"),
            ("/gengen/v1/next", text, "model"),
        ]:
            error = (await post(path, **body)).json()["error"]
            assert (error["param"], error["code"]) == (key, "unsupported_parameter"), error

    during(served_here(runs, filter=["rare"]), test)


def test_an_answer_that_must_obey_is_refused_and_never_redacted(runs: Path) -> None:
    """[e-mail] would not match the expression any more."""

    async def test(post: Any, application: Application) -> None:
        asked = {"model": "story", "prompt": "1", "max_tokens": 40}
        answer = (await post("/v1/completions", **asked, choice=["I am me@example.org, you know"])).json()
        choice = answer["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == ("I am ", "content_filter")
        assert choice["gengen"] == {"finish_reason": "filtered", "found": "e-mail"}
        assert (await post("/v1/completions", **asked, choice=["I am here"])).json()["choices"][0][
            "text"
        ] == "I am here"

    during(served_here(runs, filter=["patterns"]), test)


def test_a_refused_choice_gives_its_row_back(runs: Path) -> None:
    """Long before the tokens that it might have drawn; the others of its request go on."""

    async def test(post: Any, application: Application) -> None:
        asked = {"model": "story", "prompt": "12", "n": 2, "seed": 3, **ENDLESS}
        answer = (await post("/v1/completions", **asked)).json()
        assert [choice["finish_reason"] for choice in answer["choices"]] == ["content_filter"] * 2
        assert answer["usage"]["completion_tokens"] < 1000
        assert application.runs["story"].worker.finishes["filtered"] == 2  # type: ignore[attr-defined]

    during(served_here(runs, filter=["rare"], filter_action="refuse"), test)


def test_a_filter_that_is_none_stops_the_server(runs: Path, tmp_path: Path) -> None:
    for name, message in [("patern", "filter=patern: no such filter"), ("copies:8", "trained on is not at hand")]:
        with pytest.raises(UserError, match=message):
            served_here(runs, filter=[name])
    (tmp_path / "list").write_text("bear\n")
    application = served_here(runs, filter=[f"words:{tmp_path}/list", "patterns"])
    assert application.runs["story"].facts["gengen"]["filters"] == ["words", "patterns"], "no path is told"
