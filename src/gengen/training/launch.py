"""Start the other ranks of a run on this machine: processes with torchrun's variables, which end with rank 0."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from gengen.training.lifeline import Lost
from gengen.training.place import LEADER, Place


class OwnRanks:
    """Ranks 1 to world - 1. `on_lost` is called, in a thread, for one that ends with an error."""

    def __init__(self, place: Place, port: int, on_lost: Callable[[Lost], object]):
        shared = {"MASTER_ADDR": place.address, "MASTER_PORT": str(port), LEADER: str(os.getpid())}
        shared |= {"WORLD_SIZE": str(place.world), "LOCAL_WORLD_SIZE": str(place.local_world)}
        command = [sys.executable, "-m", "gengen.cli", "train"]
        self.processes = [
            subprocess.Popen(command, env=os.environ | shared | {"RANK": str(i), "LOCAL_RANK": str(i)})
            for i in range(1, place.world)
        ]
        self.on_lost, self._over = on_lost, threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Notice a rank that ends before it has a lifeline; of those that have one, that is quicker."""
        while not self._over.wait(0.5):
            for i, process in enumerate(self.processes, 1):
                if code := process.poll():
                    self.on_lost(Lost(i, code if code > 0 else None))

    def end(self, patience: float) -> None:
        """Wait for them to end, and kill those that do not."""
        self._over.set()
        until = time.monotonic() + patience
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, until - time.monotonic()))
            if process.poll() is None:
                process.kill()


def end_with_leader() -> None:
    """From now on this process ends when our own rank 0, which has started it, is gone: whatever has ended that."""
    leader = int(os.environ[LEADER])

    def watch() -> None:
        while os.getppid() == leader:
            time.sleep(1)
        time.sleep(1)  # a lifeline has more to say of it
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
