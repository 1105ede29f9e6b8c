"""`serve`: runs as an HTTP server that OpenAI's clients speak to."""

import logging
import os
import sys
from importlib.util import find_spec
from itertools import takewhile

from gengen.config.compose import compose_flat, read_command_line
from gengen.config.help import flat_help
from gengen.config.serve import ServeConfig
from gengen.errors import UserError


def main(argv: list[str]) -> int:
    runs = list(takewhile(lambda word: not word.startswith("-") and "=" not in word, argv))
    line = read_command_line(argv[len(runs) :])
    if line.show == "help":
        print(flat_help("serve", ServeConfig))
        return 0
    line.settings = [*(("runs", run) for run in runs), *line.settings]
    config: ServeConfig = compose_flat(ServeConfig, line)
    keys = config.keys(dict(os.environ))
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise UserError(f"{', '.join(missing)} not installed: pip install 'gengen[serve]'")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    from gengen.serving.app import Application
    from gengen.serving.load import load_run
    from gengen.serving.runs import by_name
    from gengen.serving.server import serve

    served = by_name([load_run(run, config, say, share_prefixes=len(keys) < 2) for run in config.runs])
    for name, run in served.items():
        say(f"{name}: {run.summary}")
    return serve(Application(served, config, keys), config, say, lambda address: say(f"serving at {address}/v1"))


def say(line: str) -> None:
    print(line, flush=True)
