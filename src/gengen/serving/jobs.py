"""A request that was accepted: what it asks the engine for, and how what is drawn arrives."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from gengen.generation.text.row import Request
from gengen.serving.pieces import Piece
from gengen.serving.protocol import ApiError

OUTCOMES = ("done", "cancelled", "stalled", "deadline", "drained", "error")
"""How a job ends, one of them and once. cancelled: the client left; stalled: it read no more; drained: the server was
stopped before the job was done, and it was answered as far as it had come."""


@dataclass(eq=False)
class Job:
    """All choices of one request.

    client: whose turn they take. requests: what to draw, a choice each. streamed: whether pieces are wanted while a
    choice is drawn; else each choice is one piece. Belongs to the event loop, but for what `Worker` says.
    """

    client: str
    requests: list[Request]
    streamed: bool = False
    outcome: str = ""
    error: ApiError | None = None
    began: float = field(default_factory=time.monotonic)
    first_text: float | None = None  # when the first piece came
    pieces: deque[Piece] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    ended: set[int] = field(default_factory=set)  # choices

    @property
    def cost(self) -> int:
        """Return the tokens of a choice at most."""
        return self.requests[0].settings.max_tokens

    @property
    def prompt_tokens(self) -> int:
        """Return the tokens of its prompts, each counted once, however many choices it has."""
        return sum({id(request.prompt): len(request.prompt) for request in self.requests}.values())

    def take(self, piece: Piece) -> None:
        """Take what was drawn."""
        if self.first_text is None and (piece.text or piece.finish_reason):
            self.first_text = time.monotonic()
        self.pieces.append(piece)
        if piece.finish_reason:
            self.ended.add(piece.choice)

    @property
    def complete(self) -> bool:
        return len(self.ended) == len(self.requests)

    async def stream(self, heartbeat_s: float) -> AsyncIterator[list[Piece]]:
        """Yield what has arrived since the last time, an empty list where that is nothing for `heartbeat_s`, until the
        job has its outcome. Raises ApiError if that is an error."""
        while True:
            try:
                await asyncio.wait_for(self.arrived.wait(), heartbeat_s)
            except TimeoutError:
                yield []
                continue
            self.arrived.clear()
            pieces, settled = list(self.pieces), bool(self.outcome)
            self.pieces.clear()
            if pieces:
                yield pieces
            if settled and not self.pieces:
                if self.error:
                    raise self.error
                return
