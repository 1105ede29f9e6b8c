"""Clients that people use, against a real process: they need nothing but base_url."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import openai
import pytest
from pydantic import BaseModel, Field

from gengen.generation.text.generator import TextGenerator
from helpers.served import ENDLESS, Process, both, connection, new_process, request

OVER = {"logit_bias": {"0": -100}, "overflow": "slide"}
MESSAGES: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def client(server: Process) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def test_openai_lists_models_and_says_which_are_missing(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["story", "chat"]
    assert client.models.retrieve("chat").owned_by == "gengen"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("other")
    assert error.value.code == "model_not_found" and error.value.request_id


def test_openai_completions_whole_and_streamed(client: openai.OpenAI, story: TextGenerator) -> None:
    sample = story.generate("Once", seed=7, max_tokens=12, temperature=1.0, overflow="end")[0]
    settings: Any = {"model": "story", "prompt": "Once", "seed": 7, "max_tokens": 12}
    whole = client.completions.create(**settings, logprobs=3)
    assert whole.choices[0].text == sample.text and whole.usage is not None
    assert whole.choices[0].logprobs is not None and whole.choices[0].logprobs.token_logprobs is not None
    assert "".join(part.choices[0].text for part in client.completions.create(**settings, stream=True)) == sample.text


def test_openai_chat_with_all_that_a_client_sends(client: openai.OpenAI) -> None:
    """Among it nulls, and what is harmless."""
    settings: Any = {"model": "chat", "messages": MESSAGES, "seed": 1, "max_completion_tokens": 9}
    settings |= {"stop": None, "temperature": None, "tools": [], "user": "me", "metadata": {"a": "b"}, "store": False}
    settings["extra_body"] = {"top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1}
    whole = client.chat.completions.create(**settings, logprobs=True, top_logprobs=2)
    message = whole.choices[0].message
    assert message.role == "assistant" and whole.usage is not None
    pieces, usage = [], None
    for chunk in client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        pieces += [choice.delta.content or "" for choice in chunk.choices]
    assert "".join(pieces) == message.content and usage == whole.usage


def test_openais_stream_helper_sees_the_whole_answer(client: openai.OpenAI) -> None:
    settings: Any = {"model": "chat", "messages": MESSAGES, "seed": 2, "max_tokens": 200}
    settings["extra_body"] = {"stop_ids": [*range(100, 116)]}  # it must end: the helper raises after "length"
    with client.chat.completions.stream(**settings) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds.count("content.done") == 1 and "content.delta" in kinds
    assert final.choices[0].message.content == client.chat.completions.create(**settings).choices[0].message.content


def test_openai_asynchronously_several_at_once(server: Process) -> None:
    """Each gets its own text."""

    async def one(client: openai.AsyncOpenAI, seed: int, found: dict[int, str]) -> None:
        settings: Any = {"model": "story", "prompt": "a", "seed": seed, "max_tokens": 8}
        found[seed] = "".join(
            [part.choices[0].text async for part in await client.completions.create(**settings, stream=True)]
        )

    async def test() -> dict[int, str]:
        found: dict[int, str] = {}
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
            async with anyio.create_task_group() as group:
                for seed in range(6):
                    group.start_soon(one, client, seed, found)
            for seed in range(6):
                whole = await client.completions.create(model="story", prompt="a", seed=seed, max_tokens=8)
                assert whole.choices[0].text == found[seed]
        return found

    assert len(set(anyio.run(test).values())) == 6


def test_openai_raw_responses_have_our_headers(client: openai.OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model="story", prompt="a", max_tokens=1, extra_headers={"x-request-id": "mine"}
    )
    assert raw.headers["x-request-id"] == "mine" and raw.parse().object == "text_completion"


@pytest.mark.parametrize(
    "settings, error, param",
    [
        ({"temperature": 5}, openai.BadRequestError, "temperature"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"model": "other"}, openai.NotFoundError, "model"),
        ({"extra_body": {"topk": 3}}, openai.BadRequestError, "topk"),
        ({"response_format": {"type": "xml"}}, openai.BadRequestError, "response_format"),
    ],
)
def test_openai_understands_our_errors(client: openai.OpenAI, settings: Any, error: Any, param: str) -> None:
    with pytest.raises(error) as raised:
        client.chat.completions.create(**{"model": "chat", "messages": MESSAGES} | settings)
    assert raised.value.param == param and raised.value.code and raised.value.body["message"]


@pytest.fixture(scope="module")
def grammarian(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A client of a server that compiles grammars."""
    with new_process(both(runs), tmp_path_factory.mktemp("grammarian") / "said.txt") as server:
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60)


class Age(BaseModel):
    """What a client asks for by a class."""

    name: Literal["cat", "dog"]
    years: Annotated[int, Field(ge=1, le=20)]


def test_openai_parses_what_obeys_its_class(grammarian: openai.OpenAI) -> None:
    """An untrained model answers in the form that was asked for; one that was cut off is said to be."""
    for seed in range(3):
        answer = grammarian.chat.completions.parse(model="chat", messages=MESSAGES, response_format=Age, seed=seed)
        parsed = answer.choices[0].message.parsed
        assert parsed is not None and 1 <= parsed.years <= 20 and answer.choices[0].finish_reason == "stop"
    with pytest.raises(openai.LengthFinishReasonError):
        grammarian.chat.completions.parse(model="chat", messages=MESSAGES, response_format=Age, max_tokens=5)


AGE = {
    "type": "function",
    "function": {"name": "age_of", "parameters": Age.model_json_schema()},
}


