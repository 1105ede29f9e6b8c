"""The thread that draws texts: it alone touches a run's scheduler, and hands over the pieces of a step at once."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.text.continuation import Continuation
from gengen.generation.text.row import Request
from gengen.generation.text.speculation import Speculation
from gengen.serving.engine_thread import EngineThread
from gengen.serving.jobs import Job
from gengen.serving.metrics import Histogram
from gengen.serving.pieces import Gains, Piece
from gengen.serving.protocol import ApiError
from gengen.serving.queue import FairQueue

log = logging.getLogger("gengen.serving")


class DrawsText(Protocol):
    """What a worker needs of `Scheduler`."""

    def admit(self, request: Request) -> Continuation: ...
    def step(self) -> list[Continuation]: ...
    def cancel(self, text: Continuation, reason: str = "interrupted") -> None: ...
    @property
    def idle(self) -> bool: ...
    @property
    def speculation(self) -> Speculation | None: ...


@dataclass(eq=False)
class Drawing:
    """A choice that has a row."""

    job: Job
    text: Continuation
    gains: Gains


Told = tuple[Job, Piece | ApiError]


class Worker(EngineThread[Job]):
    """Draws the texts of one run; what waits, waits for a row.

    make: returns a new scheduler of `rows` rows.
    """

    def __init__(self, make: Callable[[], DrawsText], tokenizer: TextTokenizer, rows: int, queue: int):
        super().__init__(queue)
        self.make, self.tokenizer, self.rows = make, tokenizer, rows
        # the loop's
        self.drawn_tokens, self.prompt_tokens = 0, 0
        self.reused_tokens, self.prefix_hits = 0, 0
        self.finishes = Counter[str]()
        self.first_text_s = Histogram((0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30))
        # the thread's
        self.turns: FairQueue[tuple[Job, int]] = FairQueue(rows)
        self.drawings: dict[int, Drawing] = {}  # by id of the text
        self.held = Counter[str]()  # rows of each client
        self.scheduler = make()

    # --- on the event loop

    @property
    def running(self) -> int:
        """Return how many rows are drawn."""
        return len(self.drawings)

    @property
    def guesses(self) -> dict[str, int]:
        """Return how many tokens were guessed, and how many of them were right, since the scheduler was made."""
        found = self.scheduler.speculation
        return {"offered": found.offered, "accepted": found.accepted} if found else {}

    def _cut_begun(self, job: Job) -> None:
        self._command(self._cut, job)

    def end_choice(self, job: Job, choice: int) -> None:
        """End a choice that is being drawn, of which no more is wanted: it was refused."""
        self._command(lambda job: self._end_choice(job, choice), job)

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
            if piece.finish_reason:
                self.drawn_tokens += piece.drawn
                self.reused_tokens += piece.reused
                self.prefix_hits += int(piece.reused > 0)
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
                self._on_loop(self._deliver, self.begun, self.told)
            if self.scheduler.idle and not self.commands:
                self._idle()

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

    def _end_choice(self, job: Job, choice: int) -> None:
        for drawing in [one for one in self.drawings.values() if one.job is job and one.gains.choice == choice]:
            self.scheduler.cancel(drawing.text, "filtered")
            self.told.append((job, drawing.gains.piece()))
            self._release(drawing)

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
