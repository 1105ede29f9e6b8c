"""`serve`: runs as an HTTP server that OpenAI's clients speak to."""

import logging
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gengen.config.commands import RunConfig
from gengen.config.compose import compose_flat, read_command_line
from gengen.config.help import flat_help
from gengen.config.serve import ServeConfig
from gengen.errors import UserError

if TYPE_CHECKING:
    from gengen.data.prepared import PreparedData
    from gengen.data.text.shards import TokenStream
    from gengen.serving.runs import Served

C = TypeVar("C", bound=ServeConfig)
Load = Callable[[str], "Served"]
"""Loads a run, which is named as on the command line."""
Loaded = list["Served"]


def main(argv: list[str]) -> int:
    config = composed("serve", ServeConfig, argv)
    if config is None:
        return 0
    if not config.runs:
        raise UserError("which run? python scripts/serve.py runs/NAME")
    return serve_runs(
        config, lambda load: [load(run) for run in config.runs], lambda address: say(f"serving at {address}/v1")
    )


def composed(command: str, cls: type[C], argv: list[str]) -> C | None:
    """Return the config of a command whose first arguments are runs; None where it was asked for help, and got it."""
    runs = list(takewhile(lambda word: not word.startswith("-") and "=" not in word, argv))
    line = read_command_line(argv[len(runs) :])
    if line.show == "help":
        print(flat_help(command, cls))
        return None
    line.settings = [*(("runs", run) for run in runs), *line.settings]
    return compose_flat(cls, line)


def serve_runs(config: ServeConfig, chosen: Callable[[Load], Loaded], listening: Callable[[str], None]) -> int:
    """Serve until a signal; returns the exit code.

    chosen: loads the runs. listening: is called with the server's address once it answers.
    """
    keys = config.keys(dict(os.environ))
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise UserError(f"{', '.join(missing)} not installed: pip install 'gengen[serve]'")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    from gengen.generation.secret_key import read_key
    from gengen.generation.text.watermark import Watermark
    from gengen.serving.app import Application
    from gengen.serving.load import load_run
    from gengen.serving.preferences import Preferences
    from gengen.serving.runs import by_name
    from gengen.serving.server import serve

    share_prefixes = len(keys) < 2
    mark = Watermark(read_key(Path(config.watermark)), config.watermark_delta) if config.watermark else None
    served = by_name(chosen(lambda run: load_run(run, config, say, share_prefixes, training_text, mark)))
    preferences = Preferences(Path(config.preferences), say) if config.preferences else None
    for name, run in served.items():
        say(f"{name}: {run.summary}")
    return serve(Application(served, config, keys, preferences, own_data), config, say, listening)


def training_text(directory: Path) -> "TokenStream":
    """Open the tokens that the run of a checkpoint was trained on."""
    from gengen.training.evaluate import training_text_of

    return training_text_of(RunConfig(run=str(directory)), say)


def own_data(directory: Path) -> "PreparedData":
    """Open what the run of a checkpoint was trained on, as it was prepared: nothing is made or fetched."""
    from gengen.training.evaluate import prepared_of

    return prepared_of(RunConfig(run=str(directory)), say, allow_build=False)


def say(line: str) -> None:
    print(line, flush=True)
