"""Commands in forked processes: to their end, killed, or as the ranks of one run; none may leave a process behind."""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gengen import faults
from gengen.checkpoints import background
from gengen.cli import main

HANGS = 180  # seconds, after which a process that should have ended by itself is said to hang


@dataclass
class Ended:
    code: int
    said: str

    def clear(self) -> "Ended":
        """Of a run that failed: it was said in words."""
        assert "Traceback" not in self.said, self.said
        return self


def start(argv: list[str], said: Path, fault: str = "", before: Callable[[], object] = lambda: None) -> int:
    """Fork a process that runs a command, in a session of its own, its words in a file; `before` may change things in
    it. Its id.
    """
    if child := os.fork():
        return child
    code = 70
    try:
        os.setsid()
        words = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(words, 1)
        os.dup2(words, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        os.environ["GENGEN_FAULT"] = fault
        if compiler := sys.modules.get("torch._inductor.config"):
            setattr(compiler, "compile_threads", 1)  # the helpers that compile belong to the process that was forked
        background.started = ForkedWriter
        before()
        code = main(argv)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def forked(
    argv: list[str], fault: str = "", before: Callable[[], object] = lambda: None, kill_after: float | None = None
) -> Ended:
    """Run a command in a forked process to its end, or kill it -9 after some seconds. See that it leaves no process
    behind.
    """
    said = Path(next(a for a in argv if a.startswith("runs_dir=")).removeprefix("runs_dir=")) / "said.txt"
    said.parent.mkdir(exist_ok=True)
    child = start(argv, said, fault, before)
    code = waited(child, HANGS if kill_after is None else kill_after)
    left = left_behind(child)
    assert code is not None or kill_after is not None, f"hangs: {said.read_text(errors='replace')}"
    assert not left, f"processes left behind: {left}"
    return Ended(-signal.SIGKILL if code is None else code, said.read_text(errors="replace"))


class Fork:
    """What Popen starts for a rank, as a fork of this process, in which all is imported already."""

    def __init__(self, command: list[str], env: dict[str, str]):
        self.returncode: int | None = None
        if not (child := os.fork()):
            os.environ.clear()
            os.environ.update(env)
            code = 70
            try:
                code = main(command[3:])  # after python -m gengen.cli
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        self.pid = child

    def poll(self) -> int | None:
        if self.returncode is None and (done := os.waitpid(self.pid, os.WNOHANG)) != (0, 0):
            self.returncode = os.waitstatus_to_exitcode(done[1])
        return self.returncode

    def wait(self, timeout: float) -> int | None:
        until = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        return self.poll()

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class ForkedWriter:
    """What Popen starts for the saves of a run that does not wait for them, as a fork of this process.

    A fault that kills it kills all processes of its session, as a machine that goes down would; a signal at one of its
    points is for the process that trains.
    """

    def __init__(self, file: int):
        (asked, self_asks), (answered, answers) = os.pipe(), os.pipe()
        trainer = os.getpid()
        self.returncode: int | None = None
        if not (child := os.fork()):
            code = 70
            try:
                os.close(self_asks)
                os.close(answered)
                os.dup2(asked, 0)
                os.dup2(answers, 1)
                sys.stdin, faults.act = os.fdopen(0), for_all(trainer)
                background.main([str(file), str(trainer)])
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(asked)
        os.close(answers)
        self.pid, self.stdin, self.stdout = child, os.fdopen(self_asks, "w"), os.fdopen(answered)

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


def for_all(trainer: int) -> Callable[[str, str], None]:
    """The faults of a writer."""
    act = faults.act

    def act_on_all(action: str, point: str) -> None:
        if action == "kill":
            os.killpg(0, signal.SIGKILL)
        elif action == "term":
            os.kill(trainer, signal.SIGTERM)
            time.sleep(0.2)  # a second one is another
        else:
            act(action, point)

    return act_on_all


def forked_ranks(then: Callable[[], object] = lambda: None) -> Callable[[], None]:
    """For `before` of `forked`: other ranks are forks; and what else is to be changed, in all of them."""

    def before() -> None:
        from gengen.training import launch

        stand_in: Any = SimpleNamespace(Popen=Fork, TimeoutExpired=subprocess.TimeoutExpired)
        launch.subprocess = stand_in
        then()

    return before


def waited(child: int, seconds: float) -> int | None:
    """The exit code of a child; None if its time was over and it was killed -9."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (done := os.waitpid(child, os.WNOHANG)) != (0, 0):
            return os.waitstatus_to_exitcode(done[1])
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def left_behind(session: int) -> list[int]:
    """The processes of a session whose first one has ended that do not see it within ten seconds; they are killed."""
    until = time.monotonic() + 10
    while (left := alive(session)) and time.monotonic() < until:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def alive(session: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found
