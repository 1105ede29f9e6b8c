"""The engine's thread: it alone touches a run's scheduler, and speaks with the event loop once a step.

The loop appends commands to a deque and rings a bell; the thread hands over the pieces of a step by one
`call_soon_threadsafe`. Every job that was accepted ends in exactly one outcome: `settle` is the only place that sets
it, and runs on the loop.
"""

import asyncio
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.text.continuation import Continuation
from gengen.generation.text.row import Request
from gengen.serving.jobs import OUTCOMES, Job
from gengen.serving.metrics import Histogram
from gengen.serving.pieces import Gains, Piece
from gengen.serving.protocol import ApiError
from gengen.serving.queue import FairQueue

log = logging.getLogger("gengen.serving")
IDLE_BEAT_S = 1.0  # how often an engine that has nothing to do shows that it lives
STALE_S = 10.0  # an engine without a beat for so long is said to hang


class DrawsText(Protocol):
    """What a worker needs of `Scheduler`."""

    def admit(self, request: Request) -> Continuation: ...
    def step(self) -> list[Continuation]: ...
    def cancel(self, text: Continuation, reason: str = "interrupted") -> None: ...
    @property
    def idle(self) -> bool: ...


@dataclass(eq=False)
class Drawing:
    """A choice that has a row."""

    job: Job
    text: Continuation
    gains: Gains


Told = tuple[Job, Piece | ApiError]


