"""`sample`: draw from a run's saved weights. Each family decides what it shows and writes (the `command` that it
registers); without one, it does what its kind does: sample_text.py, sample_images.py.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gengen.checkpoints.migrate import read_config
from gengen.cli.run_command import parse_run_command
from gengen.config.commands import SampleConfig
from gengen.registry import Entry, family_and_stage, imported

if TYPE_CHECKING:
    from gengen.generation.base import Generator

BY_KIND = {
    "text": "gengen.cli.sample_text:sample_text",
    "image": "gengen.cli.sample_images:sample_images",
}


class SampleCommand(Protocol):
    """What a family registers as its `command`."""

    def __call__(self, generator: "Generator", config: SampleConfig, say: Callable[[str], None]) -> str:
        """Draw what the config asks for; show it by `say`, write it to files. Return a line that sums it up, or ""."""
        ...


def main(argv: list[str]) -> int:
    config = parse_run_command("sample", lambda entry: entry.sampling or SampleConfig, argv)
    if config is None:
        return 0
    from gengen.checkpoints.store import step_of
    from gengen.generation.load import find_checkpoint, generator_of

    directory = find_checkpoint(str(config.run), Path(config.runs_dir), config.checkpoint, print)
    if step_of(directory) >= 0:
        config = replace(config, checkpoint=str(step_of(directory)))  # "latest" may be another by the end
    generator = generator_of(directory, config.weights, config.device, getattr(config, "merge", True))
    command = command_of(*family_and_stage(read_config(directory), directory))
    if summary := command(generator, config, print):
        print(f"{summary}, {since_process_start():.1f} s from process start")
    return 0


def command_of(entry: Entry, stage: str) -> SampleCommand:
    """Return what `sample` does for a family: its own command, else that of its kind."""
    own = {"command", f"command:{stage}"} & entry.builds.keys()
    command: SampleCommand = entry.load_for("command", stage) if own else imported(BY_KIND[entry.kind])
    return command


def since_process_start() -> float:
    """Return the seconds since this process was started, imports included."""
    import os

    with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
        started = int(stat.read().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(uptime.read().split()[0]) - started
