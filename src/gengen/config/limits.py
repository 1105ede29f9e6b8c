"""JSON from anyone."""

import json

from gengen.io import Json

MAX_DEPTH = 32


def parse_json(text: str) -> Json:
    """What a JSON text spells. A ValueError says what is wrong with it; nested deeper than 32 is wrong, too."""
    try:
        tree = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH}") from None
    _check_depth(tree)
    return tree


def _check_depth(tree: Json, left: int = MAX_DEPTH) -> None:
    for part in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        if isinstance(part, (dict, list)):
            if left == 1:
                raise ValueError(f"nested deeper than {MAX_DEPTH}")
            _check_depth(part, left - 1)
