"""A run's config.json is its truth. What a command line may change of it on resume, and what it may not."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from gengen.config.compose import CommandLine, field_settings, selections, train_tree
from gengen.config.errors import UserError
from gengen.config.schema import Tree, build, get, leaves, plain, put, schema
from gengen.config.train import TrainConfig

ONE_COMMAND: Tree = {"resume": "auto", "stop_at": None, "max_time": None, "plugins": [], "dry_run": False}
"""Fields that are about one command, not about the run: they are never stored."""


def stored(config: TrainConfig) -> Tree:
    """The config as a run and its checkpoints keep it."""
    return plain(config) | ONE_COMMAND


@dataclass
class Change:
    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.after}"


def wishes(line: CommandLine) -> Tree:
    """The values that the command line states, by dotted key: its fields, and the contents of the groups it chooses."""
    config = plain(build(TrainConfig, train_tree(line)[0]))
    chosen = set(selections(line))
    stated = {key for key, _ in field_settings(line)}
    if chosen:
        composed = {key for key, _ in leaves(train_tree(line)[0])}
        stated |= {k for k in composed if k.split(".")[0] in chosen or chosen & {"experiment", "debug"}}
    return {key: get(config, key) for key in sorted(stated)}


def resumed(kept: Tree, line: CommandLine) -> tuple[TrainConfig, list[Change]]:
    """The stored config with the free and warned changes laid over it, and those that deserve a warning.

    `auto` and null state no wish: the run has settled them. Raises UserError with a diff for every fixed field.
    """
    known = schema(TrainConfig, kept)
    tree, warned, refused = deepcopy(kept), [], []
    for key, value in wishes(line).items():
        policy = known[key][0].metadata.get("on_resume", "fixed") if key in known else "fixed"
        change = Change(key, get(kept, key), value)
        if change.before == value or (policy != "free" and value in ("auto", None)):
            continue
        if policy == "fixed":
            refused.append(change)
            continue
        put(tree, key, value)
        if policy == "warned":
            warned.append(change)
    if refused:
        raise UserError(
            "this run was begun with other settings, which a resume cannot change:\n  "
            + "\n  ".join(map(str, refused))
            + "\n  start a new run for them (another run=NAME; init_from=RUN takes the weights along)"
        )
    config = build(TrainConfig, tree)
    assert isinstance(config, TrainConfig)
    return config, warned
