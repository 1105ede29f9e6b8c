"""What all engine threads share: jobs are accepted on the event loop, and each ends in exactly one outcome.

The loop appends commands to a deque and rings a bell; the thread answers by `call_soon_threadsafe`. `settle` is the
only place that sets an outcome, and runs on the loop.
"""

import asyncio
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from gengen.serving.jobs import OUTCOMES, BaseJob
from gengen.serving.protocol import ApiError

IDLE_BEAT_S = 1.0  # how often an engine that has nothing to do shows that it lives
J = TypeVar("J", bound=BaseJob[Any])


class EngineThread(Generic[J]):
    """Does the jobs of one run. queue: jobs that may wait; more are refused.

    A kind of engine writes `_run`, the loop of the thread; `_enqueue` and `_drop`, which run in it; `_cut_begun`.
    """

    stale_s = 10.0  # an engine without a beat for so long is said to hang

    def __init__(self, queue: int):
        self.queue_limit = queue
        # the loop's
        self.jobs: set[J] = set()  # accepted, without an outcome
        self.unbegun: set[J] = set()  # of these, those that wait
        self.accepted = 0
        self.outcomes = Counter(dict.fromkeys(OUTCOMES, 0))
        self.settled_at: deque[float] = deque(maxlen=32)
        self.draining = False
        # between the two
        self.commands: deque[tuple[Callable[[J], object], J]] = deque()
        self.bell = threading.Event()
        self.beat = time.monotonic()
        self.stopping = False
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # --- on the event loop

    def start(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.thread.start()

    def stop(self) -> None:
        """End the thread; what is left is drained first, by `cut`."""
        self.stopping = True
        self.bell.set()
        self.thread.join(timeout=30)

    @property
    def alive(self) -> bool:
        return self.thread.is_alive() and time.monotonic() - self.beat < self.stale_s

    @property
    def running(self) -> int:
        """Return how many samples, or calls, are in work."""
        raise NotImplementedError

    def submit(self, job: J) -> None:
        """Accept a job. Raises ApiError where the queue is full or the server is being stopped."""
        if self.draining:
            raise stopped()
        if len(self.unbegun) >= self.queue_limit:
            wait = self.seconds_to_wait()
            message = f"{len(self.unbegun)} requests wait already; try again in {wait} s"
            raise ApiError(429, message, "rate_limit_exceeded", retry_after=wait)
        self.accepted += 1
        self.jobs.add(job)
        self.unbegun.add(job)
        self._command(self._enqueue, job)

    def seconds_to_wait(self) -> int:
        """Return when there will be room again, by how fast jobs have ended lately; 1 to 60."""
        if len(self.settled_at) < 2:
            return 1
        each = (time.monotonic() - self.settled_at[0]) / len(self.settled_at)
        return min(60, max(1, math.ceil(each * len(self.unbegun) / 2)))  # until half of the queue is empty

    def end(self, job: J, outcome: str, error: ApiError | None = None) -> None:
        """End a job before it is done: what it holds is free within two steps. One that has an outcome keeps it."""
        if self.settle(job, outcome, error):
            self._command(self._drop, job)

    def settle(self, job: J, outcome: str, error: ApiError | None = None) -> bool:
        """Give a job its outcome; returns whether it had none."""
        if job.outcome:
            return False
        job.outcome, job.error = outcome, error
        self.outcomes[outcome] += 1
        self.jobs.discard(job)
        self.unbegun.discard(job)
        self.settled_at.append(time.monotonic())
        job.arrived.set()
        return True

    def cut(self) -> None:
        """End all jobs where they are, for the server is being stopped; those that have not begun are refused."""
        for job in list(self.jobs):
            if job in self.unbegun:
                self.end(job, "drained", stopped())
            else:
                self._cut_begun(job)

    def _cut_begun(self, job: J) -> None:
        raise NotImplementedError

    def _command(self, what: Callable[[J], object], job: J) -> None:
        self.commands.append((what, job))
        self.bell.set()

    # --- in the thread

    def _run(self) -> None:
        raise NotImplementedError

    def _enqueue(self, job: J) -> None:
        raise NotImplementedError

    def _drop(self, job: J) -> object:
        """Free all that a job holds."""
        raise NotImplementedError

    def _obey(self) -> None:
        while self.commands:
            what, job = self.commands.popleft()
            what(job)

    def _idle(self) -> None:
        """Wait for a command, but not for long."""
        self.bell.wait(IDLE_BEAT_S)
        self.bell.clear()

    def _on_loop(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function on the event loop, soon."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(function, *arguments)


def stopped() -> ApiError:
    return ApiError(503, "the server is being stopped", "draining", retry_after=5)
