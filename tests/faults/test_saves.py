"""A save that is killed, a folder that cannot be written, a signal: no checkpoint is torn and none is lost. F8, F9,
F14, F15.
"""

import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from gengen.checkpoints import store
from gengen.training.objective import Objective
from helpers.families import OWN, Family, FamilyOf, on, step
from helpers.processes import forked, left_behind, start
from helpers.runs import FREE, last_checkpoint, same_checkpoint

EVERY = FREE | {"trainer.save_every"}


@pytest.fixture(params=product(OWN, ["sync", "async"]), ids="-".join)
def family(request: pytest.FixtureRequest, family_of: FamilyOf) -> Family:
    """Each family, whose training waits for its saves, or goes on beside them."""
    name, save = request.param
    return replace(family_of(name), save=save)


@pytest.mark.fault("F8")
@pytest.mark.slow
def test_a_kill_at_each_point_of_a_save(family: Family, tmp_path: Path) -> None:
    """One run, killed -9 at every point in turn, each time in the first save of the process."""
    run, at = tmp_path / "r", 1
    assert forked(family.begin(tmp_path, "stop_at=1", "trainer.save_every=1")).code == 0
    for point in family.points:
        assert forked(on(tmp_path), f"{point}@1").code == -signal.SIGKILL, point
        at += point in (
            "save:renamed",
            "save:latest",
            "save:prune",
        )  # the new one is whole from here on; before, the old one is there
        assert step(run) == at, point
    assert forked(on(tmp_path)).code == 0
    family.same(run, EVERY)
    assert not list((run / "checkpoints").glob(".t*"))


def killed_at_a_random_moment(family: Family, runs: Path, moment: float) -> bool:
    """Kill a run that saves every step after so many seconds, resume it, compare its end. False if it ended before."""
    shutil.rmtree(runs, ignore_errors=True)
    argv = family.begin(runs, "trainer.save_every=1")
    if forked(argv, kill_after=moment).code == 0:
        return False
    begun = (runs / "r" / "config.json").exists()  # else there is no run yet, and the same command begins it
    assert forked(on(runs) if begun else argv).code == 0
    family.same(runs / "r", EVERY)
    return True


@pytest.mark.fault("F9")
@pytest.mark.slow
@pytest.mark.parametrize("save", ["sync", "async"])
@pytest.mark.parametrize("name", OWN)
def test_36_kills_at_random_moments(
    name: str, save: str, family_of: FamilyOf, tmp_path: Path, record_property: Any
) -> None:
    """Each of another run, which is resumed and ends as if it had not been killed."""
    family, draw, kills = replace(family_of(name), save=save), random.Random(name), 0
    begun = time.monotonic()
    assert forked(family.begin(tmp_path / "whole", "trainer.save_every=1")).code == 0
    seconds = time.monotonic() - begun
    while kills < 36:
        kills += killed_at_a_random_moment(family, tmp_path / "killed", draw.uniform(0, seconds))
    record_property("kills -9 at random moments, each resumed and equal to the undisturbed run at its end", kills)


@pytest.mark.fault("F9")
@pytest.mark.slow
@pytest.mark.parametrize("save", ["sync", "async"])
@pytest.mark.parametrize("name", OWN)
def test_4_kills_of_whole_processes(
    name: str, save: str, family_of: FamilyOf, tmp_path: Path, record_property: Any
) -> None:
    """The command as a user starts it, killed at a random moment after its run has been made; and the same command
    goes on.
    """
    family, draw, kills = replace(family_of(name), save=save), random.Random(name), 0
    while kills < 4:
        runs = tmp_path / "killed"
        shutil.rmtree(runs, ignore_errors=True)
        command = [sys.executable, "-m", "gengen.cli", *family.begin(runs, "trainer.save_every=1")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        while process.poll() is None and not (runs / "r" / "config.json").exists():
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 4))
        if process.poll() is None:
            process.kill()
            kills += 1
            process.wait()
            said = subprocess.run(command, capture_output=True, text=True, timeout=180)
            assert said.returncode == 0, said.stderr
        family.same(runs / "r", EVERY)
    record_property("kills -9 at random moments, each resumed and equal to the undisturbed run at its end", kills)


# --- a folder that cannot be written


def powerless() -> None:
    """Take root's right to write where nobody may: what is left is what permissions allow."""
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, nothing) == 0


@pytest.mark.fault("F14")
def test_checkpoints_that_may_not_be_written(family: Family, tmp_path: Path) -> None:
    """Said, and the exit is not 0; the checkpoint there is as it was, and once the folder may be written, the run goes
    on from it.
    """
    assert forked(family.begin(tmp_path, "stop_at=2")).code == 0
    folder = tmp_path / "r" / "checkpoints"
    folder.chmod(0o500)
    ended = forked(on(tmp_path), before=powerless).clear()
    folder.chmod(0o700)
    assert ended.code not in (0, 70) and "checkpoints" in ended.said and "Permission denied" in ended.said
    assert step(tmp_path / "r") == 2
    assert forked(on(tmp_path)).code == 0
    family.same(tmp_path / "r")


