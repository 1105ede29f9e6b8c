"""JSON schemas: what is enforced to the letter, what is refused by name, and that nothing lies between."""

import json
import random
from contextlib import suppress
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from llguidance import LLMatcher

from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.text import grammar as grammars
from gengen.generation.text.grammar import Grammar, GrammarSpec, build, compile_grammar
from gengen.generation.text.json_schema import answer_schema
from gengen.generation.text.patterns import portable
from helpers.benchmark import benchmark
from helpers.schemas import TWENTY, random_schema

suite = benchmark("json_schema_suite")
BYTES = TextTokenizer.byte()
VOCABULARY = grammars.vocabulary_of(BYTES)


def compiled(schema: Any) -> Grammar:
    return compile_grammar(GrammarSpec(json_schema=schema), BYTES)


def obj(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


ENFORCED: list[tuple[Any, list[str], list[str]]] = [  # a schema, texts that may be written, texts that may not
    ({"type": "boolean"}, ["true", "false"], ["True", " true", '"true"', "1"]),
    ({"type": "integer"}, ["0", "-7", "999999999999999"], ["01", "1.0", "1e3", "1000000000000000", "+1"]),
    ({"type": "number"}, ["0.5", "-1", "2.25"], [".5", "1e3", "0.1234567", "NaN", "Infinity"]),
    ({"type": "number", "exclusiveMinimum": 0.1}, ["0.100001", "0.2", "1"], ["0.1", "0.10", "0.0999", "0"]),
    ({"type": "number", "minimum": 12345678901.5}, ["12345678901.5", "12345678902"], ["12345678901.49999"]),
    ({"type": "integer", "exclusiveMaximum": 3, "minimum": -1}, ["-1", "2", "0"], ["3", "-2", "10"]),
    ({"type": "integer", "multipleOf": 7}, ["0", "49", "-14"], ["1", "48"]),
    ({"type": "number", "multipleOf": 0.25}, ["0.50", "-1.75", "3"], ["0.3", "0.125"]),
    ({"type": ["string", "null"], "maxLength": 2}, ["null", '"né"', '"\\n\\""'], ['"abc"', "true"]),
    ({"type": "string", "minLength": 2}, ['"ab"', '"😀😀"'], ['"😀"', '""']),
    ({"type": "string", "pattern": "^a.c$"}, ['"abc"', '"a\\"c"'], ['"a\\nc"', '"abcd"', '"xabc"']),
    ({"type": "string", "pattern": "b"}, ['"abc"'], ['"ac"']),
    ({"type": "string", "format": "date"}, ['"2024-02-28"'], ['"2024-02-30"', '"2024-13-01"', '"24-01-01"']),
    ({"type": "string", "format": "ipv4"}, ['"127.0.0.1"'], ['"256.0.0.1"', '"01.0.0.1"']),
    ({"enum": ["a", 1, None, [1, {"b": 2}]]}, ['"a"', "1", "null", '[1,{"b":2}]'], ['"b"', "true", "[1]", "1.0"]),
    ({"enum": ["a", 1, 2.5, True], "type": "integer"}, ["1"], ['"a"', "2.5", "true"]),
    ({"const": 1.0}, ["1"], ["1.5", "10", "true"]),
    ({"const": {"b": 1, "a": 2}}, ['{"b":1,"a":2}'], ['{"b":1}', '{"b":1,"a":2,"c":3}']),
    (obj(a={"type": "integer"}), ['{"a":1}'], ["{}", '{"a":"1"}', '{"a":1,"b":2}', '{"a": 1}', '{"a":1,"a":2}']),
    ({"type": "object", "properties": {"a": True}, "additionalProperties": True}, ['{"b":1}'], ['{"b":1,"a":2}']),
    (
        {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
        ['{"a":null,"b":1}', '{"b":1}', "{}"],
        ['{"b":null}', '{"a":1}', '{"\\u0061":1}', '{"a":null,"\\u0061":1}'],
    ),
    ({"type": "object", "required": ["x"]}, ['{"x":[{}]}', '{"x":1,"y":2}'], ["{}", '{"y":1}', "[]"]),
    ({"type": "object", "maxProperties": 1}, ["{}", '{"a":1}'], ['{"a":1,"b":2}']),
    (
        {"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 2},
        ["[null]"],
        ["[]", "[null,null,null]"],
    ),
    ({"type": "array", "prefixItems": [{"type": "null"}]}, ["[]", "[null]"], ["[1]", "[null,1]"]),
    ({"type": "array", "prefixItems": [{"type": "null"}], "items": {"const": 1}}, ["[null,1,1]"], ["[null,null]"]),
    ({"anyOf": [{"type": "null"}, obj(a=True)]}, ["null", '{"a":[]}'], ["[]", "{}"]),
    ({"oneOf": [obj(k={"const": 1}), obj(k={"const": 2}, z={"type": "null"})]}, ['{"k":1}'], ['{"k":2}']),
    ({"allOf": [{"minimum": 3}, {"maximum": 5}], "type": "integer"}, ["3", "5"], ["2", "6", "null"]),
    ({"allOf": [obj(a={"type": "string"}), obj(a={"maxLength": 1})]}, ['{"a":"x"}'], ['{"a":"xx"}', '{"a":1}']),
    ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "null"}}}, ["null"], ["1"]),
    ({"$ref": "#/$defs/a", "maximum": 2, "$defs": {"a": {"type": "integer", "minimum": 1}}}, ["1", "2"], ["0", "3"]),
    ({"type": "array", "items": {"$ref": "#"}}, ["[]", "[[],[[]]]"], ["[1]", "null"]),
    ({"title": "a", "description": "b", "default": 1, "examples": [2], "type": "null"}, ["null"], ["1"]),
    ({"minLength": 2}, ['"ab"', "1", "null", "[1]"], ['"a"']),
]


