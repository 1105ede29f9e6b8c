"""A data worker that sleeps for ever, is killed, or raises: F24."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gengen.data import loader as steps
from helpers.families import FamilyOf, on
from helpers.processes import forked
from helpers.runs import FREE

WORKERS = ["data.num_workers=2", "data.worker_timeout=2"]
FREE_OF_WORKERS = FREE | {"data.num_workers", "data.worker_timeout"}
ACTIONS = {
    "kill": ("is killed by signal", "exited unexpectedly"),  # as torch finds it by its handler, or by its look
    "hang": ("timed out",),
    "error": ("asked for at data:batch",),
}


@pytest.mark.fault("F24")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "vae"])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_worker_that_always_fails_is_an_error(name: str, family_of: FamilyOf, tmp_path: Path, action: str) -> None:
    """Started anew once; then it is said what failed, with the worker's own traceback if it has one, and nobody is
    left behind.
    """
    family, begun = family_of(name), time.monotonic()
    patience = "2" if action == "hang" else "30"  # a worker that is started on a busy machine may need more than two
    settings = ["data.num_workers=2", f"data.worker_timeout={patience}"]
    ended = forked(family.begin(tmp_path, *settings), f"data:batch@3={action}")
    assert ended.code == 2 and any(words in ended.said for words in ACTIONS[action]) and "data worker" in ended.said
    assert ("in received" in ended.said) == (action == "error")  # the frame of the worker; our own has none
    assert time.monotonic() - begun < 90
    assert forked(on(tmp_path, "data.num_workers=0")).code == 0
    family.same(tmp_path / "r", FREE_OF_WORKERS)


def failing_once(flag: Path, action: Callable[[], object]) -> Callable[[], None]:
    """Has the first worker that comes to its third batch do something, once in all processes."""
    passes = iter(range(1, 10**6))

    def received(batch: Any) -> Any:
        if next(passes) == 3 and not flag.exists():
            flag.touch()
            action()
        return batch

    return lambda: setattr(steps, "received", received)


def fails() -> None:
    raise OSError("the disk hiccuped")


@pytest.mark.fault("F24")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "vae"])
@pytest.mark.parametrize(
    "action", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: time.sleep(600), fails], ids=list(ACTIONS)
)
def test_a_worker_that_fails_once_is_started_anew(
    name: str, family_of: FamilyOf, tmp_path: Path, action: Callable[[], object]
) -> None:
    """And no batch is lost, doubled or exchanged."""
    family, flag = family_of(name), tmp_path / "failed"
    assert forked(family.begin(tmp_path, *WORKERS), before=failing_once(flag, action)).code == 0
    assert flag.exists()
    family.same(tmp_path / "r", FREE_OF_WORKERS)
