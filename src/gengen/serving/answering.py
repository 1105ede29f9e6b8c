"""How the pieces of a job become an answer, whole or as server-sent events, while its client is there and reads."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from gengen.serving.answers import HEARTBEAT, encoded, event
from gengen.serving.calls import Call, CallWorker, Progress
from gengen.serving.engine_thread import EngineThread
from gengen.serving.guard import ClientGone, Message, Receive, Send
from gengen.serving.jobs import BaseJob, P
from gengen.serving.protocol import ApiError, R, parse_body, read_request

HEARTBEAT_S = 15.0
FLUSH_S, FEW_STREAMS = 0.025, 8  # above so many rows a stream is sent at most so often
SSE = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", "x-accel-buffering": "no"}
JSON = {"content-type": "application/json"}


class Patience(Protocol):
    """How long clients are waited for."""

    stall_s: float
    deadline_s: float


def json_response(tree: dict[str, Any]) -> Response:
    return Response(encoded(tree), headers=JSON)


async def read_body(cls: type[R], http: HttpRequest) -> R:
    return read_request(cls, parse_body(await http.body()))


async def whole(job: BaseJob[P], worker: EngineThread[Any], http: HttpRequest, patience: Patience) -> list[P]:
    """Return all pieces of a job once it is done. Raises ApiError where it is not, ClientGone where nobody waits."""
    pieces: list[P] = []
    async with running(job, worker, http.receive, patience.deadline_s):
        async for some in job.stream(HEARTBEAT_S):
            pieces += some
    if job.outcome == "cancelled":
        raise ClientGone
    return pieces


@asynccontextmanager
async def running(
    job: BaseJob[Any], worker: EngineThread[Any], receive: Receive, deadline_s: float
) -> AsyncIterator[None]:
    """Inside, a job is accepted; it ends when the client leaves, when its time is over, and in any case here."""
    worker.submit(job)
    late = ApiError(408, f"the request took over {deadline_s:g} s", "request_timeout")
    timer = asyncio.get_running_loop().call_later(deadline_s, worker.end, job, "deadline", late)
    watch = asyncio.create_task(end_when_gone(job, worker, receive))
    try:
        yield
    finally:
        timer.cancel()
        watch.cancel()
        worker.end(job, "cancelled")  # where it has no outcome: this task was ended


async def end_when_gone(job: BaseJob[Any], worker: EngineThread[Any], receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    worker.end(job, "cancelled")


async def called(
    http: HttpRequest,
    worker: CallWorker,
    patience: Patience,
    work: Callable[[Progress], bytes],
    cost: int = 1,
    streamed: bool = False,
) -> "Response | EventStream[bytes]":
    """Return what a call answers: JSON, or the events that it tells. cost: as of `FairQueue`."""
    job = Call(http.scope["state"]["client"], work, cost=cost)
    if streamed:
        return EventStream(job, worker, patience, b"".join)
    pieces = await whole(job, worker, http, patience)
    return Response(b"".join(pieces), headers=JSON)


class EventStream(Generic[P]):
    """A streamed answer. The status is sent with the first event, so that what is refused before has its own.

    events: pieces -> the events that tell them. closing: returns the last events.
    """

    def __init__(
        self,
        job: BaseJob[P],
        worker: EngineThread[Any],
        patience: Patience,
        events: Callable[[list[P]], bytes],
        closing: Callable[[], bytes] = lambda: b"",
    ):
        self.job, self.worker, self.patience, self.events, self.closing = job, worker, patience, events, closing
        self.began, self.stalled = False, False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        job = self.job
        async with running(job, self.worker, receive, self.patience.deadline_s):
            try:
                async for pieces in job.stream(HEARTBEAT_S):
                    await self.send(send, self.events(pieces) if pieces else HEARTBEAT)
                    if self.stalled:
                        break
                    if self.worker.running > FEW_STREAMS:
                        await asyncio.sleep(FLUSH_S)
            except ApiError as error:
                if not self.began:
                    raise
                await self.send(send, event(error.body()), last=True)
                return
        if job.outcome in ("done", "drained"):
            await self.send(send, self.closing(), last=True)
        if self.stalled:
            scope["state"].get("abort", lambda: None)()  # what waits to be sent goes with the connection
        if self.stalled or job.outcome == "cancelled":
            raise ClientGone

    async def send(self, send: Send, body: bytes, last: bool = False) -> None:
        """Send some events. A client that does not read them for too long, or until too much waits, ends its job."""
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(self.patience.stall_s) as limit:
                self.job.when_full = lambda: limit.reschedule(now())
                if not self.began:
                    self.began = True
                    headers = [(name.encode(), value.encode()) for name, value in SSE.items()]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": body, "more_body": not last})
        except TimeoutError:
            self.stalled = True
            self.worker.end(self.job, "stalled")
        finally:
            self.job.when_full = None
