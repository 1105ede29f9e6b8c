"""From a command line to a typed config.

Hydra composes the groups. Values are laid over them here, each by the type of its field, so that text arrives as it
was typed and every mistake is answered before torch is imported.
"""

import os
import re
import sys
from contextlib import suppress
from copy import deepcopy
from dataclasses import Field, dataclass, field, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from gengen.config.limits import parse_json
from gengen.config.schema import (
    Config,
    Schema,
    Tree,
    build,
    get,
    is_text,
    leaves,
    parse,
    put,
    schema,
    unknown_key,
    unwrap,
)
from gengen.config.train import TrainConfig
from gengen.errors import UserError, did_you_mean, nearest, raised
from gengen.registry import DATA, MODELS, PLUGINS, STAGES

PACKAGED = Path(__file__).parents[1] / "configs"
CONFIGS = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[3] / "configs"
"""The YAML groups: inside an installed wheel, or at the root of a checkout."""


@dataclass
class CommandLine:
    """What was typed after the command's name."""

    settings: list[tuple[str, str]] = field(default_factory=list)  # (key, text) in order
    run: str | None = None  # the leading positional
    multirun: bool = False
    show: str | None = None  # "help" or "cfg"
    topic: str | None = None  # --help TOPIC
    config_dir: Path | None = None

    def last(self, key: str) -> str | None:
        return next((text for k, text in reversed(self.settings) if k == key), None)


def read_command_line(argv: list[str]) -> CommandLine:
    """Split each `key=value` at its first `=`; values are not interpreted here."""
    line, args = CommandLine(), list(argv)
    while args:
        arg = args.pop(0)
        key, equals, value = arg.partition("=")
        if key in ("--help", "-h"):
            line.show, line.topic = "help", args.pop(0) if args else None
        elif key == "--cfg":
            if (wanted := value if equals else args.pop(0) if args else "") != "job":
                raise UserError(f"--cfg {wanted} is not known; --cfg job prints the composed config")
            line.show = "cfg"
        elif key in ("-m", "--multirun"):
            line.multirun = True
        elif key == "--config-dir":
            line.config_dir = Path(value if equals else args.pop(0) if args else "").absolute()
            if not line.config_dir.is_dir():
                raise UserError(f"--config-dir {line.config_dir}: no such folder")
        elif re.match(r"\+|~", arg):
            raise UserError(f"{arg}: keys are not added or removed here; write {arg.lstrip('+~')} without {arg[0]!r}")
        elif equals and re.fullmatch(r"[A-Za-z_][\w.-]*", key):
            line.settings.append((key, value))
        elif arg.startswith("-"):
            raise unknown_flag(arg, args)
        elif line.run is None and not line.settings:
            line.run = arg
        else:
            raise UserError(f"unexpected argument {arg!r}; settings are written key=value")
    return line


FLAGS = ["help", "cfg", "multirun", "config-dir"]


def unknown_flag(arg: str, rest: list[str]) -> UserError:
    """Make the error for an unknown flag: it names the flag it is like, or the setting it may be meant for."""
    name, equals, value = arg.lstrip("-").partition("=")
    if close := nearest(name, FLAGS):
        return UserError(f"unknown flag {arg}\n  did you mean --{close[0]}?")
    value = value if equals else rest[0] if rest and not rest[0].startswith("-") and "=" not in rest[0] else "VALUE"
    key = name.replace("-", "_") or "KEY"
    return UserError(f"unknown flag {arg}\n  settings are written without dashes: {key}={value}")


def groups(config_dir: Path | None = None) -> dict[str, list[str]]:
    """Return each group's options, from the YAML files of gengen and of the user's own folder."""
    found: dict[str, set[str]] = {}
    for root in filter(None, (CONFIGS, config_dir)):
        for path in root.glob("*/**/*.yaml"):
            group, *rest = path.relative_to(root).with_suffix("").parts
            found.setdefault(group, set()).add("/".join(rest))
    return {group: sorted(options) for group, options in sorted(found.items())}


def selections(line: CommandLine) -> dict[str, str]:
    """Return the groups that the command line chooses: {"model": "gpt", ...}. Raises UserError for unknown options."""
    options = groups(line.config_dir)
    chosen = {key: text for key, text in line.settings if key in options}
    for group, text in chosen.items():
        if text not in options[group]:
            raise UserError(f"{group}={text}: no such {group}" + did_you_mean(text, options[group]))
    return chosen


