"""What commands that read a run have in common."""

from pathlib import Path
from typing import Any

from gengen.checkpoints.files import read_json
from gengen.checkpoints.run import find
from gengen.config.compose import CommandLine, compose_flat, import_plugins, plugins, read_command_line
from gengen.config.errors import UserError
from gengen.config.help import flat_help
from gengen.config.sample import SampleConfig
from gengen.registry import MODELS, Entry


def asked(command: str, cls: type | None, argv: list[str]) -> Any:
    """The command's config, of a run that exists; None where help was asked for, which is then printed.

    cls: the command's config, or None for that of the run's family.
    """
    line = read_command_line(argv)
    import_plugins(plugins(line))
    where = line.run or line.last("run")
    if line.show == "help":
        families = {} if cls or where else {MODELS[name].sampling: name for name in reversed(list(MODELS))}
        kinds = [cls or (family(where, line).sampling if where else SampleConfig), *reversed(families)]
        print("\n\n".join(flat_help(command, kind) for kind in kinds if kind))
        return None
    if where is None:
        raise UserError(f"which run? python scripts/{command}.py runs/NAME")
    return compose_flat(cls or family(where, line).sampling or SampleConfig, line)


def family(where: str, line: CommandLine) -> Entry:
    """The registered family of a run's model. Raises UserError where there is no such run."""
    path = find(where, Path(line.last("runs_dir") or "runs"))
    config = read_json(path / "config.json")
    try:
        entry: Entry = MODELS[config["model"]["name"]]
    except (KeyError, TypeError):
        raise UserError(f"{path / 'config.json'} names no model") from None
    return entry
