"""Calls of functions as answers: tools in the form of OpenAI's API, and the schema of a call of one of them."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gengen.errors import UserError, did_you_mean
from gengen.io import Json

MAX_TOOLS = 64
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
DATA = {"const", "enum", "default", "examples"}  # what stands below these is no schema
NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}  # names, each with a schema


def tool_schema(tools: Sequence[Json], choice: Json = "required") -> dict[str, Any]:
    """Return the schema of a call, {"name": ..., "arguments": {...}}, of one of the tools, or of the one chosen.

    tools: [{"type": "function", "function": {"name", "description", "parameters": a schema of an object}}, ...].
    choice: "required", or {"type": "function", "function": {"name": ...}}. Raises UserError for anything else.
    """
    functions = named_functions(tools)
    if choice != "required":
        functions = {name: functions[name] for name in [chosen_name(choice, functions)]}
    calls = []
    for i, (name, parameters) in enumerate(functions.items()):
        place = "#" if len(functions) == 1 else f"#/anyOf/{i}"
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": name},
                    "arguments": moved(undated(parameters), f"{place}/properties/arguments"),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def tool_call(text: str) -> tuple[str, str]:
    """Return the name and the arguments, as JSON text, of a whole call that obeys `tool_schema`."""
    call = json.loads(text)
    return call["name"], json.dumps(call["arguments"], ensure_ascii=False, separators=(",", ":"))


def named_functions(tools: Sequence[Json]) -> dict[str, Json]:
    """Return the schema of each tool's arguments, by its name."""
    if isinstance(tools, (str, Mapping)) or not tools or len(tools) > MAX_TOOLS:
        raise UserError(f"tools: a list of 1 to {MAX_TOOLS} tools")
    functions: dict[str, Json] = {}
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not NAME.fullmatch(name):
            form = '{"type": "function", "function": {"name": ..., "parameters": {...}}}'
            raise UserError(f"tools[{i}]: {form} with a name of 1 to 64 letters, digits, _ and -")
        if name in functions:
            raise UserError(f"tools[{i}]: there are two tools named {name}")
        parameters = function.get("parameters")
        functions[name] = NO_ARGUMENTS if parameters in (None, {}) else parameters
        if not isinstance(functions[name], dict) or functions[name].get("type") != "object":
            raise UserError(f'tools[{i}].function.parameters: a schema with "type": "object"')
    return functions


def chosen_name(choice: Json, functions: Mapping[str, Json]) -> str:
    """Return the name of the tool that a tool_choice asks for."""
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise UserError('tool_choice: "required", or {"type": "function", "function": {"name": ...}}')
    if name not in functions:
        raise UserError(f"tool_choice: there is no tool {name}{did_you_mean(name, functions)}")
    return name


def undated(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without the name of its draft, which may stand at the top alone."""
    return {word: value for word, value in schema.items() if word != "$schema"}


def moved(schema: Json, place: str) -> Json:
    """Return a schema whose own places (#/$defs/x) are found below `place` of a larger one."""
    if isinstance(schema, list):
        return [moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for word, value in schema.items():
        if word == "$ref" and isinstance(value, str) and value.startswith("#"):
            found[word] = place + value[1:]
        elif word in NAMED and isinstance(value, dict):
            found[word] = {name: moved(item, place) for name, item in value.items()}
        else:
            found[word] = value if word in DATA else moved(value, place)
    return found
