"""Save, find and prune the checkpoints of one run. No crash leaves a torn one."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from gengen.checkpoints.files import Damaged, replace_text
from gengen.checkpoints.layout import Checkpoint, verify, write
from gengen.errors import NoCheckpoint, UserError
from gengen.faults import fault
from gengen.io import Say, fsync

STEP = re.compile(r"step-(\d{9})")


def step_of(path: Path) -> int:
    """The step in a checkpoint's name, or -1."""
    match = STEP.fullmatch(path.name)
    return int(match[1]) if match else -1


def all_steps(root: Path) -> list[Path]:
    """Every checkpoint directory, newest first, verified or not."""
    return sorted((p for p in root.glob("step-*") if step_of(p) >= 0), key=step_of, reverse=True)


class SaveFailed(UserError):
    """A checkpoint could not be written; those that are there are as they were."""

    exit_code = 1


def save(root: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint: stage beside the target, flush each file, manifest last, rename, flush, then move LATEST.

    Raises SaveFailed.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        check_space(root, checkpoint.nbytes(), checkpoint.nbytes())
        return staged(root, checkpoint)
    except SaveFailed:
        raise
    except Exception as error:  # whatever it is, training can go on
        sweep(root)
        what = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise SaveFailed(f"step {checkpoint.step} could not be written to {root}: {what}") from error


def check_space(root: Path, needed: int, size: int) -> None:
    """Raise SaveFailed where `needed` bytes, of checkpoints of `size`, are not free."""
    if (free := shutil.disk_usage(root).free) < needed:
        raise SaveFailed(f"{root}: {needed:,} bytes are needed for checkpoints of {size:,}, {free:,} are free")


def staged(root: Path, checkpoint: Checkpoint) -> Path:
    stage = root / f".tmp-step-{checkpoint.step:09d}-{os.getpid()}"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    fault("save:begin")
    write(stage, checkpoint, after=lambda file: fault(f"save:{file}"))
    return publish(root, stage, checkpoint.step)


def publish(root: Path, stage: Path, step: int) -> Path:
    """Make a folder in which all is written the checkpoint of a step, and the newest."""
    target = root / f"step-{step:09d}"
    fsync(stage)
    fault("save:staged")
    if target.exists():  # the same step saved again, after an interrupted evaluation
        os.rename(target, root / f".trash-{target.name}-{os.getpid()}")
    os.rename(stage, target)
    fault("save:renamed")
    fsync(root)
    replace_text(root / "LATEST", target.name + "\n")
    fault("save:latest")
    return target


def mark_best(root: Path, path: Path) -> None:
    replace_text(root / "BEST", path.name + "\n")


def pointed(root: Path, pointer: str) -> Path | None:
    """The checkpoint that LATEST or BEST names, if it is one of this run's."""
    try:
        name = (root / pointer).read_text(encoding="utf8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return root / name if STEP.fullmatch(name) and (root / name).is_dir() else None


def prune(root: Path, keep: int) -> None:
    """Remove all but the newest `keep`, the best, and the newest that verifies; what crashes left goes as well."""
    steps = all_steps(root)
    kept = {*steps[:keep], pointed(root, "BEST"), next(good(root), None)}
    for path in steps:
        if path not in kept:
            os.rename(path, root / f".trash-{path.name}-{os.getpid()}")
    fault("save:prune")
    sweep(root)


def sweep(root: Path) -> None:
    for leftover in (*root.glob(".tmp-*"), *root.glob(".trash-*")):
        shutil.rmtree(leftover, ignore_errors=True)


def good(root: Path, say: Say = lambda line: None, quarantine: bool = False) -> Iterator[Path]:
    """Yield the checkpoints that verify, newest first. Names damaged ones; the lock's holder may set them aside."""
    for path in all_steps(root):
        try:
            verify(path)
        except Damaged as damage:
            aside = path.with_name(f"damaged-{path.name}")
            say(f"{damage}; " + (f"set aside as {aside.name}" if quarantine else "passed over"))
            if quarantine:
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(path, aside)
        else:
            yield path


def newest(root: Path, say: Say = lambda line: None, quarantine: bool = False) -> Path | None:
    """The newest checkpoint that verifies. The lock's holder also mends LATEST."""
    path = next(good(root, say, quarantine), None)
    if path is not None and quarantine and pointed(root, "LATEST") != path:
        replace_text(root / "LATEST", path.name + "\n")
    return path


def choose(root: Path, which: str, say: Say = lambda line: None) -> Path:
    """The verified checkpoint that `latest`, `best` or the number of a step means."""
    if which == "latest":
        if (path := newest(root, say)) is None:
            raise NoCheckpoint(f"{root} has no checkpoint that verifies")
        return path
    have = [step_of(path) for path in all_steps(root)]
    if which == "best":
        path = pointed(root, "BEST")
    elif which.isdigit():
        path = root / f"step-{int(which):09d}"
    else:
        raise UserError(f"checkpoint={which} is not known: latest, best, or a step of {have}")
    if path is None or not path.is_dir():
        raise UserError(f"checkpoint={which}: {root} has none; its steps are {have}")
    verify(path)
    return path


def set_aside_after(root: Path, step: int, say: Say) -> None:
    """Rename the checkpoints after a step that a run goes back to, so that LATEST stays the newest."""
    for path in all_steps(root):
        if step_of(path) > step:
            aside = path.with_name(f"superseded-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
            say(f"{path.name} lies beyond step {step}; set aside as {aside.name}")
