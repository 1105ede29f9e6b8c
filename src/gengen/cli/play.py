"""`play`: pages to look at the newest runs, in a browser on this machine. Trains nothing."""

from pathlib import Path

from gengen.checkpoints.listing import newest_of_each
from gengen.cli.serve import Load, Loaded, composed, say, serve_runs
from gengen.config.serve import PlayConfig
from gengen.errors import UserError

MAKES = "python scripts/train.py model=gpt data=tinystories"


def main(argv: list[str]) -> int:
    config = composed("play", PlayConfig, argv)
    if config is None:
        return 0
    newest = newest_of_each(Path(config.runs_dir))
    if not config.runs and not newest:
        raise UserError(f"no run in {config.runs_dir}/ has a checkpoint yet; this makes one in minutes:\n  {MAKES}")
    return serve_runs(
        config,
        lambda load: [load(run) for run in config.runs] or first_of_each(newest, load),
        lambda address: say(f"open {address}/ in a browser; the same runs answer at {address}/v1"),
    )


def first_of_each(choices: list[list[Path]], load: Load) -> Loaded:
    """Load the first of each list that can be loaded, and say why others cannot. Raises UserError where all fail."""
    found: Loaded = []
    for runs in choices:
        for run in runs:
            try:
                found.append(load(str(run)))
                break
            except UserError as error:
                say(f"{run.name} is passed over: {error}")
    if not found:
        raise UserError(f"none of the runs can be served, for the reasons above; this makes a new one:\n  {MAKES}")
    return found
