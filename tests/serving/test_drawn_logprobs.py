"""Log-probabilities after the controls, over HTTP: those of the library."""

from pathlib import Path
from typing import Any

import pytest

from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.watermark import Watermark
from gengen.serving.app import Application
from helpers.served import during, served_here

SETTINGS: dict[str, Any] = {"max_tokens": 8, "temperature": 0.7, "top_k": 2, "seed": 3}
MESSAGES = [{"role": "user", "content": "Hi"}]


def test_both_endpoints_tell_what_was_drawn_from(runs: Path, story: TextGenerator, chat: TextGenerator) -> None:
    """Two tokens were possible in each place; the third likeliest is impossible, and -9999 says so."""
    one = story.generate("Once", **SETTINGS, overflow="end", logprobs_of="drawn")[0]
    other = chat.generate("Hi", **SETTINGS, overflow="end", logprobs_of="drawn")[0]

    async def test(post: Any, application: Application) -> None:
        drawn = {**SETTINGS, "logprobs_of": "drawn"}
        answer = (await post("/v1/completions", model="story", prompt="Once", logprobs=3, **drawn)).json()
        found = answer["choices"][0]["logprobs"]
        assert found["token_logprobs"] == pytest.approx(one.logprobs, abs=1e-5)
        assert [sorted(top.values())[0] for top in found["top_logprobs"]] == [-9999.0] * len(one.tokens)
        plain = (await post("/v1/completions", model="story", prompt="Once", logprobs=3, **SETTINGS)).json()
        assert plain["choices"][0]["text"] == answer["choices"][0]["text"]
        assert plain["choices"][0]["logprobs"]["token_logprobs"] != found["token_logprobs"]
        asked = {"model": "chat", "messages": MESSAGES, "logprobs": True, "top_logprobs": 1}
        answer = (await post("/v1/chat/completions", **asked, **drawn)).json()
        content = answer["choices"][0]["logprobs"]["content"]
        assert [entry["logprob"] for entry in content] == pytest.approx(other.logprobs, abs=1e-5)

    during(served_here(runs), test)


def test_they_go_with_log_probabilities_and_without_a_mark(runs: Path) -> None:
    """What a mark adds to each token would be read off them."""

    async def test(post: Any, application: Application) -> None:
        asked = {"model": "story", "prompt": "1", "logprobs_of": "drawn"}
        for more, code in [({}, "invalid_value"), ({"logprobs": 2}, "unsupported_parameter")]:
            error = (await post("/v1/completions", **asked, **more)).json()["error"]
            assert (error["param"], error["code"]) == ("logprobs_of", code)
        assert (await post("/v1/completions", model="story", prompt="1", logprobs=2)).status_code == 200

    during(served_here(runs, watermark=Watermark(bytes(32))), test)
