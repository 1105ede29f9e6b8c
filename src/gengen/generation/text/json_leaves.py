"""What a JSON schema says of one value by itself: its types, constants, texts, numbers and counts.

Each function returns what llguidance reads exactly, or refuses, with the place in the schema (a JSON pointer).
"""

import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NoReturn

from gengen.errors import UserError
from gengen.generation.text.patterns import FORMATS, portable
from gengen.io import Json

TYPES = ("null", "boolean", "number", "string", "array", "object")
MAX_CHARACTERS, MAX_ITEMS, MAX_KEYS, KEY_CHARACTERS = 1000, 64, 64, 64
"""Where the schema gives no bound; one of its own may be ten times as large."""
LARGEST = 10**15 - 1  # up to 15 digits decimals and floats correspond one to one: text and value compare alike
DECIMALS = 6
NAMED_ESCAPES = '"\\\b\f\n\r\t'  # \u0041 is never written: the name of a property could be spelled in two ways


def refuse(at: str, why: str) -> NoReturn:
    raise UserError(f"json_schema: {at}: {why}")


def shown(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)[:60]


# --- types and values


def types_of(schema: dict[str, Any], at: str) -> list[str]:
    """Return the types that a schema allows, all where it names none."""
    named = schema.get("type", list(TYPES))
    listed: list[Json] = named if isinstance(named, list) else [named]
    if unknown := [kind for kind in listed if kind not in (*TYPES, "integer")]:
        refuse(f"{at}/type", f"{shown(unknown[0])} is none of {', '.join(TYPES)} and integer")
    if not listed:
        refuse(f"{at}/type", "a type, or a list of types; the list is empty")
    return [kind for kind in dict.fromkeys(listed) if not (kind == "integer" and "number" in listed)]


def is_of(value: Json, kind: str) -> bool:
    """Return whether a value is of a type."""
    match kind:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value)
        case "number":
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
    return isinstance(value, dict)


