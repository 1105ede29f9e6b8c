"""Read checkpoints of an older format as if they were of today's. Their files stay as they were written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gengen.checkpoints.files import Damaged, read_json
from gengen.errors import UserError
from gengen.io import Json

Tree = dict[str, Any]

FORMAT = 4


def without_text_width(config: Tree) -> Tree:
    """Drop `model.text_width`: format 2 has no cross-attention in a UNet, which was never given a text.

    Raises UserError for a model that has some. Models that read captions, by a text encoder of their own, have the
    name again, beside `model.text`, which no format 1 had.
    """
    model = config.get("model")
    if not isinstance(model, dict) or "text_width" not in model or "text" in model:
        return config
    if model["text_width"] is not None:
        raise UserError("the model has cross-attention to a text (model.text_width), which this gengen does not have")
    return config | {"model": {name: value for name, value in model.items() if name != "text_width"}}


RENAMED_IN_3 = {
    "model": {"checkpointing": "activation_checkpointing"},  # a GPT's, as a UNet has it
    "optim": {"final_lr": "final_lr_ratio", "warmup": "warmup_ratio", "decay": "decay_ratio"},
}
"""group of a config -> its keys that format 3 renames"""


def with_new_names(config: Tree) -> Tree:
    """Rename the keys of a config that format 3 has other words for."""
    renamed = dict(config)
    for group, names in RENAMED_IN_3.items():
        if isinstance(old := config.get(group), dict):
            renamed[group] = {names.get(key, key): value for key, value in old.items()}
    return renamed


STEPS: dict[int, dict[str, Callable[[Tree], Tree]]] = {
    1: {"config": without_text_width},
    2: {"config": with_new_names},
    3: {},  # format 4: tensors may lie in several files
}
"""format -> part of a checkpoint (manifest, config, optimizer or state) -> the function to the next format.

A step is never changed or removed: tests/golden has a checkpoint of each format, to be read for ever. A key that a
config lacks gets its default without a step. A step of a config leaves alone a config that it would not change: a
run's own config.json has no format number, so every step is applied to it.
"""


def migrated(tree: Tree, part: str, written: Json) -> Tree:
    """Return a part of a checkpoint as today's format has it; written: the format it was written in.

    Raises UserError for a format that no step leads on from.
    """
    if type(written) is not int or (stuck := [version for version in range(written, FORMAT) if version not in STEPS]):
        raise UserError(
            f"format {written if type(written) is not int else stuck[0]} is not known; known are {[*STEPS, FORMAT]}"
        )
    for version in range(written, FORMAT):
        tree = STEPS[version].get(part, lambda tree: tree)(tree)
    return tree


def read_config(directory: Path) -> Tree:
    """Read the config of a run or a checkpoint, as today's format has it. Raises Damaged."""
    tree = read_json(path := directory / "config.json")
    if not isinstance(tree, dict):
        raise Damaged(path, "not a JSON object")
    return migrated(tree, "config", 1)
