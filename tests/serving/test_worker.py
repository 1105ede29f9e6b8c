"""The engine's thread: every job that was accepted ends in exactly one outcome, whatever happens."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gengen.config.commands import DecodingSettings
from gengen.generation.text.continuation import Continuation
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.row import Request
from gengen.generation.text.scheduler import Scheduler
from gengen.serving.jobs import Job
from gengen.serving.pieces import Piece
from gengen.serving.protocol import ApiError
from gengen.serving.worker import Worker

ENDLESS = ["0:-100"]


def job(story: TextGenerator, n: int = 1, client: str = "a", streamed: bool = False, **settings: Any) -> Job:
    asked = DecodingSettings(**{"max_tokens": 4, "temperature": 1.0, "logit_bias": ENDLESS, **settings})
    prompt = story.prompt_tokens("Once")
    return Job(client, [Request(prompt, asked, index=i) for i in range(n)], streamed)


@asynccontextmanager
async def started(
    story: TextGenerator, rows: int = 4, queue: int = 8, make: Callable[[], Any] | None = None
) -> AsyncIterator[Worker]:
    """A worker whose thread runs, and which in the end has lost no job and holds no row."""
    worker = Worker(make or (lambda: story.scheduler(rows)), story.tokenizer, rows, queue)
    worker.start()
    try:
        yield worker
        await until(lambda: not worker.jobs and not worker.drawings and not worker.commands)
        assert worker.accepted == worker.outcomes.total()
        assert not worker.unbegun and not worker.turns and not +worker.held
    finally:
        worker.stop()


async def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)


async def collected(job: Job) -> list[Piece]:
    return [piece async for pieces in job.stream(60) for piece in pieces]


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(limited())


def test_choices_are_the_samples_of_the_library(story: TextGenerator) -> None:
    async def test() -> None:
        async with started(story) as worker:
            worker.submit(asked := job(story, n=6, streamed=True, seed=3, max_tokens=9))
            pieces = await collected(asked)
        samples = story.generate("Once", n=6, seed=3, max_tokens=9, temperature=1.0, logit_bias=ENDLESS)
        for sample in samples:
            mine = [piece for piece in pieces if piece.choice == sample.index]
            assert "".join(piece.text for piece in mine) == sample.text
            assert [token.id for piece in mine for token in piece.tokens] == sample.tokens
            assert [piece.finish_reason for piece in mine][-1] == sample.finish_reason
        assert worker.outcomes["done"] == 1 and asked.outcome == "done"

    run(test)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(story: TextGenerator) -> None:
    async def test() -> None:
        async with started(story, rows=1, queue=2) as worker:
            worker.submit(job(story, max_tokens=10_000, overflow="slide"))
            await until(lambda: worker.running == 1 and not worker.unbegun)
            waiting = [job(story), job(story)]
            for one in waiting:
                worker.submit(one)
            with pytest.raises(ApiError) as error:
                worker.submit(job(story))
            assert (error.value.status, error.value.code) == (429, "rate_limit_exceeded")
            assert error.value.retry_after and 1 <= error.value.retry_after <= 60
            assert worker.accepted == 3
            for one in list(worker.jobs):
                worker.end(one, "cancelled")
            worker.submit(last := job(story))
            await collected(last)
            assert last.outcome == "done", "there is room again"

    run(test)


@pytest.mark.parametrize("seconds, waiting, promised", [(0.5, 8, 2), (0.01, 8, 1), (60.0, 64, 60)])
def test_retry_after_follows_the_measured_rate(
    story: TextGenerator, monkeypatch: pytest.MonkeyPatch, seconds: float, waiting: int, promised: int
) -> None:
    """A job each `seconds` ends: half of those that wait are gone after half as many."""
    worker = Worker(lambda: story.scheduler(1), story.tokenizer, 1, 64)
    monkeypatch.setattr("gengen.serving.worker.time.monotonic", lambda: 10 * seconds)
    worker.settled_at.extend(i * seconds for i in range(10))
    worker.unbegun = {job(story) for _ in range(waiting)}
    assert worker.seconds_to_wait() == promised


def test_what_is_ended_frees_its_rows_within_two_steps(story: TextGenerator) -> None:
    """Running or waiting; and its neighbour's text does not change."""
    steps: list[int] = []

    class Counting(Scheduler):
        def step(self) -> list[Continuation]:
            steps.append(len(self.active))
            return super().step()

    def make() -> Scheduler:
        return Counting(story.engine, story.tokenizer, story.context, 4)

    async def test() -> None:
        async with started(story, make=make) as worker:
            worker.submit(neighbour := job(story, client="b", seed=8, max_tokens=60))
            worker.submit(gone := job(story, n=9, streamed=True, max_tokens=10_000, overflow="slide"))
            await until(lambda: worker.running == 4)
            worker.end(gone, "cancelled")
            at = len(steps)
            await until(lambda: worker.running <= 1 and not worker.commands)
            assert max(steps[at + 2 :], default=0) <= 1
            pieces = await collected(neighbour)
        expected = story.generate("Once", seed=8, max_tokens=60, temperature=1.0, logit_bias=ENDLESS)[0]
        assert pieces[0].text == expected.text
        assert worker.outcomes["cancelled"] == 1 and worker.outcomes["done"] == 1

    run(test)


