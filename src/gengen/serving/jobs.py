"""A request that was accepted: what it asks an engine for, and how what is drawn arrives."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Generic, Protocol, TypeVar

from gengen.generation.text.row import Request
from gengen.serving.pieces import Piece
from gengen.serving.protocol import ApiError

OUTCOMES = ("done", "cancelled", "stalled", "deadline", "drained", "error")
"""How a job ends, one of them and once. cancelled: the client left; stalled: it read no more; drained: the server was
stopped before the job was done, and it was answered as far as it had come."""


MAX_UNSENT = 256 * 1024
"""Bytes that may gather for a client while it does not read."""


class Sized(Protocol):
    """What a job is told."""

    def __len__(self) -> int:
        """Return about how many bytes it takes."""
        ...


P = TypeVar("P", bound=Sized)


@dataclass(eq=False)
class BaseJob(Generic[P]):
    """What all jobs share; what is drawn comes in pieces of type P.

    client: whose turn it takes. unsent: bytes of the pieces that wait. when_full: set while the client does not read
    what it was sent; called once when more than `MAX_UNSENT` wait meanwhile. Belongs to the event loop, but for what
    the engine's thread says of it.
    """

    client: str
    _: KW_ONLY
    outcome: str = ""
    error: ApiError | None = None
    began: float = field(default_factory=time.monotonic)
    pieces: deque[P] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    unsent: int = 0
    when_full: Callable[[], object] | None = None

    def take(self, piece: P) -> None:
        """Take what was drawn."""
        self.pieces.append(piece)
        self.arrived.set()
        self.unsent += len(piece)
        if self.when_full and self.unsent > MAX_UNSENT:
            when_full, self.when_full = self.when_full, None
            when_full()

    async def stream(self, heartbeat_s: float) -> AsyncIterator[list[P]]:
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
            self.unsent = 0
            if pieces:
                yield pieces
            if settled and not self.pieces:
                if self.error:
                    raise self.error
                return


@dataclass(eq=False)
class Job(BaseJob[Piece]):
    """All choices of one request for texts.

    requests: what to draw, a choice each. streamed: whether pieces are wanted while a choice is drawn; else each
    choice is one piece.
    """

    requests: list[Request]
    streamed: bool = False
    first_text: float | None = field(default=None, kw_only=True)  # when the first piece came
    ended: set[int] = field(default_factory=set, kw_only=True)  # choices

    @property
    def cost(self) -> int:
        """Return the tokens of a choice at most."""
        return self.requests[0].settings.max_tokens

    @property
    def prompt_tokens(self) -> int:
        """Return the tokens of its prompts, each counted once, however many choices it has."""
        return sum({id(request.prompt): len(request.prompt) for request in self.requests}.values())

    def take(self, piece: Piece) -> None:
        if self.first_text is None and (piece.text or piece.finish_reason):
            self.first_text = time.monotonic()
        if piece.finish_reason:
            self.ended.add(piece.choice)
        super().take(piece)

    @property
    def complete(self) -> bool:
        return len(self.ended) == len(self.requests)
