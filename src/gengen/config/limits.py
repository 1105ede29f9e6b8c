"""JSON from anyone."""

import json

from gengen.io import Json

MAX_DEPTH = 32


def parse_json(text: str, strict: bool = False) -> Json:
    """What a JSON text spells. A ValueError says what is wrong with it; nested deeper than 32 is wrong, too.

    strict: NaN, Infinity and a key that an object holds twice are wrong as well.
    """
    try:
        if strict:
            tree = json.loads(text, parse_constant=_no_json, object_pairs_hook=_unique_keys)
        else:
            tree = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH}") from None
    _check_depth(tree)
    return tree


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _unique_keys(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:60]!r} is there twice")
        found[key] = value
    return found


def _check_depth(tree: Json, left: int = MAX_DEPTH) -> None:
    for part in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        if isinstance(part, (dict, list)):
            if left == 1:
                raise ValueError(f"nested deeper than {MAX_DEPTH}")
            _check_depth(part, left - 1)
