"""Named points at which a test can kill the process: GENGEN_FAULT=save:manifest, or save:manifest@3 for the third pass."""

import os
import signal
from collections import Counter

passes: Counter[str] = Counter()


def point(name: str) -> None:
    """Die here, as by kill -9, if the environment says so."""
    wanted = os.environ.get("GENGEN_FAULT")
    if wanted is None:
        return
    passes[name] += 1
    if wanted in (name, f"{name}@{passes[name]}"):
        os.kill(os.getpid(), signal.SIGKILL)
