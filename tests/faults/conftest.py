"""The fault tests' families, and the table that `make faults` ends with: fault, promised, held.

@pytest.mark.fault("F8", "kill -9 at each point of a save", "the old or the new checkpoint") says what a test injects
and what must hold; a mark with the number alone adds its test to that row. Tests elsewhere may carry it, too.
"""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from gengen.cli import main
from gengen.data.sources.storygen import examples
from helpers.families import AUTOENCODER, MACHINE, OWN, RHYTHM, Family, FamilyOf

ROWS = {
    "F1": ("a stop, then a resume", "every file bit for bit as if never stopped"),
    "F2": ("other numbers of data workers after a resume", "bit for bit the same"),
    "F3": ("three resumes inside one epoch, or one iteration", "bit for bit the same"),
    "F4": ("a resume at an epoch's end, and at step 0", "no epoch is empty or doubled"),
    "F5": ("F1 for two optimizers, online RL, diffusion, autoencoders", "the same; one step an update"),
    "F6": ("F1 with dropout and random augmentation, in workers", "the same"),
    "F7": ("one rank, then two", "the same order; the same curve"),
    "F8": ("kill -9 at each point of a save", "the old or the new checkpoint, never a torn one"),
    "F9": ("kill -9 at random moments, a save every step", "always resumes; ends as if never killed"),
    "F10": (
        "no space left while saving",
        "goes on, warns, tries again; checkpoints intact; fails after K failed saves",
    ),
    "F11": ("not enough space at the start", "refused before training, with the bytes"),
    "F12": ("a damaged checkpoint", "named, set aside; the newest good one is taken"),
    "F13": ("LATEST missing, stale, or leading elsewhere", "mended; nothing outside the run is read"),
    "F14": ("checkpoints/ read-only, or removed meanwhile", "a clear error; nothing else is lost"),
    "F15": (
        "SIGTERM in a step, evaluation, preview, rollout, save",
        "a checkpoint, exit 143; a second one exits at once",
    ),
    "F16": ("SIGUSR1, ahead of a time limit", "a checkpoint; requeued; exit 75"),
    "F17": ("a NaN loss", "no weight or moment changes; stop, skip or rollback as asked"),
    "F18": ("an infinite gradient on one of two ranks", "both skip the step together"),
    "F19": ("a spike of the loss", "counted and skipped; the detector's state is resumed"),
    "F20": ("NaN for ever", "stops after N steps; the healthy checkpoints are kept"),
    "F21": ("broken data files", "counted and skipped up to a share, then an error that names them"),
    "F22": ("data changed before a resume", "refused"),
    "F23": ("out of memory in a micro-batch", "halved; the same step"),
    "F24": (
        "a data worker that hangs, is killed, raises",
        "one restart, then an error with its traceback; no orphans",
    ),
    "F25": ("a main thread that is stuck", "all stacks dumped, exit 70"),
    "F26": ("two processes on one run", "the second exits 3, naming the first; a dead one's lock is taken over"),
    "F27": ("a config changed on resume", "what may change does, with a diff; the rest is refused"),
    "F28": ("a checkpoint of an older, or newer, format", "migrated; refused politely"),
    "F29": ("a logger that fails", "one warning; training goes on"),
    "F30": ("compile or EMA on at saving, off at loading", "the same names; the weights load"),
    "F31": ("two ranks: a failed save, a long evaluation, a rank that fails, hangs, is killed", "none waits for ever"),
}


# --- the table

BEGUN = time.monotonic()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.user_properties += [("fault", mark.args) for mark in item.iter_markers("fault")]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table, where tests were chosen by the mark; below it what they counted, by `record_property`."""
    if "fault" not in config.option.markexpr:
        return
    words, found, counts = dict(ROWS), defaultdict[str, dict[str, Any]](dict), Counter[str]()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") != "call" and getattr(report, "outcome", "passed") == "passed":
                continue
            for name, value in getattr(report, "user_properties", []):
                if name == "fault":
                    number, *text = value
                    found[number][report.nodeid] = report
                    words[number] = tuple(text) if len(text) == 2 else words.get(number, ("", ""))
                elif isinstance(value, int):
                    counts[name] += value
    lines = ["| | fault | promised | held |", "|---|---|---|---|"]
    for number in sorted(words, key=lambda n: (n[0], int(n[1:]) if n[1:].isdigit() else 0)):
        lines.append(f"| {number} | {' | '.join(words[number])} | {verdict(list(found[number].values()))} |")
    minutes = (time.monotonic() - BEGUN) / 60
    terminalreporter.section(f"faults, in {minutes:.1f} min")
    terminalreporter.write("\n".join([*lines, *(f"{n:,} {name}" for name, n in sorted(counts.items()))]) + "\n")


def verdict(reports: list[Any]) -> str:
    """held, failed, or why it was not tried."""
    tried = [r for r in reports if not r.skipped]
    reasons = {getattr(r, "wasxfail", "") or r.longrepr[2].removeprefix("Skipped: ") for r in reports if r.skipped}
    if failed := [r for r in tried if r.failed]:
        return f"**failed**: {len(failed)} of {len(tried)}"
    held = [f"held ({len(tried)} test{'s' * (len(tried) > 1)})"] if tried else []
    return "; ".join(held + [f"cannot be tried here: {reason}" for reason in sorted(reasons)]) or "no test"


# --- the families


@pytest.fixture(scope="module", autouse=True)
def no_flops_are_counted(without_mfu: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    with without_mfu():
        yield


@pytest.fixture(scope="session")
def codec(picture_data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small autoencoder's run, for the ldm."""
    runs = tmp_path_factory.mktemp("codec")
    own = [*picture_data, "data.flip=true", "data.batch_size=12", *AUTOENCODER, "trainer.max_steps=4", *MACHINE]
    assert main(["train", "model=autoencoder_kl", *own, f"runs_dir={runs}", "run=codec"]) == 0
    return runs / "codec"


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in islice(examples("prompts", "train"), 60)))
    return path


@pytest.fixture(scope="session")
def family_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FamilyOf:
    """name -> the family, with its undisturbed run; each is made once a session."""
    made: dict[str, Family] = {}

    def settings(name: str) -> list[str]:
        if name == "gpt":
            return [*request.getfixturevalue("tiny"), *OWN[name], *RHYTHM]
        if name == "ppo":
            source, data = request.getfixturevalue("base"), request.getfixturevalue("prompts")
            return [
                *OWN[name],
                f"init_from={source}",
                f"data.path={data}",
                *request.getfixturevalue("tiny_alignment"),
                *RHYTHM,
            ]
        codec = [f"model.codec={request.getfixturevalue('codec')}"] if name == "ldm" else []
        return [*OWN[name], *request.getfixturevalue("picture_data"), *codec, *MACHINE, *RHYTHM]

    def of(name: str) -> Family:
        if name not in made:
            runs, argv = tmp_path_factory.mktemp(name), settings(name)
            assert main(["train", *argv, f"runs_dir={runs}", "run=straight"]) == 0  # what is imported late is so now
            made[name] = Family(name, argv, runs / "straight")
        return made[name]

    return of


@pytest.fixture(params=list(OWN))
def family(request: pytest.FixtureRequest, family_of: FamilyOf) -> Family:
    """Each of the families in turn."""
    return family_of(request.param)
