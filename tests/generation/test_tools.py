"""Calls of tools: the schema of a call, and what is read from one."""

import json
from typing import Any

import pytest

from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.text.grammar import GrammarSpec, compile_grammar
from gengen.generation.text.tools import tool_call, tool_schema
from helpers.benchmark import benchmark

suite = benchmark("json_schema_suite")


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}


CITY = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/name"}, "$ref": {"type": "null"}},
    "required": ["city"],
    "$defs": {"name": {"enum": ["Paris", "Rome", {"$ref": "#/x"}]}},
}
TOOLS = [
    tool("weather", CITY),
    tool("stop"),
    tool("add", {"type": "object", "properties": {"n": {"type": "integer"}}}),
]
CHOSEN = {"type": "function", "function": {"name": "weather"}}


def test_the_schema_of_a_call_by_hand() -> None:
    assert tool_schema([tool("stop")]) == {
        "type": "object",
        "properties": {
            "name": {"const": "stop"},
            "arguments": {"type": "object", "properties": {}, "additionalProperties": False},
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def test_references_of_a_tool_follow_its_schema_and_data_stay_as_they_are() -> None:
    arguments = tool_schema(TOOLS)["anyOf"][0]["properties"]["arguments"]
    assert arguments["properties"]["city"] == {"$ref": "#/anyOf/0/properties/arguments/$defs/name"}
    assert arguments["properties"]["$ref"] == {"type": "null"}  # a property of that name
    assert arguments["$defs"]["name"]["enum"][2] == {"$ref": "#/x"}
    alone = tool_schema(TOOLS, CHOSEN)["properties"]["arguments"]
    assert alone["properties"]["city"] == {"$ref": "#/properties/arguments/$defs/name"}


WEATHER, STOP = '{"name":"weather","arguments":{"city":"Rome"}}', '{"name":"stop","arguments":{}}'


@pytest.mark.parametrize(
    ("choice", "valid", "invalid"),
    [
        ("required", [WEATHER, STOP, '{"name":"add","arguments":{"n":3}}'], ['{"name":"add","arguments":{"n":"3"}}']),
        (CHOSEN, [WEATHER], [STOP, '{"name":"weather","arguments":{}}', '{"name":"weather"}', "{}"]),
    ],
)
def test_calls_of_tools_are_enforced(choice: Any, valid: list[str], invalid: list[str]) -> None:
    grammar = compile_grammar(GrammarSpec(json_schema=tool_schema(TOOLS, choice)), TextTokenizer.byte())
    assert [text for text in valid if not suite.writable(grammar, text)] == []
    assert [text for text in invalid if suite.writable(grammar, text)] == []


def test_a_call_is_read() -> None:
    assert tool_call('{"name":"weather","arguments":{"city":"é","n":[1,2.50]}}') == (
        "weather",
        '{"city":"é","n":[1,2.5]}',
    )
    assert json.loads(tool_call(WEATHER)[1]) == {"city": "Rome"}


@pytest.mark.parametrize(
    ("tools", "choice", "words"),
    [
        ([], "required", "tools: a list of 1 to 64 tools"),
        ({"a": 1}, "required", "tools: a list of 1 to 64 tools"),
        ([tool("a b")], "required", "tools[0]: {"),
        ([tool("a"), {"type": "retrieval"}], "required", "tools[1]: {"),
        ([tool("a"), tool("a")], "required", "tools[1]: there are two tools named a"),
        ([tool("a", {"type": "string"})], "required", 'tools[0].function.parameters: a schema with "type": "object"'),
        (
            TOOLS,
            {"type": "function", "function": {"name": "wether"}},
            "there is no tool wether\n  did you mean weather?",
        ),
        (TOOLS, "auto", 'tool_choice: "required", or {'),
        (TOOLS, None, 'tool_choice: "required", or {'),
    ],
)
def test_tools_that_are_none_are_refused(tools: Any, choice: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        tool_schema(tools, choice)
    assert words in str(error.value)


def test_what_is_not_supported_in_a_tool_is_named_with_its_place() -> None:
    schema = tool_schema([tool("a", {"type": "object", "properties": {"x": {"not": {}}}})])
    with pytest.raises(UserError, match="#/properties/arguments/properties/x/not: this keyword is not supported"):
        compile_grammar(GrammarSpec(json_schema=schema), TextTokenizer.byte())