@pytest.mark.parametrize(("schema", "valid", "invalid"), ENFORCED, ids=lambda part: json.dumps(part)[:50])
def test_a_schema_is_enforced_to_the_letter(schema: Any, valid: list[str], invalid: list[str]) -> None:
    found = compiled(schema)
    assert [text for text in valid if not suite.writable(found, text)] == []
    assert [text for text in invalid if suite.writable(found, text)] == []


REFUSED: list[tuple[Any, str]] = [  # a schema, what the message says
    ({"type": "array", "uniqueItems": True}, "#/uniqueItems: this keyword is not supported"),
    ({"not": {"type": "null"}}, "#/not: this keyword is not supported"),
    (obj(a={"patternProperties": {"^x": True}}), "#/properties/a/patternProperties: this keyword is not supported"),
    ({"if": True, "then": True}, "#/if: this keyword is not supported"),
    ({"type": "string", "contentEncoding": "base64"}, "#/contentEncoding: this keyword"),
    ({"type": "string", "minLenght": 2}, "#/minLenght: no keyword of JSON Schema\n  did you mean minLength?"),
    ({"x-guidance": {"whitespace_flexible": True}, "type": "null"}, "#/x-guidance: no keyword"),
    ({"$ref": "https://example.com/s.json"}, "#/$ref: only places in the schema itself"),
    ({"$ref": "#/$defs/none"}, "there is no #/$defs/none"),
    ({"$ref": "#"}, "goes on without end"),
    ({"$defs": {"a": obj(next={"$ref": "#/$defs/a"})}, "$ref": "#/$defs/a"}, "goes on without end"),
    (obj(a=False), "no answer obeys it"),
    ({"type": "integer", "minimum": 5, "maximum": 4}, "minimum (5) is greater than maximum (4)"),
    ({"$schema": "http://json-schema.org/draft-04/schema#"}, "#/$schema"),
    ({"type": "strnig"}, '#/type: "strnig" is none of'),
    ({"type": "string", "format": "regex"}, '#/format: "regex" is none of date,'),
    ({"type": "string", "format": "date", "pattern": "1"}, "#/format: not beside pattern"),
    ({"type": "string", "pattern": "(?=a)b"}, '#/pattern: "(?=a)b" has look-around'),
    ({"type": "string", "pattern": "a$b"}, "lookarounds not supported"),
    ({"enum": ["a"], "minLength": 3}, "#/minLength: not beside enum"),
    ({"enum": []}, "#/enum: a list of values"),
    ({"enum": ["a\u0001"]}, "never written, \\u0001"),
    ({"const": 2**53 + 1}, "15 digits at most"),
    ({"type": "number", "maximum": 0.1234567}, "#/maximum: 0.1234567: 15 digits at most, 6 of them"),
    ({"type": "number", "maximum": 10**12, "minimum": 0.5001}, "#/minimum: 0.5001: 2 digits behind the point"),
    ({"type": "number", "multipleOf": 0}, "#/multipleOf: a number above 0"),
    ({"type": "string", "minLength": -1}, "#/minLength: a whole number, 0 or more, not -1"),
    ({"type": "string", "minLength": 20_000}, "#/minLength: 20000: at most 10,000 are written"),
    ({"type": "object", "minProperties": 2}, "#/minProperties: 1, or the number of names in required"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#/oneOf: options 0 and 1 may both hold"),
    ({"oneOf": [obj(a=True), obj(b=True)]}, "#/oneOf: options 0 and 1 may both hold"),
    ({"items": [True]}, "#/items: a schema is an object, true or false, not [true]"),
    ({"anyOf": []}, "#/anyOf: a list of schemas"),
    ({"enum": list(range(1001))}, "#/enum: more than 1,000 alternatives"),
    ({"description": "x" * 70_000}, "at most 65,536 are allowed"),
    ({"const": float("nan")}, "Out of range float values are not JSON compliant"),
    (json.loads('{"items":' * 40 + "{}" + "}" * 40), "nested deeper than 32"),
    ({"enum": [{1, 2}]}, "not JSON serializable"),
]


@pytest.mark.parametrize(("schema", "words"), REFUSED, ids=lambda part: str(part)[:50])
def test_what_is_not_kept_is_refused_by_name(schema: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        compiled(schema)
    assert words in str(error.value)


@pytest.mark.parametrize("schema", TWENTY, ids=lambda schema: json.dumps(schema)[:40])
def test_texts_drawn_at_random_are_valid_elsewhere(schema: dict[str, Any]) -> None:
    found, validator = (
        compiled(schema),
        Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER),
    )
    texts = [text for seed in range(4) if (text := suite.walk(found, seed)) is not None]
    assert texts and [text for text in texts if not validator.is_valid(json.loads(text))] == []


def weakened(seeds: range, walks: int) -> tuple[int, list[str]]:
    """Return how many texts of random schemas were drawn, and those that a validator refuses."""
    drawn, wrong = 0, []
    for seed in seeds:
        schema = random_schema(seed)
        try:
            found = compiled(schema)
        except UserError:
            continue
        validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
        for text in (suite.walk(found, walk, 200) for walk in range(walks)):
            try:
                drawn += text is not None
                wrong += [f"{seed}: {text}"] if text is not None and not validator.is_valid(json.loads(text)) else []
            except RecursionError:  # the validator's: {"anyOf": [{"$ref": "#"}, ...]}
                break
    return drawn, wrong


def test_no_random_schema_is_weakened() -> None:
    drawn, wrong = weakened(range(40), 2)
    assert drawn > 30 and wrong == []


@pytest.mark.slow
def test_no_random_schema_of_many_is_weakened() -> None:
    drawn, wrong = weakened(range(1000, 1800), 4)
    assert drawn > 1000 and wrong == []


# --- the faults that the rules are there for, put back


def test_with_unicode_escapes_a_property_could_be_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": True}
    twice = '{"a":null,"\\u0061":1}'
    assert not Draft202012Validator(schema).is_valid(json.loads(twice))
    assert not suite.writable(compiled(schema), twice)
    monkeypatch.setattr(grammars, "JSON_FORM", {"whitespace_flexible": False})
    assert suite.writable(build(GrammarSpec(json_schema=schema).source(), VOCABULARY), twice)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string", "minLenght": 2}, '"a"'),  # a word it does not know is passed over
        ({"type": "object", "minProperties": 2, "additionalProperties": {"type": "null"}}, '{"a":null,"a":null}'),
        ({"type": "string", "format": "date"}, '"2023-02-29"'),
        ({"type": "string", "pattern": "^.$"}, '"\u2028"'),  # ECMA-262's dot matches no end of a line
        ({"type": "integer", "minimum": 2**53 + 1}, str(2**53)),  # bounds are floats
        ({"const": "a\u0001"}, '"a"'),
    ],
    ids=lambda part: str(part)[:40],
)
def test_llguidance_alone_would_let_through(schema: dict[str, Any], text: str) -> None:
    plain = LLMatcher.grammar_from_json_schema(schema, overrides=grammars.JSON_FORM)
    assert suite.writable(build(plain, VOCABULARY), text)
    with suppress(UserError):  # some of them are refused
        assert not suite.writable(compiled(schema), text)