def same(a: Json, b: Json) -> bool:
    """Return whether two values are equal as JSON: 1 is 1.0, and true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def constants(schema: dict[str, Any]) -> list[Json] | None:
    """Return the values that const or enum leave, None where neither is there."""
    if "const" in schema:
        return [schema["const"]]
    listed: list[Json] | None = schema.get("enum")
    return listed


def kinds(schema: dict[str, Any]) -> set[str]:
    """Return the types that values of a schema may have; an integer is a number."""
    listed = constants(schema)
    if listed is not None:
        return {kind for kind in TYPES if any(is_of(value, kind) for value in listed)}
    return {"number" if kind == "integer" else kind for kind in types_of(schema, "")}


def check_value(value: Json, at: str) -> None:
    """Refuse a constant that could not be written, or not be told from its neighbours."""
    if isinstance(value, str):
        check_text(value, at)
    elif isinstance(value, int) and abs(value) > LARGEST:
        refuse(at, f"{value}: whole numbers have 15 digits at most")
    elif isinstance(value, list):
        for item in value:
            check_value(item, at)
    elif isinstance(value, dict):
        for name, item in value.items():
            check_text(name, at)
            check_value(item, at)


def check_text(text: str, at: str) -> None:
    for character in text:
        if (character < " " and character not in NAMED_ESCAPES) or "\ud800" <= character <= "\udfff":
            refuse(at, f"{json.dumps(text)[:60]} has a character that is never written, \\u{ord(character):04x}")
        if character == "\x7f":
            refuse(at, f"{json.dumps(text)[:60]} has a character that is never written, \\u007f")


# --- bounds


def number_at(schema: dict[str, Any], word: str, at: str) -> Decimal | None:
    """Return a number of the schema, None where it is not there."""
    if word not in schema:
        return None
    value = schema[word]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        refuse(f"{at}/{word}", f"a number, not {shown(value)}")
    exact = Decimal(repr(value)).normalize()
    if abs(exact) > LARGEST or exact != round(exact, DECIMALS):
        refuse(f"{at}/{word}", f"{value}: 15 digits at most, {DECIMALS} of them behind the point")
    return exact


def count_bounds(what: str, schema: dict[str, Any], at: str, usual: int) -> tuple[int, int]:
    """Return the least and the greatest count, such as those of minItems and maxItems.

    usual: the greatest where the schema gives none; ten times that is the greatest of all.
    """
    least, most = (number_at(schema, word + what, at) for word in ("min", "max"))
    for word, count in (("min", least), ("max", most)):
        if count is not None and (count < 0 or count != int(count)):
            refuse(f"{at}/{word}{what}", f"a whole number, 0 or more, not {schema[word + what]}")
    lowest = int(least or 0)
    if lowest > 10 * usual:
        refuse(f"{at}/min{what}", f"{lowest}: at most {10 * usual:,} are written")
    return lowest, max(usual, lowest) if most is None else min(int(most), 10 * usual)


def string(schema: dict[str, Any], at: str) -> dict[str, Any]:
    """Return what a schema says of texts."""
    least, most = count_bounds("Length", schema, at, MAX_CHARACTERS)
    found: dict[str, Any] = {"type": "string", "minLength": least, "maxLength": most}
    if "pattern" in schema and "format" in schema:
        refuse(f"{at}/format", "not beside pattern: a text obeys one of them")
    if "format" in schema:
        kind = schema["format"]
        if not isinstance(kind, str) or kind not in FORMATS:
            refuse(f"{at}/format", f"{shown(kind)} is none of {', '.join(sorted(FORMATS))}")
        return found | {"pattern": portable(f"^({FORMATS[kind]})$")}
    if "pattern" in schema:
        if not isinstance(schema["pattern"], str):
            refuse(f"{at}/pattern", f"a text, not {shown(schema['pattern'])}")
        try:
            return found | {"pattern": portable(schema["pattern"])}
        except ValueError as error:
            refuse(f"{at}/pattern", f"{shown(schema['pattern'])} has {error}")
    return found


def number(kind: str, schema: dict[str, Any], at: str, part: bool) -> dict[str, Any]:
    """Return what a schema says of numbers or integers: all bounded, and of 15 digits at most."""
    words = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    numbers = {word: number_at(schema, word, at) for word in words}
    given = {word: bound for word, bound in numbers.items() if bound is not None}
    digits = max([9, *(len(str(int(abs(bound)))) for bound in given.values())])  # before the point
    outer = LARGEST if kind == "integer" else 10**digits - 1
    if "minimum" not in given and "exclusiveMinimum" not in given:
        given["minimum"] = Decimal(-outer)
    if "maximum" not in given and "exclusiveMaximum" not in given:
        given["maximum"] = Decimal(outer)
    found: dict[str, Any] = {"type": kind} | {word: plain_number(bound) for word, bound in given.items()}
    if (multiple := number_at(schema, "multipleOf", at)) is not None:
        if multiple <= 0 or part:
            refuse(f"{at}/multipleOf", "a number above 0, and not in a part of allOf or beside a $ref")
        return found | {"multipleOf": plain_number(multiple)}
    if kind == "integer":
        return found
    decimals = min(DECIMALS, 15 - digits)
    for word in given.keys() & schema.keys():
        if given[word] != round(given[word], decimals):
            refuse(f"{at}/{word}", f"{schema[word]}: {decimals} digits behind the point, beside numbers so large")
    return found | {"multipleOf": plain_number(Decimal(10) ** -decimals)}


def plain_number(number: Decimal) -> int | float:
    return int(number) if number == int(number) else float(number)


def map_of(value: Json, least: int, most: int) -> dict[str, Any]:
    """Return an object with any names, of values of one schema."""
    return {
        "patternProperties": {f"^(?s:.{{0,{KEY_CHARACTERS}}})$": value},
        "additionalProperties": False,
        "minProperties": least,
        "maxProperties": most,
    }


# --- whether there is an answer at all


def ends(schema: Json, finite: set[str]) -> bool:
    """Return whether some value that ends obeys a rewritten schema. finite: the definitions of which that is known."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        return schema["$ref"].removeprefix("#/$defs/") in finite
    if "allOf" in schema:
        return all(ends(part, finite) for part in schema["allOf"])
    if "anyOf" in schema:
        return any(ends(option, finite) for option in schema["anyOf"])
    needed: Sequence[Json] = ()
    if schema.get("type") == "array":
        first, least = schema["prefixItems"], schema["minItems"]
        needed = [*first[:least], *([schema["items"]] if least > len(first) else [])]
    if schema.get("type") == "object":
        others = next(iter(schema.get("patternProperties", {}).values()), schema["additionalProperties"])
        needed = [schema["properties"].get(name, others) for name in schema["required"]]
    return all(ends(part, finite) for part in needed)


def finite_definitions(definitions: dict[str, Json]) -> set[str]:
    """Return the names of the definitions that some value that ends obeys."""
    finite: set[str] = set()
    while more := {name for name, schema in definitions.items() if name not in finite and ends(schema, finite)}:
        finite |= more
    return finite
