"""Checkpoints of an older format, made today's as they are read. Their files stay as they were written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gengen.checkpoints.files import Damaged, read_json
from gengen.errors import UserError

Tree = dict[str, Any]

FORMAT = 2


def without_text_width(config: Tree) -> Tree:
    """Format 2 has no cross-attention in a UNet, which nothing ever gave a text. Raises UserError for a model that has
    some.
    """
    model = config.get("model")
    if not isinstance(model, dict) or "text_width" not in model:
        return config
    if model["text_width"] is not None:
        raise UserError("the model has cross-attention to a text (model.text_width), which this gengen does not have")
    return config | {"model": {name: value for name, value in model.items() if name != "text_width"}}


STEPS: dict[int, dict[str, Callable[[Tree], Tree]]] = {1: {"config": without_text_width}}
"""format -> part of a checkpoint (manifest, config, optimizer or state) -> what makes it that of the next format.

A step is never changed or removed: tests/golden has a checkpoint of each format, to be read for ever. What a config
lacks gets its default without a step. One of a config leaves alone a config that already is as it makes it: a run's
own config.json has no number.
"""


def migrated(tree: Tree, part: str, written: Any) -> Tree:
    """A part of a checkpoint as today's format has it; written: the format it has. Raises UserError where no step
    leads on.
    """
    if type(written) is not int or (stuck := [version for version in range(written, FORMAT) if version not in STEPS]):
        raise UserError(
            f"format {written if type(written) is not int else stuck[0]} is not known; known are {[*STEPS, FORMAT]}"
        )
    for version in range(written, FORMAT):
        tree = STEPS[version].get(part, lambda tree: tree)(tree)
    return tree


def read_config(directory: Path) -> Tree:
    """The config of a run or a checkpoint. Raises Damaged."""
    tree = read_json(path := directory / "config.json")
    if not isinstance(tree, dict):
        raise Damaged(path, "not a JSON object")
    return migrated(tree, "config", 1)