# --- bounds


def longest(schema: Any, characters: str) -> int:
    """Return how many of these characters in a row, in turn, the grammar lets through."""
    constraint, draw = compiled(schema).constraint(), random.Random(0)
    for count in range(20_000):
        allowed = constraint.allowed()
        wanted = [token for character in characters for token in BYTES.encode(character) if allowed[token]]
        if not wanted:
            return count
        constraint.add(draw.choice(wanted))
    return 20_000


def test_what_a_schema_leaves_open_is_bounded() -> None:
    assert longest({"type": "integer"}, "9") == 15
    assert longest({"type": "number"}, "9") == 9
    constraint = compiled({"type": "string"}).constraint()
    constraint.add(BYTES.encode('"')[0])
    for _ in range(1000):
        constraint.add(BYTES.encode("a")[0])
    assert constraint.allowed().nonzero()[:, 0].tolist() == BYTES.encode('"')
    items = compiled({"type": "array", "items": {"type": "null"}})
    assert suite.writable(items, f"[{','.join(['null'] * 64)}]")
    assert not suite.writable(items, f"[{','.join(['null'] * 65)}]")
    anything = compile_grammar(GrammarSpec(json_object=True), BYTES)
    assert suite.writable(anything, '{"a":' * 6 + "1" + "}" * 6)
    assert not suite.writable(anything, '{"a":' * 7 + "1" + "}" * 7)
    assert not suite.writable(anything, "[]") and suite.writable(anything, "{}")