def test_openai_gets_calls_of_tools(grammarian: openai.OpenAI) -> None:
    settings: Any = {"model": "chat", "messages": MESSAGES, "tools": [AGE], "tool_choice": "required", "seed": 2}
    choice = grammarian.chat.completions.create(**settings).choices[0]
    called: list[Any] = [*(choice.message.tool_calls or [])]
    assert [call.function.name for call in called] == ["age_of"]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert Age.model_validate_json(called[0].function.arguments)
    with grammarian.chat.completions.stream(**settings) as stream:
        final = stream.get_final_completion().choices[0]
    streamed: list[Any] = [*(final.message.tool_calls or [])]
    assert [call.function.arguments for call in streamed] == [called[0].function.arguments]
    assert final.finish_reason == "tool_calls"
    cut = grammarian.chat.completions.create(**settings, max_tokens=4).choices[0]
    assert (cut.finish_reason, cut.message.tool_calls) == ("length", None) and cut.message.content


def test_completions_are_held_to_expressions_and_choices(grammarian: openai.OpenAI) -> None:
    def texts(**asked: Any) -> list[str]:
        answer = grammarian.completions.create(model="story", prompt="a", n=4, max_tokens=60, seed=1, extra_body=asked)
        return [choice.text for choice in answer.choices]

    assert all(re.fullmatch("[ab]{3}-[0-9]", text) for text in texts(regex="[ab]{3}-[0-9]"))
    assert set(texts(choice=["red", "green"])) <= {"red", "green"}
    assert all(set(text) == {"x"} for text in texts(lark='start: "x"+ "xx"'))


def test_what_a_form_allowed_is_told_with_log_probabilities_alone(grammarian: openai.OpenAI) -> None:
    """At each step of a text of single bytes, how many tokens could come next; streamed too, and without, nothing."""
    ways = {"red": [2, 2, 1], "rug": [2, 2, 1], "green": [2, 1, 1, 1, 1]}
    settings: Any = {"model": "chat", "messages": MESSAGES, "n": 6, "seed": 3, "extra_body": {"choice": [*ways]}}
    told = grammarian.chat.completions.create(**settings, logprobs=True).choices
    assert len({choice.message.content for choice in told}) > 1
    for choice in told:
        assert choice.model_extra is not None and choice.logprobs is not None and choice.logprobs.content is not None
        allowed = choice.model_extra["gengen"]["allowed"]
        assert allowed == ways[choice.message.content or ""] and len(allowed) == len(choice.logprobs.content)
    parts = [part.choices[0] for part in grammarian.chat.completions.create(**settings, logprobs=True, stream=True)]
    ends = {part.index: part.model_extra["gengen"]["allowed"] for part in parts if part.finish_reason}
    assert [ends[i] for i in range(6)] == [ways[choice.message.content or ""] for choice in told]
    for choice in grammarian.chat.completions.create(**settings).choices:
        assert choice.model_extra is not None and choice.model_extra["gengen"].keys() == {"finish_reason"}


def test_openai_retries_when_the_queue_is_full(
    server: Process, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 requests wait: the next one is refused, comes back when Retry-After says, and is served."""
    patient, waited = client.with_options(max_retries=5), list[float]()
    original = patient._sleep_for_retry
    with ExitStack() as held:

        def watched(**words: Any) -> None:
            waited.append(float(words["response"].headers["retry-after"]))
            held.close()
            original(**words)

        monkeypatch.setattr(patient, "_sleep_for_retry", watched)
        for n in (4, 4, *[1] * 16):
            body = {"model": "story", "prompt": "a", "n": n} | ENDLESS
            held.enter_context(connection(server, request("completions", body)))
            if n == 4:
                server.until(lambda: server.figure("gengen_requests_waiting") == 0)
        server.until(lambda: server.figure("gengen_requests_waiting") == 16)
        assert patient.completions.create(model="story", prompt="a", max_tokens=2).choices[0].finish_reason
    assert waited and waited[0] >= 1
    server.until(server.quiet)


def test_openai_leaves_in_the_middle_of_a_stream(server: Process, client: openai.OpenAI) -> None:
    stream = client.completions.create(model="story", prompt="a", stream=True, max_tokens=4000, extra_body=OVER)
    next(iter(stream))
    stream.close()
    server.until(server.quiet)


def test_curl_reads_a_stream(server: Process) -> None:
    body = json.dumps({"model": "chat", "messages": MESSAGES, "max_tokens": 3, "seed": 1, "stream": True})
    command = ["curl", "-sN", f"{server.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    lines = [line for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"


NODE = """
import OpenAI from 'openai';
const client = new OpenAI({ baseURL: process.argv[2], apiKey: 'unused', maxRetries: 0 });
const asked = { model: 'chat', messages: [{ role: 'user', content: 'Hi' }], seed: 3, max_tokens: 9 };
const whole = (await client.chat.completions.create(asked)).choices[0].message.content;
let streamed = '';
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true }))
  streamed += chunk.choices[0]?.delta?.content ?? '';
let refused = '';
try { await client.chat.completions.create({ ...asked, temperature: 9 }); } catch (error) { refused = error.param; }
const models = []; for await (const model of client.models.list()) models.push(model.id);
console.log(JSON.stringify({ same: whole === streamed, refused, models }));
"""


@pytest.mark.skipif(
    not (shutil.which("node") and os.environ.get("OPENAI_NODE")),
    reason="OPENAI_NODE names a folder where `npm install openai` was run",
)
def test_openais_node_client(server: Process, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(Path(os.environ["OPENAI_NODE"]) / "node_modules")
    (tmp_path / "client.mjs").write_text(NODE)
    command = ["node", str(tmp_path / "client.mjs"), f"{server.url}/v1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"same": True, "refused": "temperature", "models": ["story", "chat"]}
