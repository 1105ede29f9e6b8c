"""What the commands that read a run have in common: which run, which family, and so which config."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gengen.checkpoints.migrate import read_config
from gengen.checkpoints.run import find
from gengen.config.compose import CommandLine, compose_flat, import_plugins, plugins, read_command_line
from gengen.config.help import flat_help
from gengen.errors import UserError
from gengen.registry import MODELS, Entry, family_and_stage

C = TypeVar("C")


def parse_run_command(command: str, config_of: Callable[[Entry], type[C]], argv: list[str]) -> C | None:
    """Return the command's config, of a run that exists; None where help was asked for, which is then printed.

    config_of: the class of the command's config for a family of models.
    """
    line = read_command_line(argv)
    import_plugins(plugins(line))
    where = line.run or line.last("run")
    if line.show == "help":
        entries = [family(where, line)] if where else [MODELS[name] for name in MODELS]
        print("\n\n".join(flat_help(command, cls) for cls in dict.fromkeys(map(config_of, entries))))
        return None
    if where is None:
        raise UserError(f"which run? python scripts/{command}.py runs/NAME")
    config: C = compose_flat(config_of(family(where, line)), line)
    return config


def family(where: str, line: CommandLine) -> Entry:
    """Return the registered family of a run's model. Raises UserError where there is no such run."""
    path = find(where, Path(line.last("runs_dir") or "runs"))
    return family_and_stage(read_config(path), path)[0]