def test_every_number_of_a_decimal_text_is_its_own_float() -> None:
    """So that a bound of the schema, which validators compare as a float, holds for the text."""
    found = compiled({"type": "number", "minimum": -1000, "exclusiveMaximum": 0.3})
    for text in (text for seed in range(30) if (text := suite.walk(found, seed)) is not None):
        digits = text.lstrip("-").replace(".", "").lstrip("0")
        assert len(digits) <= 15 and float(text) < 0.3


def test_definitions_in_parts_stay_open_and_elsewhere_closed() -> None:
    base = {"type": "object", "properties": {"a": {"type": "null"}}}
    schema = {"$defs": {"base": base}, "properties": {"plain": {"$ref": "#/$defs/base"}}}
    schema["properties"]["more"] = {"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {"type": "null"}}}]}
    found = compiled(schema | {"type": "object"})
    assert suite.writable(found, '{"plain":{"a":null},"more":{"a":null,"b":null}}')
    assert not suite.writable(found, '{"plain":{"a":null,"b":null}}')


def test_a_schema_is_not_changed() -> None:
    schema = {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/a"}]}, "$defs": {"a": {"type": "string"}}}
    before = json.dumps(schema)
    assert answer_schema(schema) == answer_schema(json.loads(before)) and json.dumps(schema) == before


# --- patterns


def test_a_pattern_means_what_all_dialects_mean() -> None:
    assert portable(r"^\d[^\d]$") == r"^[0-9][^\p{Nd}]$"
    assert portable(r"(a|\.)*?") == r"(?:a|\u{2e})*"
    assert portable(r"[a&&b\]-]") == r"[a\u{26}\u{26}b\u{5d}\u{2d}]"


@pytest.mark.parametrize(
    "pattern", ["(?=a)", "(?<n>a)", "(?i)a", r"\bfoo", "a**", "a++", "[", "(a", "a)", r"\1", r"\p{L}", "[]", "[z-a]",
                "a{2000}", "*a", r"\u12", "a\\", r"[^\W]", "{,3}", r"\ud800", r"[\d-x]"],
)  # fmt: skip
def test_patterns_that_dialects_read_differently_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError):
        portable(pattern)
