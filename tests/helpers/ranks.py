"""A function on several ranks: forks of this process that reach each other by gloo."""

import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from helpers.processes import HANGS, waited

PATIENCE = timedelta(seconds=60)


def on_ranks(n: int, folder: Path, function: Callable[[], object]) -> None:
    """Run a function on each of n ranks, to its end; what fails on one is shown, and fails here."""
    children = []
    for rank in range(n):
        child = os.fork()
        if not child:
            code = 1
            try:
                dist.init_process_group("gloo", f"file://{folder}/store", PATIENCE, n, rank)
                function()
                dist.barrier()
                code = 0
            except BaseException:
                (folder / f"rank-{rank}.txt").write_text(traceback.format_exc())
            finally:
                os._exit(code)
        children.append(child)
    codes = [waited(child, HANGS) for child in children]
    said = "\n".join(path.read_text() for path in sorted(folder.glob("rank-*.txt")))
    assert codes == [0] * n, f"{codes}\n{said}"