class Worker:
    """Draws the jobs of one run.

    make: returns a new scheduler of `rows` rows. queue: jobs that may wait; more are refused.
    """

    def __init__(self, make: Callable[[], DrawsText], tokenizer: TextTokenizer, rows: int, queue: int):
        self.make, self.tokenizer, self.rows, self.queue_limit = make, tokenizer, rows, queue
        # the loop's
        self.jobs: set[Job] = set()  # accepted, without an outcome
        self.unbegun: set[Job] = set()  # of these, those without a row
        self.accepted, self.drawn_tokens, self.prompt_tokens = 0, 0, 0
        self.outcomes = Counter(dict.fromkeys(OUTCOMES, 0))
        self.finishes = Counter[str]()
        self.first_text_s = Histogram((0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30))
        self.settled_at: deque[float] = deque(maxlen=32)
        self.draining = False
        # between the two
        self.commands: deque[tuple[Callable[[Job], object], Job]] = deque()
        self.bell = threading.Event()
        self.beat = time.monotonic()
        self.stopping = False
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # the thread's
        self.turns: FairQueue[tuple[Job, int]] = FairQueue(rows)
        self.drawings: dict[int, Drawing] = {}  # by id of the text
        self.held = Counter[str]()  # rows of each client
        self.scheduler = make()

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
        return self.thread.is_alive() and time.monotonic() - self.beat < STALE_S

    @property
    def running(self) -> int:
        """Return how many rows are drawn."""
        return len(self.drawings)

    def submit(self, job: Job) -> None:
        """Accept a job. Raises ApiError where the queue is full or the server is being stopped."""
        if self.draining:
            raise ApiError(503, "the server is being stopped", "draining", retry_after=5)
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

    def end(self, job: Job, outcome: str, error: ApiError | None = None) -> None:
        """End a job before it is done: its rows are free within two steps. Does nothing to one that has an outcome."""
        if self.settle(job, outcome, error):
            self._command(self._drop, job)

    def settle(self, job: Job, outcome: str, error: ApiError | None = None) -> bool:
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
                self.end(job, "drained", ApiError(503, "the server is being stopped", "draining", retry_after=5))
            else:
                self._command(self._cut, job)

    def _command(self, what: Callable[[Job], object], job: Job) -> None:
        self.commands.append((what, job))
        self.bell.set()

    def _deliver(self, begun: list[Job], told: list[Told]) -> None:
        """Take what the thread tells of a step."""
        for job in begun:
            if job in self.unbegun:
                self.unbegun.discard(job)
                self.prompt_tokens += job.prompt_tokens
        for job, piece in told:
            if job.outcome:
                continue
            if isinstance(piece, ApiError):
                self.end(job, "error", piece)
                continue
            job.take(piece)
            job.arrived.set()
            if piece.finish_reason:
                self.drawn_tokens += piece.drawn
                self.finishes[piece.finish_reason] += 1
            if piece.finish_reason == "error":
                self.end(job, "error", ApiError(500, f"this text cannot go on: {piece.error}", "generation_failed"))
            elif job.complete:
                self.settle(job, "drained" if piece.finish_reason == "interrupted" else "done")
                self.first_text_s.add((job.first_text or job.began) - job.began)

    # --- in the thread

    def _run(self) -> None:
        while not self.stopping:
            self.beat = time.monotonic()
            self.begun: list[Job] = []
            self.told: list[Told] = []
            try:
                self._obey()
                self._admit()
                if not self.scheduler.idle:
                    self._gather(self.scheduler.step())
            except Exception:
                log.exception("the engine failed; it starts anew, and all that it was drawing ends with an error")
                self._start_anew()
            if self.begun or self.told:
                self._tell(self.begun, self.told)
            if self.scheduler.idle and not self.commands:
                self.bell.wait(IDLE_BEAT_S)
                self.bell.clear()

    def _tell(self, begun: list[Job], told: list[Told]) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._deliver, begun, told)

    def _obey(self) -> None:
        while self.commands:
            what, job = self.commands.popleft()
            what(job)

    def _enqueue(self, job: Job) -> None:
        for choice in range(len(job.requests)):
            self.turns.add(job.client, (job, choice), job.cost)

    def _admit(self) -> None:
        """Give free rows to those whose turn it is, a choice at a time."""
        while len(self.drawings) < self.rows and (turn := self.turns.take(self.held)):
            job, choice = turn
            request = job.requests[choice]
            try:
                text = self.scheduler.admit(request)
            except UserError as error:
                self.told.append((job, ApiError(400, str(error), "invalid_value")))
                self._drop(job)
                continue
            gains = Gains(self.tokenizer, choice, request, text)
            self.drawings[id(text)] = Drawing(job, text, gains)
            self.held[job.client] += 1
            self.begun.append(job)

    def _gather(self, changed: list[Continuation]) -> None:
        """Collect what the texts that changed have gained."""
        for text in changed:
            drawing = self.drawings.get(id(text))
            if drawing is None:
                continue
            if drawing.job.streamed or text.finish_reason:
                self.told.append((drawing.job, drawing.gains.piece()))
            if text.finish_reason:
                self._release(drawing)

    def _release(self, drawing: Drawing) -> None:
        del self.drawings[id(drawing.text)]
        self.held[drawing.job.client] -= 1
        if self.held[drawing.job.client] == 0:
            del self.held[drawing.job.client]

    def _drop(self, job: Job) -> list[Drawing]:
        """Free all that a job holds. Returns the choices that were being drawn, ended."""
        self.turns.remove(lambda turn: turn[0] is job)
        dropped = [drawing for drawing in self.drawings.values() if drawing.job is job]
        for drawing in dropped:
            self.scheduler.cancel(drawing.text)
            self._release(drawing)
        return dropped

    def _cut(self, job: Job) -> None:
        """End a job as far as it has come: every choice is told."""
        waiting = [choice for owner, choice in self.turns.remove(lambda turn: turn[0] is job) if owner is job]
        self.told += [(job, drawing.gains.piece()) for drawing in self._drop(job)]
        self.told += [(job, Piece(choice, finish_reason="interrupted")) for choice in waiting]

    def _start_anew(self) -> None:
        """After a failure that no single text is to blame for: end what was drawn, and take a new scheduler."""
        for job in {drawing.job for drawing in self.drawings.values()}:
            self.turns.remove(lambda turn, job=job: turn[0] is job)  # type: ignore[misc]
            self.told.append((job, ApiError(500, "the engine failed while this text was drawn", "engine_failed")))
        self.drawings.clear()
        self.held.clear()
        self.scheduler = self.make()
