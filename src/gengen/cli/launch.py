"""The other ranks of a run: processes that are handed the job and neither name, lock nor compose."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gengen.config.schema import plain
from gengen.config.train import TrainConfig

HANDED = "GENGEN_JOB"
"""Environment variable of a rank above 0: the path of the job it is part of."""


@dataclass
class Job:
    """What every rank needs to know: the settled config as plain data, the run, and where to start from."""

    config: dict[str, Any]
    run: str
    checkpoint: str | None
    init_from: str | None


def job(config: TrainConfig, run: Path, checkpoint: Path | None, init_from: Path | str | None) -> Job:
    return Job(plain(config), str(run), str(checkpoint) if checkpoint else None, str(init_from) if init_from else None)


def handed_job() -> Job | None:
    """The job this process was started for, if it is a rank above 0."""
    path = os.environ.get(HANDED)
    return Job(**json.loads(Path(path).read_text(encoding="utf8"))) if path else None


@contextmanager
def other_ranks(job: Job, world: int) -> Iterator[None]:
    """Run ranks 1 to world-1 beside this process, which becomes rank 0; they end with it."""
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
    ranks = [subprocess.Popen(command, env=os.environ | {"LOCAL_RANK": str(i), HANDED: str(handed)}) for i in range(1, world)]
    try:
        yield
        for rank in ranks:
            rank.wait(timeout=60)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        handed.unlink(missing_ok=True)
