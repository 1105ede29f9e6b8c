"""From a user's JSON schema to one that llguidance obeys to the letter, or a refusal that names the keyword.

llguidance reads most of JSON Schema (draft 2020-12), ignores words it does not know, and lets strings, numbers and
arrays run on. So each keyword is checked here against a list of our own; `$ref`, `oneOf`, `format`, `pattern` and
`enum` are rewritten into what it reads exactly; and what a schema leaves open is given a bound. An answer to the
schema that is returned is always an answer to the user's; not every answer to the user's can be written:

- properties come in the order of the schema, without spaces between;
- objects take no properties but those named, arrays no items beyond prefixItems, unless the schema says which;
- strings have 1,000 characters, arrays 64 items, maps 64 keys of 64 characters, numbers 15 digits, values of any kind
  5 levels at most, where the schema gives no smaller bound.
"""

import json
from typing import Any
from urllib.parse import unquote

from gengen.config.limits import parse_json
from gengen.errors import UserError, did_you_mean
from gengen.generation.text.json_leaves import (
    MAX_ITEMS,
    MAX_KEYS,
    check_text,
    check_value,
    constants,
    count_bounds,
    ends,
    finite_definitions,
    is_of,
    kinds,
    map_of,
    number,
    refuse,
    same,
    shown,
    string,
    types_of,
)
from gengen.io import Json