def compose_groups(line: CommandLine) -> Tree:
    """Let Hydra merge train.yaml, the chosen groups, experiment and debug; interpolations stay as they are."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    overrides = [f"{group}={text}" for group, text in selections(line).items()]
    if line.config_dir:
        quoted = str(line.config_dir).replace("\\", "\\\\").replace("'", "\\'")
        overrides.append(f"hydra.searchpath=['file://{quoted}']")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
            tree = OmegaConf.to_container(compose("train", overrides), resolve=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"the configs do not compose: {error}") from None
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items() if key != "hydra"}


def resolve(tree: Tree, known: Schema) -> Tree:
    """Replace every ${...} by what it refers to. Raises UserError where that is nothing."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        resolved = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except OmegaConfBaseException as error:
        at = next((f"{key}={value}" for key, value in leaves(tree) if isinstance(value, str) and "${" in value), "")
        key = getattr(error, "full_key", None) or at.split("=")[0]
        reason = str(error).splitlines()[0]
        missing = (re.findall(r"'([^']*)'", reason) or [reason])[0]
        raise UserError(f"{key}={get(tree, key)}: {reason}" + did_you_mean(missing, known, False)) from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def escape_interpolation(text: str) -> str:
    """Escape the text's own ${, so that OmegaConf gives it back as it is."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def apply_overrides(tree: Tree, settings: list[tuple[str, str]], known: Schema) -> Tree:
    """Return the tree with each `key=value` put in, parsed by the type of its field.

    A list comes item by item or in JSON.
    """
    tree, given = deepcopy(tree), set()
    for key, text in settings:
        if key not in known:
            raise unknown_key(key, text, known, tree)
        f, kind = known[key]
        base, _ = unwrap(kind)
        if base is str or not is_text(kind):
            value = parse(key, text, f, kind)
            put(tree, key, escape_interpolation(value) if base is str and value is not None else value)
        else:
            put(
                tree,
                key,
                (get(tree, key) if key in given else []) + [escape_interpolation(item) for item in items(text, f)],
            )
        given.add(key)
    return tree


def items(text: str, f: "Field[Any]") -> list[str]:
    """Return the texts that one value of a list stands for: those of a JSON list; or itself, if not empty.

    A value of a field of prose is always itself: a prompt may be a JSON list.
    """
    if text.startswith("[") and not f.metadata.get("prose"):
        with suppress(ValueError):
            found = parse_json(text)
            if isinstance(found, list) and all(isinstance(item, str) for item in found):
                return found
    return [text] if text else []


def import_plugins(modules: list[str]) -> None:
    """Import the user's own modules, so that what they register can be named.

    Raises UserError for one that fails, or that registers a config which is no dataclass.
    """
    if modules and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for module in modules:
        try:
            import_module(module)
        except (Exception, SystemExit) as error:
            raise UserError(f"plugins=[{module}]: {raised(error, [module.split('.')[0]])}") from error
        PLUGINS.add(module)
    for registry in (MODELS, DATA, STAGES):
        for entry in registry.entries.values():
            if not (isinstance(entry.config, type) and is_dataclass(entry.config)):
                what = f"{registry.kind} {entry.name!r} is registered with {entry.config!r}"
                raise UserError(f"{what}, which is no dataclass of its settings")


def plugins(line: CommandLine) -> list[str]:
    """Return the modules that `plugins=` names: one bracketed list, as Hydra users write it, or the key repeated."""
    return [
        module.strip()
        for key, text in line.settings
        if key == "plugins"
        for module in text.strip("[]").split(",")
        if module.strip()
    ]


def field_settings(line: CommandLine) -> list[tuple[str, str]]:
    """Return the settings that are fields, not groups."""
    names = groups(line.config_dir)
    return [(key, text) for key, text in line.settings if key not in names and key != "plugins"] + [
        ("plugins", m) for m in plugins(line)
    ]


def train_tree(line: CommandLine) -> tuple[Tree, Schema]:
    """Compose and resolve the tree of a training command; returns it and every key it may have."""
    import_plugins(plugins(line))
    tree = compose_groups(line)
    known = schema(TrainConfig, tree)
    settings = field_settings(line)
    for key, text in settings:
        if key not in known and (key in tree or key + ".name" in known):
            raise UserError(f"{key}={text}: no such {key}" + did_you_mean(text, groups(line.config_dir).get(key, [])))
        if (
            key not in known
            and "." not in key
            and any(text in options for options in groups(line.config_dir).values())
        ):
            raise UserError(f"unknown group {key}={text}" + did_you_mean(key, groups(line.config_dir)))
    return resolve(apply_overrides(tree, settings, known), known), known


def compose_train(line: CommandLine) -> TrainConfig:
    """Compose the config of a new run."""
    config: TrainConfig = build(TrainConfig, train_tree(line)[0])
    return config


def compose_flat(cls: type[Config], line: CommandLine) -> Config:
    """Compose the config of a command without groups (sample, evaluate): fields, and the run as first argument."""
    import_plugins(plugins(line))
    known = schema(cls, {})
    settings = [(key, text) for key, text in line.settings if key != "plugins"]
    if line.run:
        settings.insert(0, ("run", line.run))
    return build(cls, resolve(apply_overrides({}, settings, known), known))