def test_the_first_outcome_counts(story: TextGenerator) -> None:
    async def test() -> None:
        async with started(story) as worker:
            worker.submit(asked := job(story, max_tokens=10_000, overflow="slide"))
            worker.end(asked, "stalled")
            worker.end(asked, "cancelled")
            await until(lambda: worker.running == 0 and not worker.commands)
            assert asked.outcome == "stalled" and worker.outcomes.total() == 1

    run(test)


def test_a_request_that_does_not_fit_the_vocabulary_ends_alone(story: TextGenerator) -> None:
    async def test() -> None:
        async with started(story) as worker:
            worker.submit(good := job(story, max_tokens=20))
            worker.submit(bad := job(story, n=2, logit_bias=["999:1"]))
            with pytest.raises(ApiError, match="there is no token 999"):
                await collected(bad)
            await collected(good)
            assert (good.outcome, bad.outcome) == ("done", "error")

    run(test)


def test_a_text_that_cannot_go_on_ends_its_request_alone(story: TextGenerator) -> None:
    def forbids_all(logits: Any, tokens: Any) -> Any:
        return logits * float("nan")

    async def test() -> None:
        async with started(story) as worker:
            bad, good = job(story, n=2), job(story, max_tokens=20)
            for request in bad.requests:
                request.processor = forbids_all
            worker.submit(bad)
            worker.submit(good)
            with pytest.raises(ApiError) as error:
                await collected(bad)
            assert (error.value.status, error.value.code) == (500, "generation_failed")
            await collected(good)
            assert (good.outcome, bad.outcome) == ("done", "error")

    run(test)


def test_an_engine_that_fails_starts_anew(story: TextGenerator, caplog: pytest.LogCaptureFixture) -> None:
    """What it was drawing ends with an error, what waited is drawn."""
    failing = [True]

    class Fails(Scheduler):
        def step(self) -> list[Continuation]:
            if failing and len(self.active) + len(self.queue) == 4:
                failing.clear()
                raise RuntimeError("out of luck")
            return super().step()

    def make() -> Scheduler:
        return Fails(story.engine, story.tokenizer, story.context, 4)

    async def test() -> None:
        async with started(story, make=make) as worker:
            worker.submit(drawn := job(story, n=4, max_tokens=50))
            worker.submit(waits := job(story))
            with pytest.raises(ApiError) as error:
                await collected(drawn)
            assert error.value.code == "engine_failed" and "luck" not in error.value.message
            await collected(waits)
            assert (drawn.outcome, waits.outcome) == ("error", "done") and worker.alive

    run(test)
    assert "out of luck" in caplog.text


def test_draining_refuses_the_new_and_cuts_the_old(story: TextGenerator) -> None:
    """A cut answer is what was drawn; what has not begun is refused."""

    async def test() -> None:
        async with started(story, rows=2) as worker:
            worker.submit(begun := job(story, n=3, max_tokens=10_000, overflow="slide", streamed=True))
            await until(lambda: begun.first_text is not None)
            worker.submit(unbegun := job(story, client="b"))
            worker.draining = True
            with pytest.raises(ApiError) as error:
                worker.submit(job(story))
            assert (error.value.status, error.value.code) == (503, "draining")
            worker.cut()
            last = {piece.choice: piece for piece in await collected(begun)}
            assert {piece.finish_reason for piece in last.values()} == {"interrupted"} and len(last) == 3
            with pytest.raises(ApiError):
                await collected(unbegun)
            assert begun.outcome == unbegun.outcome == "drained"

    run(test)


def test_whatever_happens_every_job_has_one_outcome(story: TextGenerator) -> None:
    """Jobs of random sizes, ended at random moments or not at all; those that are done are what the library draws."""
    draw = random.Random(0)

    async def one(worker: Worker, number: int) -> None:
        await asyncio.sleep(draw.random() * 0.3)
        asked = job(
            story,
            draw.randint(1, 3),
            f"client {number % 3}",
            draw.random() < 0.5,
            seed=number,
            max_tokens=draw.randint(1, 30),
        )
        worker.submit(asked)
        if draw.random() < 0.5:
            asyncio.get_running_loop().call_later(draw.random() * 0.2, worker.end, asked, "cancelled")
        pieces = await collected(asked)
        if asked.outcome == "done":
            settings = asked.requests[0].settings
            samples = story.samples("Once", settings, n=len(asked.requests))
            for sample in samples:
                assert "".join(piece.text for piece in pieces if piece.choice == sample.index) == sample.text

    async def test() -> None:
        async with started(story, queue=100) as worker:
            await asyncio.gather(*(one(worker, number) for number in range(40)))
            assert worker.accepted == 40 == worker.outcomes["done"] + worker.outcomes["cancelled"]
            assert worker.outcomes["done"] and worker.outcomes["cancelled"]

    run(test)
