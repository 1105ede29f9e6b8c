"""What gathers for a client that does not read: 256 KiB at most, however patient the server is."""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

from gengen.serving.answering import EventStream
from gengen.serving.guard import ClientGone
from gengen.serving.jobs import MAX_UNSENT, BaseJob
from gengen.serving.pieces import LOGPROB, Piece, Token
from helpers.served import ENDLESS, connection, process, request


class Engine:
    """Takes jobs, and notes how they end."""

    running = 0

    def submit(self, job: BaseJob[bytes]) -> None: ...

    def end(self, job: BaseJob[bytes], outcome: str, error: object = None) -> None:
        job.outcome = job.outcome or outcome


class Patient:
    stall_s, deadline_s = 600.0, 600.0


async def answered(reads: asyncio.Event, given: list[bytes], parts: int) -> tuple[str, int]:
    """Outcome of a stream of `parts` parts of 64 KiB each whose client reads on once `reads` is set; most unsent."""
    job, engine, most = BaseJob[bytes]("a"), Engine(), 0

    async def send(message: Any) -> None:
        await reads.wait()
        given.append(message.get("body", b""))

    async def receive() -> Any:
        await asyncio.Event().wait()

    stream = EventStream(job, engine, Patient(), b"".join)  # type: ignore[arg-type]
    task = asyncio.create_task(stream({"state": {}}, receive, send))
    for _ in range(parts):
        await asyncio.sleep(0.002)
        if not job.outcome:
            job.take(b"a" * 65536)
            most = max(most, job.unsent)
    await asyncio.sleep(0.01)
    reads.set()
    if not job.outcome:
        await asyncio.sleep(0.01)
        job.outcome = "done"
        job.arrived.set()
    with contextlib.suppress(ClientGone):
        await task
    return job.outcome, most


@pytest.mark.parametrize("reading, parts, outcome", [(False, 5, "done"), (False, 6, "stalled"), (True, 50, "done")])
def test_a_stream_is_stalled_once_too_much_waits(reading: bool, parts: int, outcome: str) -> None:
    """The first part is being sent; four more may wait. One who reads may be sent any amount."""

    async def test() -> None:
        reads, given, began = asyncio.Event(), list[bytes](), time.monotonic()
        if reading:
            reads.set()
        found, most = await answered(reads, given, parts)
        assert found == outcome and time.monotonic() - began < 5
        assert most <= MAX_UNSENT + 65536
        assert outcome == "stalled" or len(b"".join(given)) == parts * 65536

    asyncio.run(test())


def test_a_piece_is_as_long_as_what_it_says() -> None:
    tokens = [Token(1, -0.5, [(2, -0.1), (3, -0.2)]), Token(4, None)]
    assert len(Piece(0, "é", tokens, prompt=tokens[1:])) == 2 + 5 * LOGPROB
    assert len(Piece(0)) == 0


@pytest.mark.slow
def test_a_socket_that_does_not_read_is_cut_long_before_it_counts_as_stalled(runs: Path, tmp_path: Path) -> None:
    """Log-probabilities gather fast; `stall_s` is ten minutes."""
    with process([str(runs / "story"), "stall_s=600", "rows=8"], tmp_path / "said.txt") as server:
        tree = {"model": "story", "prompt": "a", "stream": True, "logprobs": 20, "n": 8, **ENDLESS, "max_tokens": 2048}
        with connection(server, request("completions", tree), buffer=4096):
            server.until(lambda: server.outcomes()["stalled"] == 1, 30)
            server.until(server.quiet)
            assert server.figure("gengen_tokens_total") == 0 or server.outcomes()["done"] == 0
