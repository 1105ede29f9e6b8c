"""What the text API reads: every parameter within its range, and one error in OpenAI's form for all else."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gengen.config.limits import parse_json
from gengen.data.text.tokenizer import TextTokenizer
from gengen.serving.constraints import grammar_of
from gengen.serving.protocol import (
    HARMLESS,
    MAX_SEED,
    REFUSED,
    ApiError,
    ChatRequest,
    CompletionRequest,
    parse_body,
    read_request,
)
from gengen.serving.token_protocol import DetokenizeRequest, TokenizeRequest

COMPLETION = {"model": "story", "prompt": "Once"}
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}
BYTES = TextTokenizer.byte()
TOOL = {"type": "function", "function": {"name": "age_of", "parameters": {"type": "object"}}}


def refused(cls: Any, tree: Any) -> ApiError:
    with pytest.raises(ApiError) as error:
        read_request(cls, tree)
    assert error.value.status == 400
    body = error.value.body()["error"]
    assert body.keys() == {"message", "type", "param", "code"} and body["type"] == "invalid_request_error"
    return error.value


def test_defaults_are_openais() -> None:
    asked = read_request(CompletionRequest, COMPLETION)
    assert (asked.temperature, asked.max_tokens, asked.n, asked.seed, asked.overflow) == (1.0, 16, 1, None, "end")
    assert read_request(ChatRequest, CHAT).max_tokens is None


def test_null_is_absent_for_every_parameter() -> None:
    from gengen.config.schema import schema

    for cls, least in ((CompletionRequest, COMPLETION), (ChatRequest, CHAT)):
        nulls = dict.fromkeys([*schema(cls, {}), *HARMLESS, *REFUSED])
        assert read_request(cls, nulls | least) == read_request(cls, least)


@pytest.mark.parametrize("key", sorted(HARMLESS))
def test_harmless_parameters_are_taken_and_change_nothing(key: str) -> None:
    assert read_request(ChatRequest, CHAT | {key: {"any": ["thing"]}}) == read_request(ChatRequest, CHAT)


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_what_would_change_the_answer_is_refused_by_name(key: str) -> None:
    error = refused(CompletionRequest, COMPLETION | {key: "x"})
    assert (error.param, error.code) == (key, "unsupported_parameter") and REFUSED[key] in error.message


def test_a_misspelt_parameter_is_answered_with_the_nearest() -> None:
    error = refused(ChatRequest, CHAT | {"temprature": 1})
    assert (error.param, error.code) == ("temprature", "unknown_parameter")
    assert "did you mean temperature" in error.message


WRONG = {
    "temperature": [-0.1, 2.1, "0.5", True, [1], 10**400],
    "top_p": [0, 1.1, "1"],
    "top_k": [0, -1, 1.5, True],
    "min_p": [-1, 2],
    "n": [0, 17, 1.0, True, "2"],
    "seed": [-1, MAX_SEED + 1, 0.5, "1"],
    "max_tokens": [-1, 16_385, 1.5, "9", 10**30],
    "presence_penalty": [-2.5, 3, "x"],
    "frequency_penalty": [-2.5, 3, None.__class__.__name__],
    "repetition_penalty": [0, -1, 11],
    "stop": [[""], "", 5, ["a"] * 17, ["a" * 257], [1], {"a": 1}],
    "stop_ids": ["1", [1.5], [True], [1] * 17],
    "logit_bias": [[1], {"a": 1}, {"1": "2"}, {"1": 101}, {"-1": 1}, {"1": True}, {"²": 1}, {"1" * 40: 1}],
    "stream": [1, "true"],
    "stream_options": [{"include_usage": 1}, {"usage": True}, []],
    "overflow": ["ends", 1],
    "prompt_logprobs": [1],
}


@pytest.mark.parametrize("key", WRONG)
def test_each_parameter_has_its_range(key: str) -> None:
    for value in WRONG[key]:
        for cls, least in ((CompletionRequest, COMPLETION), (ChatRequest, CHAT)):
            error = refused(cls, least | {"stream": True} | {key: value})
            assert (error.param or "").split(".")[0] == key, value


@pytest.mark.parametrize("value", [[], [[]], [1, "a"], [["a"]], 5, {"a": 1}, [[1], "a"], ["a"] * 65, [1, True]])
def test_a_prompt_is_text_or_tokens(value: Any) -> None:
    assert refused(CompletionRequest, COMPLETION | {"prompt": value}).param == "prompt"


def test_prompts_come_in_four_forms() -> None:
    forms = {"a": ["a"], ("a", "b"): ["a", "b"], (1, 2): [[1, 2]], ((1, 2), (3,)): [[1, 2], [3]]}
    for form, read in forms.items():
        value = json.loads(json.dumps(form)) if isinstance(form, tuple) else form
        assert read_request(CompletionRequest, COMPLETION | {"prompt": value}).prompt == read


@pytest.mark.parametrize(
    "message, param",
    [
        ({"role": "robot", "content": "a"}, "messages[0].role"),
        ({"role": "tool", "content": "a"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": None}, "messages[0].content"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]},
            "messages[0].content[0]",
        ),
        ("hello", "messages[0]"),
    ],
)
def test_messages(message: Any, param: str) -> None:
    assert refused(ChatRequest, CHAT | {"messages": [message]}).param == param


def test_parts_of_text_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = read_request(ChatRequest, CHAT | {"messages": [{"role": "developer", "content": parts, "name": "x"}]})
    assert asked.messages == [{"role": "system", "content": "ab"}]


@pytest.mark.parametrize(
    "cls, tree, param",
    [
        (CompletionRequest, {"prompt": "a"}, "model"),
        (CompletionRequest, {"model": "story"}, "prompt"),
        (CompletionRequest, COMPLETION | {"max_tokens": 0}, "max_tokens"),
        (CompletionRequest, COMPLETION | {"best_of": 2}, "best_of"),
        (CompletionRequest, COMPLETION | {"stream_options": {"include_usage": True}}, "stream_options"),
        (CompletionRequest, COMPLETION | {"logprobs": 21}, "logprobs"),
        (ChatRequest, {"model": "chat"}, "messages"),
        (ChatRequest, CHAT | {"top_logprobs": 3}, "top_logprobs"),
        (ChatRequest, CHAT | {"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        (TokenizeRequest, {"model": "story"}, "prompt"),
        (TokenizeRequest, {"model": "story", "prompt": "a", "messages": CHAT["messages"]}, "prompt"),
        (DetokenizeRequest, {"tokens": [1]}, "model"),
    ],
)
def test_what_does_not_go_together(cls: Any, tree: dict[str, Any], param: str) -> None:
    assert refused(cls, tree).param == param


@pytest.mark.parametrize(
    "key, asked",
    [
        ("response_format", {"response_format": {"type": "xml"}}),
        ("response_format", {"response_format": {"type": "json_schema"}}),
        ("response_format", {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}),
        ("tools", {"tools": [{"type": "function"}], "tool_choice": "required"}),
        ("tools", {"tools": [TOOL]}),
        ("tools", {"tools": [TOOL], "tool_choice": "auto"}),
        ("tool_choice", {"tool_choice": "required"}),
        ("tool_choice", {"tools": [TOOL], "tool_choice": "always"}),
        ("tool_choice", {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "age"}}}),
        ("regex", {"regex": "(a"}),
        ("regex", {"regex": 3}),
        ("choice", {"choice": []}),
        ("choice", {"choice": "ab"}),
        ("lark", {"lark": "begin: A"}),
        ("response_format", {"regex": "a+", "response_format": {"type": "json_object"}}),
    ],
)
def test_what_no_answer_can_be_held_to_is_refused_by_name(key: str, asked: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as error:
        grammar_of(read_request(ChatRequest, CHAT | asked), BYTES)
    assert (error.value.param, error.value.status) == (key, 400)


def test_what_asks_for_nothing_is_no_constraint() -> None:
    harmless = {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none"}
    assert grammar_of(read_request(ChatRequest, CHAT | harmless), BYTES) is None


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"3", b"null", b"{", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1, "a": 2}', b"\xff\xfe",
        b'{"a": "\\ud800"}',
        b'{"a": {"\\uDC00": 1}}', b"[" * 100_000, b'{"a":' * 40 + b"1" + b"}" * 40, b'{"a": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_a_body_is_one_json_object(body: bytes) -> None:
    with pytest.raises(ApiError) as error:
        parse_body(body)
    assert (error.value.status, error.value.code) == (400, "invalid_json")


def test_a_whole_surrogate_pair_is_text() -> None:
    assert parse_body(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_only_strict_json_refuses_what_python_reads() -> None:
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(ValueError, match="'a' is there twice"):
        parse_json('{"a": 1, "a": 2}', strict=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_is_asked_is_read_or_refused(data: st.DataObject) -> None:
    """And what is read has its settings in their ranges."""
    cls, least = data.draw(st.sampled_from([(CompletionRequest, COMPLETION), (ChatRequest, CHAT)]))
    keys = st.sampled_from([*WRONG, "prompt", "messages", "logprobs", "top_logprobs", "echo", "best_of", "user"])
    tree = least | data.draw(st.dictionaries(keys | st.text(max_size=6), JSON, max_size=4))
    try:
        asked = read_request(cls, parse_body(json.dumps(tree).encode()))
    except ApiError as error:
        assert error.status == 400 and error.message
        json.dumps(error.body(), allow_nan=False)
    else:
        drawn = asked.settings(1, 5)
        assert 0 <= drawn.temperature <= 2 and len(drawn.stop) <= 16 and 1 <= asked.n <= 16
        drawn.check()
