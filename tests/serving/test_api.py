"""The endpoints of text on a real process: what they answer is what the library draws."""

import json
import random
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gengen.generation.base import Sample
from gengen.generation.text.generator import TextGenerator
from helpers.served import Process

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi, it's me"}]
SPELLED = {"end": "stop", "stop": "stop", "length": "length"}


def events(server: Process, path: str, **tree: Any) -> list[dict[str, Any]]:
    """The events of a stream, of which the last is [DONE]."""
    body = {"stream": True, **tree}
    with httpx.stream("POST", f"{server.url}/v1/{path}", json=body, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store" and answer.headers["x-accel-buffering"] == "no"
        lines = [line for line in answer.read().decode().split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def choices_of(chunks: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The chunks of a stream joined to whole choices, and that each has but one end, which is its last."""
    found: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            whole = found.setdefault(part["index"], {"text": "", "tokens": [], "logprobs": [], "finish_reason": None})
            assert whole["finish_reason"] is None, "something follows the end"
            whole["text"] += part["text"] if "text" in part else part["delta"].get("content", "")
            if logprobs := part.get("logprobs"):
                content = logprobs.get("content") or []
                whole["tokens"] += logprobs.get("tokens") or [entry["token"] for entry in content]
                whole["logprobs"] += logprobs.get("token_logprobs") or [entry["logprob"] for entry in content]
            whole["finish_reason"] = part["finish_reason"]
    assert all(choice["finish_reason"] for choice in found.values())
    return found


def asked(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Random settings, in the words of the API and of the library."""
    draw = random.Random(number)
    settings: dict[str, Any] = {"seed": draw.randrange(1000), "n": draw.choice([1, 1, 2, 3])}
    settings |= {"max_tokens": draw.randint(1, 12), "temperature": draw.choice([0, 0.7, 1.0, 1.6])}
    for key, value in {
        "top_k": draw.randint(1, 40), "top_p": draw.uniform(0.3, 1), "min_p": draw.uniform(0, 0.2),
        "presence_penalty": draw.uniform(-1, 1), "frequency_penalty": draw.uniform(-1, 1),
        "repetition_penalty": draw.uniform(0.8, 1.5), "stop": draw.sample(["a", "\x02", "�", "ii", "|"], 2),
        "stop_ids": draw.sample(range(257), 3), "logit_bias": {str(draw.randrange(257)): draw.uniform(-5, 5)},
    }.items():  # fmt: skip
        if draw.random() < 0.3:
            settings[key] = value
    ours = settings | {"overflow": "end"}
    ours["logit_bias"] = {int(k): v for k, v in settings.get("logit_bias", {}).items()}
    return settings, ours


def same(choice: dict[str, Any], sample: Sample) -> None:
    assert choice["text"] == sample.text and choice["finish_reason"] == SPELLED[sample.finish_reason]


@pytest.mark.parametrize("number", range(6))
def test_the_api_answers_what_the_library_draws(server: Process, story: TextGenerator, number: int) -> None:
    """Text and finish of every choice, whole and streamed, of several prompts as text and as tokens."""
    settings, ours = asked(number)
    prompts = [["Once", "a longer prompt, with é"], [[0, 80, 81], [7, 8]]][number % 2]
    samples = story.generate(prompts, **ours)
    whole = server.post("completions", model="story", prompt=prompts, **settings).json()
    assert [choice["index"] for choice in whole["choices"]] == [sample.index for sample in samples]
    streamed = choices_of(events(server, "completions", model="story", prompt=prompts, **settings))
    for choice, sample in zip(whole["choices"], samples, strict=True):
        same(choice, sample)
        same(streamed[sample.index], sample)
        assert choice["gengen"]["finish_reason"] == sample.finish_reason
    counted = sum(len(s.tokens) + ended_by_token(s, settings) for s in samples)
    assert whole["usage"]["completion_tokens"] == counted
    assert whole["usage"]["prompt_tokens"] == sum(len(story.prompt_tokens(p)) for p in prompts)
    assert whole["gengen"]["seed"] == settings["seed"]


def ended_by_token(sample: Sample, settings: dict[str, Any]) -> bool:
    by_id = sample.finish_reason == "stop" and len(sample.text.encode(errors="replace")) >= 0
    stops = settings.get("stop", [])
    spelled = bytes(t - 1 for t in sample.tokens).decode(errors="replace")[len(sample.text) :]
    return sample.finish_reason == "end" or (by_id and not any(stop in spelled for stop in stops))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(6, 200))
def test_two_hundred_random_requests(server: Process, story: TextGenerator, number: int) -> None:
    test_the_api_answers_what_the_library_draws(server, story, number)


def test_chat_answers_a_conversation(server: Process, chat: TextGenerator) -> None:
    tokens = server.post("tokenize", model="chat", messages=MESSAGES).json()["tokens"]
    samples = chat.generate([tokens], n=2, seed=5, max_tokens=20, temperature=1.0, overflow="end")
    body: dict[str, Any] = {"model": "chat", "messages": MESSAGES, "n": 2, "seed": 5, "max_completion_tokens": 20}
    whole = server.post("chat/completions", **body).json()
    streamed = choices_of(events(server, "chat/completions", **body))
    for sample in samples:
        message = whole["choices"][sample.index]["message"]
        assert message == {"role": "assistant", "content": sample.text, "refusal": None}
        same(streamed[sample.index], sample)
        assert whole["choices"][sample.index]["finish_reason"] == SPELLED[sample.finish_reason]


def test_a_conversation_goes_on_to_the_end_of_the_context(server: Process, chat: TextGenerator) -> None:
    """Without max_tokens; and it ends there, with "length"."""
    body = {"model": "chat", "messages": MESSAGES, "seed": 1, "logit_bias": {str(chat.tokenizer.eot): -100}}
    answer = server.post("chat/completions", **body).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == chat.context + 1  # the last token drawn is read by nothing


def test_the_order_of_a_chat_stream(server: Process) -> None:
    """Role first, then content, then the end, then the usage with no choices; one id, and usage null until then."""
    options = {"include_usage": True}
    chunks = events(
        server, "chat/completions", model="chat", messages=MESSAGES, seed=3, max_tokens=4, stream_options=options
    )
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
    assert all(delta.keys() == {"content"} for delta in deltas[1:-1])
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(deltas) - 1) + ["length"]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 4
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1 and chunks[0]["object"] == "chat.completion.chunk"


def test_without_a_seed_answers_differ_and_say_theirs(server: Process) -> None:
    body: dict[str, Any] = {"model": "story", "prompt": "a", "max_tokens": 30}
    first, second = (server.post("completions", **body).json() for _ in range(2))
    assert first["gengen"]["seed"] != second["gengen"]["seed"]
    assert first["choices"][0]["text"] != second["choices"][0]["text"]
    again = server.post("completions", **body, seed=first["gengen"]["seed"]).json()
    assert again["choices"][0]["text"] == first["choices"][0]["text"]
    assert again["system_fingerprint"] == first["system_fingerprint"]


def test_logprobs_are_the_models_own_before_controls(server: Process, story: TextGenerator) -> None:
    """Of controls that forbid much: the same tokens have the same log-probabilities as in the library."""
    settings: dict[str, Any] = {"seed": 2, "max_tokens": 8, "temperature": 1.6, "top_k": 3}
    sample = story.generate("Once", overflow="end", **settings)[0]
    body = {"model": "story", "prompt": "Once", **settings}
    found = server.post("completions", **body, logprobs=2).json()["choices"][0]["logprobs"]
    assert found["token_logprobs"] == pytest.approx(sample.logprobs, abs=1e-5)
    assert found["token_ids"] == sample.tokens
    assert all(2 <= len(top) <= 3 for top in found["top_logprobs"])
    streamed = choices_of(events(server, "completions", **body, logprobs=2))[0]
    assert (streamed["tokens"], streamed["logprobs"]) == (found["tokens"], found["token_logprobs"])


def test_bytes_of_tokens_are_the_truth(server: Process, chat: TextGenerator) -> None:
    """The bytes of all tokens joined are the answer, though some token is half a character."""
    body = {"model": "chat", "messages": MESSAGES, "seed": 4, "max_tokens": 60, "logprobs": True, "top_logprobs": 1}
    choice = server.post("chat/completions", **body).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert any("�" in entry["token"] for entry in content)
    spelled = b"".join(bytes(entry["bytes"]) for entry in content).decode(errors="replace")
    assert spelled.startswith(choice["message"]["content"])
    assert all(len(entry["top_logprobs"]) == 1 for entry in content)


def test_an_echo_has_the_prompts_own_logprobs(server: Process, story: TextGenerator) -> None:
    """As lm-eval asks for them: log p of each token after those before it, by the model's own forward."""
    import torch

    tokens = [0, *story.tokenizer.encode("Once upon")]
    body = {"model": "story", "prompt": [tokens], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    found = server.post("completions", **body).json()["choices"][0]
    with torch.no_grad():
        logprobs = story.model(torch.tensor([tokens]))[0].float()[:, : story.tokenizer.vocab_size].log_softmax(-1)
    expected = [float(logprobs[i, token]) for i, token in enumerate(tokens[1:])]
    of_prompt = found["logprobs"]["token_logprobs"][: len(tokens)]
    assert of_prompt[0] is None and of_prompt[1:] == pytest.approx(expected, abs=1e-4)
    assert len(found["logprobs"]["tokens"]) == len(tokens) + 1, "the token that was drawn, whatever it is"
    assert found["text"].startswith("Once upon")
    offsets = found["logprobs"]["text_offset"]
    assert offsets[1:-1] == list(range(9)) and offsets[-1] == 9
    best = [max(top.values()) for top in found["logprobs"]["top_logprobs"][1:-1]]
    assert best == pytest.approx(logprobs.max(-1).values[:-1].tolist(), abs=1e-4)


def test_an_echo_of_text_begins_with_its_first_character(server: Process) -> None:
    body = {"model": "story", "prompt": "abc", "max_tokens": 0, "logprobs": 0, "echo": True, "seed": 1}
    answer = server.post("completions", **body).json()
    found = answer["choices"][0]
    assert found["text"] == "abc" and found["logprobs"]["tokens"] == ["a", "b", "c"]
    assert all(isinstance(p, float) for p in found["logprobs"]["token_logprobs"])
    assert answer["usage"]["completion_tokens"] == 0
    assert choices_of(events(server, "completions", **body))[0]["text"] == "abc"


def test_what_json_has_not_is_written_as_openai_does(server: Process) -> None:
    from gengen.serving.answers import encoded, finite

    assert finite(float("-inf")) == -9999.0 and finite(float("nan")) == -9999.0 and finite(-0.5) == -0.5
    with pytest.raises(ValueError):
        encoded({"a": float("nan")})


def test_tokens_and_back(server: Process) -> None:
    found = server.post("tokenize", model="story", prompt="né").json()
    assert found["tokens"] == [111, 196, 170] and found["count"] == 3
    assert [piece["bytes"] for piece in found["pieces"]] == ["6e", "c3", "a9"]
    assert server.post("detokenize", model="story", tokens=found["tokens"]).json() == {"text": "né", "bytes": "6ec3a9"}
    marked = server.post("tokenize", model="chat", messages=[{"role": "user", "content": "<|end|>"}]).json()
    names = [piece["special"] for piece in marked["pieces"]]
    assert [name for name in names if name] == ["<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>"]
    assert names.count(None) == len("<|end|>"), "a text spells no marker"


def test_models_are_listed_with_their_facts(server: Process, story: TextGenerator) -> None:
    listed = server.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["story", "chat"]
    one = server.get("/v1/models/story").json()
    assert one == listed["data"][0]
    facts = one["gengen"]
    assert (facts["step"], facts["context"], facts["kind"], facts["chat"]) == (7, story.context, "text", False)
    assert len(facts["sha256"]) == 64


TEXT = {"model": "story", "prompt": "a"}


@pytest.mark.parametrize(
    "path, tree, status, code, param",
    [
        ("completions", {"model": "other", "prompt": "a"}, 404, "model_not_found", "model"),
        ("completions", {"model": "story", "prompt": "a" * 256}, 400, "context_length_exceeded", "prompt"),
        ("completions", {"model": "story", "prompt": [257]}, 400, "invalid_value", "prompt"),
        ("completions", TEXT | {"logit_bias": {"257": 1}}, 400, "invalid_value", "logit_bias"),
        ("completions", TEXT | {"stop_ids": [-1]}, 400, "invalid_value", "stop_ids"),
        ("completions", TEXT | {"n": 16, "max_tokens": 1025}, 400, "invalid_value", "max_tokens"),
        ("chat/completions", {"model": "story", "messages": MESSAGES}, 400, "not_a_chat_model", "model"),
        ("completions", TEXT | {"tools": [{}]}, 400, "invalid_value", "tools"),
        ("detokenize", {"model": "story", "tokens": [999]}, 400, "invalid_value", "tokens"),
        ("responses", {"model": "story"}, 404, "not_found", None),
    ],
)  # fmt: skip
def test_errors(server: Process, path: str, tree: dict[str, Any], status: int, code: str, param: str | None) -> None:
    answer = server.post(path, **tree)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    if code == "context_length_exceeded":
        assert "256" in error["message"] and "255" in error["message"]


def test_a_wrong_method_is_405(server: Process) -> None:
    answer = server.get("/v1/completions")
    assert answer.status_code == 405 and answer.json()["error"]["code"] == "method_not_allowed"


def test_metrics_are_what_prometheus_reads(server: Process) -> None:
    families = {f.name: f for f in text_string_to_metric_families(server.get("/metrics").text)}
    assert families["gengen_requests_accepted"].type == "counter"
    first = families["gengen_first_text_seconds"]
    buckets = [s.value for s in first.samples if s.name.endswith("_bucket") and s.labels["model"] == "story"]
    assert first.type == "histogram" and buckets == sorted(buckets)


def test_health_readiness_and_version(server: Process) -> None:
    assert server.get("/health").json()["status"] == "ok" and server.get("/ready").json() == {"status": "ready"}
    assert set(server.get("/version").json()) == {"gengen", "torch"}
