"""`sample`: draw from a run's saved weights. What there is to say and to write is the family's (see its generator)."""

from pathlib import Path

from gengen.cli.saved import asked
from gengen.config.commands import SampleConfig


def main(argv: list[str]) -> int:
    config: SampleConfig | None = asked("sample", lambda entry: entry.sampling or SampleConfig, argv)
    if config is None:
        return 0
    from gengen.generation.load import load_generator

    generator = load_generator(
        str(config.run), Path(config.runs_dir), config.checkpoint, config.weights, config.device, print
    )
    if summary := generator.command(config, print):
        print(f"{summary}, {since_process_start():.1f} s from process start")
    return 0


def since_process_start() -> float:
    """Seconds since this process was started, imports included."""
    import os

    with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
        started = int(stat.read().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(uptime.read().split()[0]) - started
