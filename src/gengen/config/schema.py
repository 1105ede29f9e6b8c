"""Build config dataclasses from nested dicts, and back. Everything that does not fit is an error that helps."""

import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from gengen.config.data import DataConfig
from gengen.config.fields import allowed, within
from gengen.config.model import ModelConfig
from gengen.config.stage import StageConfig
from gengen.errors import UserError, did_you_mean, nearest
from gengen.io import Json
from gengen.registry import DATA, MODELS, STAGES

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config")

CHOSEN_BY_NAME = {ModelConfig: MODELS, DataConfig: DATA, StageConfig: STAGES}
"""Groups whose dataclass depends on the registered name in them."""

Tree = dict[str, Any]
Kind: TypeAlias = type | types.UnionType
"""The type of a field: a class, a list of one (list[int]), or either with None (int | None)."""
Schema = dict[str, tuple["Field[Json]", Kind]]
"""dotted key -> its field and its type"""


def unwrap(kind: Kind) -> tuple[type, bool]:
    """Return a type without its None, and whether it had one: (int | None) -> (int, True); (int) -> (int, False)."""
    if get_origin(kind) is Union or isinstance(kind, types.UnionType):
        inner = [k for k in get_args(kind) if k is not type(None)]
        return inner[0], True
    return kind, False


def type_name(kind: Kind) -> str:
    base, optional = unwrap(kind)
    name = f"list of {get_args(base)[0].__name__}" if get_origin(base) is list else base.__name__
    return name + (" or null" if optional else "")


def is_text(kind: Kind) -> bool:
    """Whether values of this type are taken from the command line as they stand."""
    base, _ = unwrap(kind)
    return base is str or base == list[str]


def class_of(kind: type, node: Json) -> type:
    """The dataclass of a group: the declared one, or the one that the name in it is registered with."""
    if kind in CHOSEN_BY_NAME and isinstance(node, dict) and node.get("name"):
        return CHOSEN_BY_NAME[kind][node["name"]].config
    return kind


def schema(cls: type, tree: Tree, prefix: str = "") -> Schema:
    """Return every leaf key that a config of this shape can have, with its field and type."""
    leaves: Schema = {}
    hints = get_type_hints(cls)
    for f in fields(cls):
        kind = hints[f.name]
        if isinstance(kind, type) and is_dataclass(kind):
            node = tree.get(f.name) or {}
            leaves |= schema(class_of(kind, node), node, f"{prefix}{f.name}.")
        else:
            leaves[prefix + f.name] = (f, kind)
    return leaves


def unknown_key(key: str, found: str, known: Schema, now: Tree) -> UserError:
    """Make the error for a key that no config has, with the nearest ones explained."""
    lines = [f"unknown key {key}={found}"]
    for name in nearest(key, known):
        f, kind = known[name]
        value = get(now, name, f.default if f.default_factory is MISSING else f.default_factory())
        lead = "did you mean" if len(lines) == 1 else "          or"
        now_is = "null" if value is None else value
        lines.append(f"  {lead} {name} ({type_name(kind)}, {f.metadata.get('doc', '')}; now {now_is})?")
    group = key.split(".")[0] + " " if "." in key else ""
    return UserError("\n".join([*lines, f"  --help {group}lists every key"]))


def wrong_value(key: str, value: Json, f: "Field[Json]", kind: Kind) -> UserError:
    wanted = " ".join(part for part in (type_name(kind), allowed(f)) if part)
    hint = did_you_mean(str(value), f.metadata["choices"], all_if_none=False) if f.metadata.get("choices") else ""
    return UserError(f"{key}={value!r} does not fit: {key} is {wanted} ({f.metadata.get('doc', '')}){hint}")


def parse(key: str, text: str, f: "Field[Json]", kind: Kind) -> Json:
    """Read a command-line value as the type of its field; interpolations of numbers and flags stay for later."""
    base, optional = unwrap(kind)
    if base is str:
        return None if optional and not text else text
    if "${" in text:
        return text
    if optional and text in ("null", "None", ""):
        return None
    try:
        if get_origin(base) is list:  # 64,128 or [64, 128]
            return [get_args(base)[0](item) for item in text.strip("[]").split(",") if item.strip()]
        if base is bool:
            return {"true": True, "false": False}[text.lower()]
        number = float(text)
        if base is int and not number.is_integer():
            raise ValueError(text)
        return int(text) if base is int and text.lstrip("+-").replace("_", "").isdigit() else base(number)
    except (ValueError, KeyError, OverflowError):
        raise wrong_value(key, text, f, kind) from None


def coerce(key: str, value: Json, f: "Field[Json]", kind: Kind) -> Json:
    """Return a value from YAML or JSON, checked against its field."""
    base, optional = unwrap(kind)
    if value is None and optional:
        return None
    if get_origin(base) is list:
        (item_type,) = get_args(base)
        if item_type is float and isinstance(value, list):  # JSON writes 1 for 1.0
            value = [float(item) if type(item) is int else item for item in value]
        if isinstance(value, list) and all(type(item) is item_type for item in value) and within(f, value):
            return list(value)
        raise wrong_value(key, value, f, kind)
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if base is float and isinstance(value, str):  # YAML reads 1e-3 as text
        value = parse(key, value, f, kind)
    if type(value) is not base or not within(f, value):
        raise wrong_value(key, value, f, kind)
    return value


def build(cls: type[Config], tree: Tree, prefix: str = "") -> Config:
    """Build the dataclass that a tree describes. Keys left out keep their defaults.

    Raises UserError for a key or a value that does not fit, and where fields do not go together.
    """
    kind = class_of(cls, tree)
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    for key in tree:
        if key not in known:
            raise unknown_key(prefix + key, str(tree[key]), schema(kind, tree, prefix), {})
    values: dict[str, Any] = {}
    for name, value in tree.items():
        inner = hints[name]
        if isinstance(inner, type) and is_dataclass(inner):
            if not isinstance(value, dict):
                raise UserError(f"{prefix}{name}={value!r} does not fit: {prefix}{name} is a group of keys")
            values[name] = build(class_of(inner, value), value, f"{prefix}{name}.")
        else:
            values[name] = coerce(prefix + name, value, known[name], inner)
    config: Config = kind(**values)
    if check := getattr(config, "check", None):
        check()
    return config


def plain(config: "DataclassInstance") -> Tree:
    """A config as nested dicts."""
    return asdict(config)


def leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Json]]:
    """Every (dotted key, value) of a tree."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def get(tree: Tree, key: str, default: Json = None) -> Json:
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return default
        tree = tree[part]
    return tree


def put(tree: Tree, key: str, value: Json) -> None:
    *path, last = key.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
    tree[last] = value
