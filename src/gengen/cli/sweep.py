"""`train -m`: train every combination in a process of its own, as a run of its own."""

import itertools
import subprocess
import sys
from pathlib import Path

from gengen.config.compose import CommandLine, compose_groups, groups, import_plugins, plugins
from gengen.config.schema import Schema, is_text, schema
from gengen.config.train import TrainConfig
from gengen.errors import UserError


def choices(key: str, text: str, known: Schema, options: dict[str, list[str]]) -> list[str]:
    """Return the values that a sweep takes for a key, by Hydra's comma lists, range() and choice().

    Groups, numbers, flags and fields with a fixed choice are swept. Free text is one value, commas and all.
    """
    if key not in options and (
        key not in known or (is_text(known[key][1]) and not known[key][0].metadata.get("choices"))
    ):
        return [text]
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException as error:
        raise UserError(
            f"{key}={text}: not a value or a list of values to sweep over ({str(error).splitlines()[0]})"
        ) from None
    if not override.is_sweep_override():
        return [text]
    return [str(value) for value in override.sweep_string_iterator()]


def jobs(line: CommandLine) -> list[list[str]]:
    """The settings of each job, in order: the product of every swept key's values."""
    options = groups(line.config_dir)
    import_plugins(plugins(line))
    fixed = [(key, text) for key, text in line.settings if text in options.get(key, [])]
    known = schema(TrainConfig, compose_groups(CommandLine(settings=fixed, config_dir=line.config_dir)))
    swept = [[f"{key}={value}" for value in choices(key, text, known, options)] for key, text in line.settings]
    return [list(job) for job in itertools.product(*swept)]


def sweep(line: CommandLine) -> int:
    """Run the jobs one after another, then print a row for each; 1 if any failed, 130 after Ctrl-C."""
    if line.show:
        raise UserError("-m runs jobs; leave it out to see the config of one")
    table, codes, flags = [], [], ["--config-dir", str(line.config_dir)] if line.config_dir else []
    everything = jobs(line)
    varied = [i for i in range(len(line.settings)) if len({job[i] for job in everything}) > 1]
    named = line.run or line.last("run")
    for number, settings in enumerate(everything, start=1):
        words = " ".join(settings[i] for i in varied)
        print(f"sweep  {number}/{len(everything)}  {words}", flush=True)
        if named:
            settings = [*settings, f"run={named}-{number}"]
        try:
            command = [sys.executable, "-m", "gengen.cli", "train", *flags, *settings]
            done = subprocess.run(command, capture_output=True, encoding="utf8", errors="replace")
        except KeyboardInterrupt:  # the job has had it too, and has saved
            codes.append(130)
            table.append(f"{words}  interrupted")
            break
        codes.append(done.returncode)
        table.append(f"{words}  {outcome(done)}")
    print("\n".join(table))
    return 130 if 130 in codes else int(any(codes))


def outcome(done: "subprocess.CompletedProcess[str]") -> str:
    """One line for one job: its run and last words, or why it failed."""
    lines = done.stdout.splitlines()
    run = next((Path(text.split()[-1]) for text in lines if text.startswith("run ")), None)
    if done.returncode == 0:
        last = next((text for text in reversed(lines) if text.startswith("done")), "done")
        return f"{run}  {last}"
    reason = (
        next((text for text in done.stderr.splitlines() if text.startswith("error: ")), "")
        or (done.stderr.splitlines() or ["?"])[-1]
    )
    return f"failed with exit {done.returncode}  {reason}" + (f"  ({run})" if run else "")
