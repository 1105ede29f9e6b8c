"""Faults on demand, for tests: GENGEN_FAULT=POINT[@N][=ACTION], several with commas, lets the code go wrong where it
says fault(POINT).

At the N-th pass of a point, or at every pass. Actions: kill (the default), term, usr1, full (no space left), oom (out
of memory), error, hang (for a quarter of an hour), poison (the caller's numbers).
"""

import errno
import os
import signal
import time
from collections import Counter

passes: Counter[str] = Counter()


def fault(point: str) -> bool:
    """Do what is asked for at this point; True where the caller is to make its own numbers NaN."""
    if not (asked := os.environ.get("GENGEN_FAULT")):
        return False
    passes[point] += 1
    actions = [
        a
        for place, _, a in (one.partition("=") for one in asked.split(","))
        if place in (point, f"{point}@{passes[point]}")
    ]
    for action in actions:
        act(action or "kill", point)
    return "poison" in actions


def act(action: str, point: str) -> None:
    if action in ("kill", "term", "usr1"):
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM, "usr1": signal.SIGUSR1}[action])
    elif action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), point)
    elif action == "oom":
        import torch

        raise torch.OutOfMemoryError(f"asked for at {point}")
    elif action == "error":
        raise RuntimeError(f"asked for at {point}")
    elif action == "hang":
        time.sleep(900)
    elif action != "poison":
        raise ValueError(f"GENGEN_FAULT: no action {action!r}")
