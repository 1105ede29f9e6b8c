"""JSON schemas of the kinds that programs ask a model for, and random ones."""

import random
from typing import Any

TWENTY: list[dict[str, Any]] = [
    {"type": "boolean"},
    {"type": "integer", "minimum": -3, "maximum": 250},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    {"type": "string", "maxLength": 12},
    {"type": "string", "pattern": "^[A-Z][a-z]{1,8}( [A-Z][a-z]{1,8})?$"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "email"},
    {"enum": ["yes", "no", "don't know", 0, None]},
    {"type": ["integer", "null"], "multipleOf": 5},
    {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 2, "maxItems": 5},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "string", "maxLength": 3}], "minItems": 2},
    {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name"]},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 3},
    {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "array", "items": {"type": "null"}, "maxItems": 3}]},
    {  # a discriminated union, as pydantic writes one
        "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}},
        "$defs": {
            "Cat": {
                "type": "object",
                "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer", "minimum": 0, "maximum": 9}},
                "required": ["kind", "lives"],
            },
            "Dog": {
                "type": "object",
                "properties": {"kind": {"const": "dog"}, "name": {"type": "string", "maxLength": 8}},
                "required": ["kind"],
            },
        },
    },
    {  # a tree
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer", "minimum": 0, "maximum": 99},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
                },
                "required": ["value"],
            }
        },
    },
    {
        "allOf": [
            {"type": "object", "properties": {"id": {"type": "integer", "minimum": 1}}, "required": ["id"]},
            {"properties": {"tag": {"enum": ["a", "b"]}}, "required": ["tag"]},
        ],
        "type": "object",
    },
    {
        "type": "object",
        "title": "Order",
        "properties": {
            "id": {"type": "string", "format": "uuid", "description": "its number"},
            "lines": {
                "type": "array",
                "minItems": 1,
                "maxItems": 3,
                "items": {
                    "type": "object",
                    "properties": {
                        "sku": {"type": "string", "pattern": "^[A-Z]{2}-\\d{3}$"},
                        "n": {"type": "integer"},
                    },
                    "required": ["sku", "n"],
                    "additionalProperties": False,
                },
            },
            "express": {"type": "boolean", "default": False},
            "note": {"anyOf": [{"type": "string", "maxLength": 20}, {"type": "null"}], "default": None},
        },
        "required": ["id", "lines"],
        "additionalProperties": False,
    },
    {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number"}}, "required": ["y", "x"]},
    {"const": {"version": 1, "tags": ["a", 'q"\\', "é\n"], "ratio": 0.5}},
]

NAMES = ["a", "b", "c/d", "é", "x y"]
PATTERNS = ["^[a-z]+$", "a|b", "^(x|y)", "\\d{2}", "\\s$", "^[^a]*$", "\\W"]
FORMATS = ["date", "time", "uuid", "email", "ipv4", "ipv6", "date-time", "hostname", "uri", "duration"]


def random_value(draw: random.Random, depth: int = 2) -> Any:
    match draw.randrange(7 if depth else 5):
        case 0:
            return None
        case 1:
            return draw.random() < 0.5
        case 2:
            return draw.randint(-30, 30)
        case 3:
            return round(draw.uniform(-9, 9), 2)
        case 4:
            return draw.choice(["", "a", "né\n", 'q"\\', "long word", "1"])
        case 5:
            return [random_value(draw, depth - 1) for _ in range(draw.randint(0, 3))]
    return {name: random_value(draw, depth - 1) for name in draw.sample(NAMES, draw.randint(0, 3))}


def random_schema(seed: int) -> dict[str, Any]:
    """Return a schema of supported keywords, in any combination and order; some of them no value obeys."""
    draw = random.Random(seed)
    definitions = {"x": schema_of(draw, 2), "y": schema_of(draw, 2)}
    whole = schema_of(draw, 3)
    return (whole if isinstance(whole, dict) else {}) | {"$defs": definitions}


def schema_of(draw: random.Random, depth: int) -> Any:
    match draw.choices(range(8), [6, 10, 4, 8 * bool(depth), 8 * bool(depth), 6 * bool(depth), 10, 48])[0]:
        case 0:
            return draw.choice([True, True, {}, False])
        case 1:
            kind = {"type": draw.choice(["string", "integer", "object"])} if draw.random() < 0.3 else {}
            return {"enum": [random_value(draw) for _ in range(draw.randint(1, 4))]} | kind
        case 2:
            return {"const": random_value(draw)}
        case 3 | 4 | 5 as which:
            word = ("anyOf", "allOf", "oneOf")[which - 3]
            options = [schema_of(draw, depth - 1) for _ in range(draw.randint(1, 3))]
            return {word: options} | (typed(draw, depth - 1) if draw.random() < 0.3 else {})
        case 6:
            return {"$ref": draw.choice(["#", "#/$defs/x", "#/$defs/y"])} | (
                typed(draw, 0) if draw.random() < 0.2 else {}
            )
    return typed(draw, depth)


def typed(draw: random.Random, depth: int) -> dict[str, Any]:
    """Return a schema of one type, of two, or of none, with some of the words that it has."""
    kinds = ["null", "boolean", "integer", "number", "string", *(["array", "object"] if depth else [])]
    chosen = draw.sample(kinds, 1 if draw.random() < 0.8 else 2) if draw.random() < 0.9 else []
    words: dict[str, Any] = {}
    for kind in kinds:
        if kind in chosen or (not chosen and draw.random() < 0.3):
            words |= words_of(draw, kind, depth)
    words = {word: value for word, value in words.items() if draw.random() < 0.35}
    if chosen:
        words["type"] = chosen[0] if len(chosen) == 1 else chosen
    return dict(draw.sample(list(words.items()), len(words)))


def words_of(draw: random.Random, kind: str, depth: int) -> dict[str, Any]:
    def number() -> int | float:
        return draw.choice([draw.randint(-20, 20), round(draw.uniform(-5, 5), 3), draw.randint(-(10**6), 10**6)])

    match kind:
        case "integer" | "number":
            bounds = {word: number() for word in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")}
            return bounds | {"multipleOf": draw.choice([2, 3, 7, 0.5, 0.25, 10])}
        case "string":
            own = {"pattern": draw.choice(PATTERNS)} if draw.random() < 0.6 else {"format": draw.choice(FORMATS)}
            return own | {"minLength": draw.randint(0, 5), "maxLength": draw.randint(0, 9)}
        case "array":
            first = [schema_of(draw, depth - 1) for _ in range(draw.randint(0, 2))]
            counts = {"minItems": draw.randint(0, 2), "maxItems": draw.randint(0, 4)}
            return {"items": schema_of(draw, depth - 1), "prefixItems": first} | counts
        case "object":
            return {
                "properties": {name: schema_of(draw, depth - 1) for name in draw.sample(NAMES, draw.randint(0, 3))},
                "required": draw.sample(NAMES, draw.randint(0, 2)),
                "additionalProperties": draw.choice([False, True, schema_of(draw, depth - 1)]),
                "minProperties": draw.randint(0, 2),
                "maxProperties": draw.randint(0, 4),
            }
    return {}