MAX_BYTES = 64 * 2**10
MAX_ALTERNATIVES = 1000
MAX_ONE_OF = 100
MAX_DEPTH = 5
DRAFTS = ("draft/2020-12/schema", "draft/2019-09/schema", "draft-07/schema", "draft-06/schema")
ANNOTATIONS = {
    *("$comment", "$defs", "definitions", "title", "description", "default", "examples"),
    *("deprecated", "readOnly", "writeOnly", "discriminator"),
}
IN_PLACE = ("$ref", "allOf", "anyOf", "oneOf")
KEYWORDS = {
    *("type", "const", "enum", *IN_PLACE),
    *("minLength", "maxLength", "pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("items", "prefixItems", "minItems", "maxItems"),
    *("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
}
UNSUPPORTED = {
    *(
        "$anchor",
        "$dynamicRef",
        "$dynamicAnchor",
        "$id",
        "$recursiveRef",
        "$recursiveAnchor",
        "$schema",
        "$vocabulary",
    ),
    *("not", "if", "then", "else", "dependentSchemas", "dependentRequired", "dependencies", "propertyNames"),
    *("patternProperties", "unevaluatedProperties", "unevaluatedItems", "uniqueItems", "additionalItems"),
    *("contains", "minContains", "maxContains", "contentEncoding", "contentMediaType", "contentSchema", "nullable"),
}
"""Keywords whose place in a schema is named, and no other word suggested."""


def answer_schema(schema: Json) -> dict[str, Any]:
    """Return what llguidance is given for a schema, which is a JSON tree. Raises UserError for one that is too large,
    or says what cannot be kept."""
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
        if size > MAX_BYTES:
            raise ValueError(f"{size:,} bytes; at most {MAX_BYTES:,} are allowed")
        root = parse_json(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"json_schema: {str(error)[:200]}") from None
    return Translation(root).whole()


class Translation:
    """One schema as it is rewritten. A `$ref` becomes one to a definition of our own.

    part: whether a schema is one of several that a value obeys at once (allOf, or words beside a $ref). Parts stay
    open for each other's properties.
    """

    def __init__(self, root: Json):
        self.root, self.alternatives = root, 0
        self.names: dict[tuple[str, bool], str] = {}
        self.definitions: dict[str, Json] = {}
        self.waiting: list[tuple[str, bool]] = []
        self.one_ofs: list[tuple[list[Json], str]] = []

    def whole(self) -> dict[str, Any]:
        found = self.schema(self.root, "#", False)
        while self.waiting:
            pointer, part = self.waiting.pop()
            self.definitions[self.names[pointer, part]] = self.schema(self.resolved(pointer), pointer, part)
        for options, at in self.one_ofs:
            self.check_apart(options, at)
        if found is False or not ends(found, finite_definitions(self.definitions)):
            raise UserError("json_schema: no answer obeys it; what it requires is forbidden, or goes on without end")
        return {"allOf": [found], "$defs": self.definitions}

    # --- one schema

    def schema(self, schema: Json, at: str, part: bool) -> Json:
        """Return a schema rewritten. at: its JSON pointer."""
        if schema is False:
            return False
        if schema is True:
            return {} if part else self.anything()
        if not isinstance(schema, dict):
            refuse(at, f"a schema is an object, true or false, not {shown(schema)}")
        self.check_words(schema, at)
        words = [word for word in schema if word in KEYWORDS]
        if not words:
            return {} if part else self.anything()
        in_place = [word for word in words if word in IN_PLACE]
        if not in_place:
            return self.plain(schema, words, at, part)
        alone = len(words) == 1 and not (words == ["allOf"] and len(schema["allOf"]) > 1)
        return self.merged(schema, words, at, part or not alone)

    def merged(self, schema: dict[str, Any], words: list[str], at: str, part: bool) -> dict[str, Any]:
        """Return a schema that says by $ref, allOf, anyOf or oneOf what else a value obeys."""
        all_of: list[Json] = []
        own = [word for word in words if word not in IN_PLACE]
        if own:
            all_of.append(self.plain(schema, own, at, part))
        for word in (word for word in words if word in IN_PLACE):
            value, here = schema[word], f"{at}/{word}"
            if word == "$ref":
                all_of.append(self.reference(value, here, part))
                continue
            if not isinstance(value, list) or not value:
                refuse(here, f"a list of schemas, not {shown(value)}")
            options = [self.schema(option, f"{here}/{i}", part) for i, option in enumerate(value)]
            if word == "allOf":
                all_of += options
                continue
            self.count(len(options), here)
            if word == "oneOf":
                self.one_ofs.append((value, here))
            all_of.append({"anyOf": options})
        return all_of[0] if len(all_of) == 1 else {"allOf": all_of}

    def plain(self, schema: dict[str, Any], words: list[str], at: str, part: bool) -> Json:
        """Return a schema without $ref, allOf, anyOf and oneOf, an alternative for each type it allows."""
        types = types_of(schema, at)
        if "const" in words or "enum" in words:
            return self.values(schema, words, types, at)
        typed = [self.of_type(kind, schema, at, part) for kind in types]
        return typed[0] if len(typed) == 1 else {"anyOf": typed}

    def values(self, schema: dict[str, Any], words: list[str], types: list[str], at: str) -> Json:
        """Return a schema of the values that const and enum leave; nothing but `type` may stand beside them."""
        if others := [word for word in words if word not in ("const", "enum", "type")]:
            refuse(f"{at}/{others[0]}", f"not beside {'enum' if 'enum' in words else 'const'}: leave values out there")
        if "enum" in words and (not isinstance(schema["enum"], list) or not schema["enum"]):
            refuse(f"{at}/enum", f"a list of values, not {shown(schema['enum'])}")
        listed = schema["enum"] if "enum" in words else [schema["const"]]
        if "enum" in words and "const" in words:
            listed = [value for value in listed if same(value, schema["const"])]
        self.count(len(listed), f"{at}/enum")
        kept = [value for value in listed if any(is_of(value, kind) for kind in types)]
        for value in kept:
            check_value(value, f"{at}/{'enum' if 'enum' in words else 'const'}")
        return {"enum": kept} if kept else False

    def of_type(self, kind: str, schema: dict[str, Any], at: str, part: bool) -> dict[str, Any]:
        match kind:
            case "string":
                return string(schema, at)
            case "integer" | "number":
                return number(kind, schema, at, part)
            case "array":
                return self.array(schema, at, part)
            case "object":
                return self.object(schema, at, part)
        return {"type": kind}

    def array(self, schema: dict[str, Any], at: str, part: bool) -> dict[str, Any]:
        least, most = count_bounds("Items", schema, at, MAX_ITEMS)
        first = schema.get("prefixItems", [])
        if not isinstance(first, list):
            refuse(f"{at}/prefixItems", f"a list of schemas, not {shown(first)}")
        rest = schema.get("items", part or not first)
        return {
            "type": "array",
            "minItems": least,
            "maxItems": most,
            "prefixItems": [self.schema(item, f"{at}/prefixItems/{i}", part) for i, item in enumerate(first)],
            "items": self.schema(rest, f"{at}/items", part),
        }

    def object(self, schema: dict[str, Any], at: str, part: bool) -> dict[str, Any]:
        named, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(named, dict):
            refuse(f"{at}/properties", f"an object of schemas, not {shown(named)}")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            refuse(f"{at}/required", f"a list of names, not {shown(required)}")
        others = schema.get("additionalProperties", part or not named)
        for name in (*named, *required):
            check_text(name, f"{at}/properties")
        properties = {
            name: self.schema(value, f"{at}/properties/{escaped(name)}", part) for name, value in named.items()
        }
        if "additionalProperties" not in schema:  # what is required is named, too
            properties |= {name: self.schema(True, at, part) for name in required if name not in named}
        least, most = count_bounds("Properties", schema, at, MAX_KEYS)
        if least > max(1, len(set(required))) or (part and least):
            refuse(f"{at}/minProperties", "1, or the number of names in required, which says more")
        further = self.schema(others, f"{at}/additionalProperties", part)
        found: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
        if not properties and not part and further is not False:
            return found | map_of(further, least, most)
        found |= {"additionalProperties": further, "minProperties": least}
        if "maxProperties" not in schema:
            return found
        if part or set(required) != set(properties):
            refuse(f"{at}/maxProperties", "only beside properties that are all required")
        return found | {"maxProperties": most}

    # --- references

    def reference(self, value: Json, at: str, part: bool) -> dict[str, str]:
        if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
            refuse(at, f"only places in the schema itself, such as #/$defs/name, not {shown(value)}")
        key = (value, part)
        if key not in self.names:
            self.names[key] = f"d{len(self.names)}"
            self.resolved(value)
            self.waiting.append(key)
        return {"$ref": f"#/$defs/{self.names[key]}"}

    def resolved(self, pointer: str) -> Json:
        """Return what a pointer such as #/$defs/name points at."""
        place = self.root
        for token in unquote(pointer).split("/")[1:]:
            name = token.replace("~1", "/").replace("~0", "~")
            if isinstance(place, list) and name.isdecimal() and int(name) < len(place):
                place = place[int(name)]
            elif isinstance(place, dict) and name in place:
                place = place[name]
            else:
                refuse("$ref", f"there is no {pointer} in the schema")
        return place

    def anything(self, depth: int = MAX_DEPTH) -> dict[str, str]:
        """Return a reference to any value at all, nested `depth` levels at most."""
        name = f"any{depth}"
        if name not in self.definitions:
            scalars = [{"type": "null"}, {"type": "boolean"}, number("number", {}, "", False), string({}, "")]
            self.definitions[name] = {"anyOf": scalars}
            if depth:
                below = self.anything(depth - 1)
                array = {"type": "array", "prefixItems": [], "items": below, "minItems": 0, "maxItems": MAX_ITEMS}
                named: dict[str, Any] = {"type": "object", "properties": {}, "required": []}
                named |= map_of(below, 0, MAX_KEYS)
                self.definitions[name] = {"anyOf": [*scalars, array, named]}
        return {"$ref": f"#/$defs/{name}"}

    # --- checks

    def check_words(self, schema: dict[str, Any], at: str) -> None:
        for word in schema:
            if word in KEYWORDS or word in ANNOTATIONS or (at == "#" and word in ("$schema", "$id")):
                continue
            if word in UNSUPPORTED:
                refuse(f"{at}/{word}", "this keyword is not supported")
            refuse(f"{at}/{escaped(word)}", f"no keyword of JSON Schema{did_you_mean(word, KEYWORDS, False)}")
        if at == "#" and not str(schema.get("$schema", DRAFTS[0])).rstrip("#").endswith(DRAFTS):
            refuse("#/$schema", f"{shown(schema['$schema'])} is none of {', '.join(DRAFTS)}")

    def count(self, more: int, at: str) -> None:
        self.alternatives += more
        if self.alternatives > MAX_ALTERNATIVES:
            refuse(at, f"more than {MAX_ALTERNATIVES:,} alternatives in all")

    def check_apart(self, options: list[Json], at: str) -> None:
        """Refuse a oneOf of which two options might hold at once, and one too long to compare each with each."""
        if len(options) > MAX_ONE_OF:
            refuse(at, f"{len(options)} options; at most {MAX_ONE_OF} are compared with each other: write anyOf")
        for j, second in enumerate(options):
            for i, first in enumerate(options[:j]):
                if not self.apart(first, second):
                    refuse(at, f"options {i} and {j} may both hold; where that is as well, write anyOf")

    def apart(self, first: Json, second: Json, objects: bool = True) -> bool:
        """Return whether no value obeys both, as types and constants tell; of objects, those of a property that both
        have if either requires it."""
        first, second = self.followed(first), self.followed(second)
        if first is False or second is False:
            return True
        if not isinstance(first, dict) or not isinstance(second, dict):
            return False
        left, right = constants(first), constants(second)
        if left is not None and right is not None:
            return not any(same(a, b) for a in left for b in right)
        shared = kinds(first) & kinds(second)
        if shared != {"object"} or not objects:
            return not shared
        names = {*first.get("required", []), *second.get("required", [])}
        properties, others = first.get("properties", {}), second.get("properties", {})
        return any(self.apart(properties.get(name, True), others.get(name, True), objects=False) for name in names)

    def followed(self, schema: Json) -> Json:
        """Return what a schema that is a mere $ref refers to."""
        for _ in range(32):
            if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
                break
            schema = self.resolved(schema["$ref"])
        return schema


def escaped(name: str) -> str:
    """Return a name as a JSON pointer has it."""
    return name.replace("~", "~0").replace("/", "~1")
