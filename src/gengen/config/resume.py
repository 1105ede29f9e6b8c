"""What a command line may change of a run on resume, and what it may not. The run's config.json is its truth."""

from copy import deepcopy
from dataclasses import dataclass

from gengen.config.compose import (
    CommandLine,
    apply_overrides,
    compose_groups,
    escape_interpolation,
    field_settings,
    resolve,
    selections,
)
from gengen.config.schema import Schema, Tree, build, coerce, get, leaves, plain, put, schema
from gengen.config.train import TrainConfig
from gengen.errors import UserError
from gengen.io import Json

ONE_COMMAND: Tree = {"resume": "auto", "stop_at": None, "max_time": None, "plugins": [], "dry_run": False}
ONE_COMMAND |= {"trainer.nodes": None}
"""Fields, by dotted key, that are about one command, not about the run: they are never stored."""


def stored(config: TrainConfig) -> Tree:
    """Return the config as a run and its checkpoints keep it."""
    return of_no_command(plain(config))


def of_no_command(tree: Tree) -> Tree:
    """Return the tree without what is about one command."""
    tree = deepcopy(tree)
    for key, value in ONE_COMMAND.items():
        put(tree, key, deepcopy(value))
    return tree


@dataclass
class Change:
    key: str
    before: Json
    after: Json

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.after}"


def policy(key: str, known: Schema) -> str:
    return known[key][0].metadata.get("on_resume", "fixed") if key in known else "fixed"


def escaped(tree: Tree) -> Tree:
    """Return the tree with its texts escaped, so that resolving interpolations leaves them as they are."""
    tree = deepcopy(tree)
    for key, value in leaves(tree):
        if isinstance(value, str):
            put(tree, key, escape_interpolation(value))
        elif isinstance(value, list):
            put(tree, key, [escape_interpolation(item) if isinstance(item, str) else item for item in value])
    return tree


def wishes(kept: Tree, known: Schema, line: CommandLine) -> Tree:
    """Return what the command line asks for, by dotted key: the groups it chooses, and over them its fields."""
    chosen, wanted = set(selections(line)), {}
    if chosen:
        composed = resolve(compose_groups(line), known)
        wanted = {k: v for k, v in leaves(composed) if k.split(".")[0] in chosen or chosen & {"experiment", "debug"}}
    settings = field_settings(line)
    laid = resolve(apply_overrides(escaped(kept), settings, known), known)
    wanted |= {key: get(laid, key) for key, _ in settings}
    wanted.pop("init_from", None)  # was about the beginning
    return {key: coerce(key, wanted[key], *known[key]) if key in known else wanted[key] for key in sorted(wanted)}


def resumed(kept: Tree, line: CommandLine) -> tuple[TrainConfig, list[Change]]:
    """Lay the free and warned changes over a stored config; returns it, and the changes to warn of.

    `auto` and null ask for nothing: the run has settled them. Raises UserError with a diff for every fixed field.
    """
    build(TrainConfig, kept)  # refuses what does not fit before anything else reads it
    known = schema(TrainConfig, kept)
    tree = of_no_command(kept)  # somebody else's run may hold what is never stored: plugins
    warned: list[Change] = []
    refused: list[Change] = []
    for key, value in wishes(kept, known, line).items():
        change = Change(key, get(kept, key), value)
        rule = policy(key, known)
        if change.before == value or (rule != "free" and value in ("auto", None)):
            continue
        if rule == "fixed":
            refused.append(change)
            continue
        put(tree, key, value)
        if rule == "warned":
            warned.append(change)
    if refused:
        raise UserError(
            "this run was begun with other settings, which a resume cannot change:\n  "
            + "\n  ".join(map(str, refused))
            + "\n  start a new run for them (another run=NAME; init_from=RUN takes the weights along)"
        )
    return build(TrainConfig, tree), warned