def removing(what: Path, at: int) -> Callable[[], None]:
    """Has a folder removed when step `at` begins."""

    def patch() -> None:
        original = Objective.training_step

        def training_step(self: Objective, *args: Any) -> None:
            while self.global_step == at - 1 and what.exists():  # a save beside it may be making files
                shutil.rmtree(what, ignore_errors=True)
            original(self, *args)

        Objective.training_step = training_step  # type: ignore[method-assign]

    return patch


@pytest.mark.fault("F14")
def test_checkpoints_removed_meanwhile(family: Family, tmp_path: Path) -> None:
    """The run goes on and makes them anew."""
    assert forked(family.begin(tmp_path), before=removing(tmp_path / "r" / "checkpoints", 6)).code == 0
    family.same(tmp_path / "r")


@pytest.mark.fault("F14")
def test_a_run_removed_meanwhile(family: Family, tmp_path: Path) -> None:
    """Said; the weights are saved all the same, as they would have been, and the run beside it is untouched."""
    shutil.copytree(family.straight, tmp_path / "beside")
    ended = forked(family.begin(tmp_path), before=removing(tmp_path / "r", 6)).clear()
    assert "warning: metrics.csv" in ended.said and f"No such file or directory: '{tmp_path / 'r'}" in ended.said
    same_checkpoint(last_checkpoint(family.straight), last_checkpoint(tmp_path / "r"))
    family.same(tmp_path / "beside")


@pytest.mark.fault("F8")
@pytest.mark.slow
def test_no_writer_outlives_the_process_that_trains(family_of: FamilyOf, tmp_path: Path) -> None:
    """Killed in the middle of a save, whose writer would hang for ever: it is gone, and a resume removes its stage."""
    family = replace(family_of("gpt"), save="async")
    assert forked(family.begin(tmp_path, "stop_at=4")).code == 0
    child, stages = start(on(tmp_path), tmp_path / "said.txt", "save:model.safetensors=hang"), tmp_path / "r"
    while not list(stages.glob("checkpoints/.tmp-*/model.safetensors")):
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not left_behind(child) and list(stages.glob("checkpoints/.tmp-*")) and step(tmp_path / "r") == 4
    assert forked(on(tmp_path)).code == 0
    family.same(tmp_path / "r")
    assert not list(stages.glob("checkpoints/.t*"))


# --- signals


def signal_points(family: Family) -> list[tuple[str, set[int]]]:
    """Where a signal comes in one command after another, and the steps that its checkpoint may be of: within one
    step, or later where the step goes on beside the save."""
    saved = {7, 8, 9} if family.save == "async" else {8, 9}
    points = [("step@2", {2}), ("evaluate@1", {4}), ("sample@1", {6}), ("save:model.safetensors@1", saved)]
    if family.name == "ppo" and family.save == "sync":  # beside the save, the last rollout has been made already
        points.append(("rollout@1", {8}))
    return points


@pytest.mark.fault("F15")
@pytest.mark.slow
def test_a_signal_leaves_a_checkpoint_wherever_it_comes(family: Family, tmp_path: Path) -> None:
    argv = family.begin(tmp_path)
    for point, steps in signal_points(family):
        if family.save == "async" and point.startswith("save:"):  # a save waits for the last: no step runs far ahead
            argv.append("trainer.save_every=1")
        assert forked(argv, f"{point}=term").code == 143, point
        assert step(tmp_path / "r") in steps, point
        root = tmp_path / "r" / "checkpoints"
        assert list(store.good(root)) == store.all_steps(root), point  # that of before as well
        argv = on(tmp_path)
    assert forked(argv).code == 0
    family.same(tmp_path / "r", EVERY)


@pytest.mark.fault("F15")
@pytest.mark.slow
def test_a_second_signal_exits_at_once_wherever_it_comes(family: Family, tmp_path: Path) -> None:
    """No checkpoint is written any more, and the run goes on from what it had."""
    assert forked(family.begin(tmp_path, "stop_at=2")).code == 0
    expected = {"step": {2}, "evaluate": {2}, "sample": {4}, "save:model.safetensors": {4}}
    if family.save == "async":  # the process that writes step 4 may be killed before it is there
        expected |= {"sample": {2, 4}, "save:model.safetensors": {2, 4}}
    for point, steps in expected.items():
        assert forked(on(tmp_path), f"{point}@1=term,{point}@1=term").code == 143, point
        assert step(tmp_path / "r") in steps, point
    assert forked(on(tmp_path)).code == 0
    family.same(tmp_path / "r")
