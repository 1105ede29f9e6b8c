"""Start the other ranks of a run: processes that are handed the job, and neither name, lock nor compose it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gengen.config.schema import plain
from gengen.config.train import TrainConfig
from gengen.errors import UserError
from gengen.training.monitor.console import last_words

HANDED = "GENGEN_JOB"
"""Environment variable of a rank above 0: the path of the job it is part of."""
GRACE = 10.0  # seconds that a rank has to notice by itself that another is gone; one that waits on a GPU does not


@dataclass
class Job:
    """What every rank needs to know: the settled config as plain data, the run, and where to start from."""

    config: dict[str, Any]
    run: str
    checkpoint: str | None
    init_from: str | None
    leader: int  # the process of rank 0


class RankFailed(UserError):
    """Another rank ended before the run did."""

    def __init__(self, rank: int, code: int):
        how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
        super().__init__(f"rank {rank} ended with {how}, and the run with it; the checkpoints are as they were")
        self.exit_code = code if code > 0 else 1


def job(config: TrainConfig, run: Path, checkpoint: Path | None, init_from: Path | str | None) -> Job:
    """Make the job that rank 0, this process, hands to the others."""
    start, source = (str(path) if path else None for path in (checkpoint, init_from))
    return Job(plain(config), str(run), start, source, leader=os.getpid())


def handed_job() -> Job | None:
    """Return the job this process was started for, if it is a rank above 0; it then ends with its rank 0."""
    if not (path := os.environ.get(HANDED)):
        return None
    job = Job(**json.loads(Path(path).read_text(encoding="utf8")))
    threading.Thread(target=end_with_leader, args=(job.leader,), daemon=True).start()
    return job


def end_with_leader(leader: int) -> None:
    """End this process as soon as the one that started it is gone, whatever ended that."""
    while os.getppid() == leader:
        time.sleep(1)
    os._exit(1)


def leader_is_gone(leader: int, patience: float = 2.0) -> bool:
    """Say whether the process of rank 0 is gone, or is so within seconds: its connections close a little before."""
    until = time.monotonic() + patience
    while os.getppid() == leader:
        if time.monotonic() >= until:
            return False
        time.sleep(0.05)
    return True


@contextmanager
def other_ranks(job: Job, world: int) -> Iterator[None]:
    """Run ranks 1 to world-1 beside this process, which becomes rank 0; they end with it, and it with them.

    Raises RankFailed where one of them has failed.
    """
    if world == 1:
        yield
        return
    handed = Path(job.run) / ".job.json"
    handed.write_text(json.dumps(asdict(job)), encoding="utf8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "NODE_RANK": "0"}
    before = {name: os.environ.get(name) for name in (*shared, "LOCAL_RANK")}
    os.environ.update(shared, LOCAL_RANK="0")
    command = [sys.executable, "-m", "gengen.cli", "train"]
    ranks = [
        subprocess.Popen(command, env=os.environ | {"LOCAL_RANK": str(i), HANDED: str(handed)})
        for i in range(1, world)
    ]
    over = threading.Event()
    threading.Thread(target=end_with_ranks, args=(ranks, over), daemon=True).start()
    try:
        yield
        over.set()
        with suppress(subprocess.TimeoutExpired):
            for rank in ranks:
                rank.wait(timeout=60)
    except UserError:
        raise
    except Exception as error:
        if (failed := first_failed(ranks, GRACE)) is not None:
            raise failed from error
        raise
    finally:
        over.set()
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        handed.unlink(missing_ok=True)


def first_failed(ranks: list["subprocess.Popen[bytes]"], patience: float) -> RankFailed | None:
    """Return the first of the ranks that has failed, or does within `patience` seconds."""
    until = time.monotonic() + patience
    while True:
        for i, rank in enumerate(ranks, 1):
            if rank.poll():
                return RankFailed(i, rank.returncode)
        if time.monotonic() >= until:
            return None
        time.sleep(0.05)


def end_with_ranks(ranks: list["subprocess.Popen[bytes]"], over: threading.Event) -> None:
    """End this process if one of the ranks fails and it does not notice: it may be waiting for that rank for ever."""
    while not over.wait(0.5):
        if (failed := first_failed(ranks, 0)) is not None and not over.wait(GRACE):
            last_words(f"error: {failed}")
            for rank in ranks:
                rank.kill()
            os._exit(failed.exit_code)
