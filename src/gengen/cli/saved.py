"""What commands that read a run have in common."""

from pathlib import Path
from typing import Any

from gengen.checkpoints.run import find
from gengen.config.compose import compose_flat, read_command_line
from gengen.config.errors import UserError
from gengen.config.help import flat_help


def asked(command: str, cls: type, argv: list[str]) -> Any:
    """The command's config, of a run that exists; None where help was asked for, which is then printed."""
    line = read_command_line(argv)
    if line.show == "help":
        print(flat_help(command, cls))
        return None
    config = compose_flat(cls, line)
    if config.run is None:
        raise UserError(f"which run? python scripts/{command}.py runs/NAME")
    find(config.run, Path(config.runs_dir))
    return config
