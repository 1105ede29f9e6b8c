"""The thread of a run whose every request is one call: images, edits, scores. One call at a time, in fair turns."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gengen.errors import UserError
from gengen.serving.engine_thread import EngineThread, stopped
from gengen.serving.jobs import BaseJob
from gengen.serving.metrics import Histogram
from gengen.serving.protocol import ApiError, invalid
from gengen.serving.queue import FairQueue

log = logging.getLogger("gengen.serving")


class Ended(BaseException):
    """The job of a call has its outcome: the call is left where it is. No `except Exception` on the way holds it."""


class Progress:
    """What a call knows of its job while it runs, in the engine's thread."""

    def __init__(self, worker: "CallWorker", job: "Call"):
        self.worker, self.job = worker, job

    def check(self) -> None:
        """Show that the engine lives. Raises Ended once nobody waits for the call: its client left, say."""
        self.worker.beat = time.monotonic()
        if self.job.outcome or self.worker.stopping:
            raise Ended

    def tell(self, piece: bytes) -> None:
        """Send a part of the answer before all of it is there."""
        self.worker.tell(self.job, piece)


@dataclass(eq=False)
class Call(BaseJob[bytes]):
    """A request that is one call.

    work: draws, checks its progress on the way, and returns the answer, or the last part of it. cost: of it, in calls
    of a network for one sample, about.
    """

    work: Callable[[Progress], bytes]
    cost: int = field(default=1, kw_only=True)


class CallWorker(EngineThread[Call]):
    """Makes the calls of one run. At a step of the network it sees whether a call is still wanted."""

    stale_s = 60.0  # a step of a large network takes seconds

    def __init__(self, queue: int):
        super().__init__(queue)
        self.seconds = Histogram((0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300))  # of calls that were done
        self.current: Call | None = None
        self.turns: FairQueue[Call] = FairQueue(1)

    @property
    def running(self) -> int:
        return int(self.current is not None)

    def tell(self, job: Call, piece: bytes) -> None:
        self._on_loop(self._deliver, job, piece)

    # --- on the event loop

    def _cut_begun(self, job: Call) -> None:
        self.end(job, "drained", stopped())  # half an image is none

    def _begin(self, job: Call) -> None:
        self.unbegun.discard(job)

    def _deliver(self, job: Call, piece: bytes) -> None:
        if not job.outcome:
            job.take(piece)

    def _finish(self, job: Call, last: bytes | ApiError, seconds: float) -> None:
        if isinstance(last, ApiError):
            self.settle(job, "error", last)
        elif not job.outcome:
            job.take(last)
            self.settle(job, "done")
            self.seconds.add(seconds)

    # --- in the thread

    def _run(self) -> None:
        while not self.stopping:
            self.beat = time.monotonic()
            self._obey()
            self.current = self.turns.take({})
            if self.current is None:
                self._idle()
            elif not self.current.outcome:
                self._on_loop(self._begin, self.current)
                self._make(self.current)

    def _enqueue(self, job: Call) -> None:
        self.turns.add(job.client, job, job.cost)

    def _drop(self, job: Call) -> None:
        self.turns.remove(lambda waiting: waiting is job)

    def _make(self, job: Call) -> None:
        began = time.monotonic()
        last: bytes | ApiError
        try:
            last = job.work(Progress(self, job))
        except Ended:
            return
        except ApiError as error:
            last = error
        except UserError as error:
            last = invalid(None, str(error))
        except Exception:
            log.exception("a call failed; it ends with an error, and the next one begins")
            last = ApiError(500, "the engine failed while this was drawn", "engine_failed")
        self._on_loop(self._finish, job, last, time.monotonic() - began)
