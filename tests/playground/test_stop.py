"""Stop means stop: from the moment at which the server learns that a page no longer waits, the engine takes two steps
at most before what it drew for that page is free."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from gengen.serving import answering
from gengen.serving.app import Application
from gengen.serving.calls import Ended, Progress
from gengen.serving.engine_thread import EngineThread
from gengen.serving.guard import Message, Receive
from gengen.serving.jobs import BaseJob
from gengen.serving.server import PatientProtocol
from gengen.serving.worker import Worker
from helpers.served import served_here
from helpers.served_in_thread import in_a_thread

pytestmark = pytest.mark.slow
STEP_S = 0.03  # of an engine here, as of a network of some size: longer than the loop takes to hear of a client


@dataclass
class Watch:
    """Counts the steps of an engine. arrived, freed: how many it had begun when a client's leaving was known, and when
    what it had was free; every row of it, where it had several."""

    steps: int = 0
    arrived: list[int] = field(default_factory=list)
    freed: list[int] = field(default_factory=list)

    def step(self) -> None:
        self.steps += 1
        time.sleep(STEP_S)

    def protocol(self, path: str) -> type[PatientProtocol]:
        """Return what speaks with clients, and notes when one leaves that asks for a path."""
        watch = self

        class Noting(PatientProtocol):
            def connection_lost(self, exc: Exception | None) -> None:
                if self.scope and self.scope["path"] == path and not self.cycle.response_complete:
                    watch.arrived.append(watch.steps)
                super().connection_lost(exc)

        return Noting


def watch_texts(application: Application, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is one of the scheduler; a row is free when its drawing is released."""
    worker = application.runs["story"].worker
    assert isinstance(worker, Worker)
    step, release = worker.scheduler.step, worker._release

    def stepped() -> Any:
        watch.step()
        return step()

    def released(drawing: Any) -> None:
        release(drawing)
        watch.freed.append(watch.steps)

    monkeypatch.setattr(worker.scheduler, "step", stepped)
    monkeypatch.setattr(worker, "_release", released)


def watch_images(application: Application, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is one of denoising, at which a call sees whether it is wanted; it is free when it is left there."""
    check = Progress.check

    def checked(progress: Progress) -> None:
        watch.step()
        try:
            check(progress)
        except Ended:
            watch.freed.append(watch.steps)
            raise

    monkeypatch.setattr(Progress, "check", checked)


@dataclass(frozen=True)
class Act:
    """What is begun, and on the page when it is well on its way. rows: what it takes of the engine."""

    where: str
    path: str
    begun: str
    watched: Callable[[Application, Watch, pytest.MonkeyPatch], None]
    rows: int = 1


ACTS = {
    "text": Act(
        "text?run=story&prompt=Once&max_tokens=240&n=4&shown=1", "/v1/completions", ".token >> nth=20", watch_texts, 4
    ),
    "denoising": Act(
        "diffusion?run=unet&steps=250&sampler=heun&drawn=1", "/gengen/v1/denoise", ".strip img >> nth=2", watch_images
    ),
    "edit": Act(
        "edit?run=unet&mask=left&steps=25&resamples=20&n=4&drawn=1", "/gengen/v1/images/edits",
        ".output img >> nth=0", watch_images,
    ),
}  # fmt: skip


@contextmanager
def looked_at(browser: Browser, where: str) -> Iterator[Page]:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(where)
        yield page


def steps_until_free(
    browser: Browser, runs: Path, monkeypatch: pytest.MonkeyPatch, act: Act, leave: str = "stop"
) -> int:
    """Begin an act on a page, leave it in the middle; how many steps the engine began from then until all is free."""
    watch = Watch()
    application = served_here(runs, names=("story", "unet"), playground=True)
    act.watched(application, watch, monkeypatch)
    with (
        in_a_thread(application, watch.protocol(act.path)) as address,
        looked_at(browser, f"{address}/#{act.where}") as page,
    ):
        page.locator(act.begun).wait_for()
        assert not watch.freed and application.jobs == 1 and watch.steps > 2, "in the middle of it"
        if leave == "stop":
            page.get_by_role("button", name="Stop").click()
            page.get_by_text("stopped").wait_for()
        else:
            page.get_by_role("link", name="Runs").click()
        end = time.monotonic() + 5
        while len(watch.freed) < act.rows:
            assert time.monotonic() < end, "it goes on"
            time.sleep(0.01)
        assert application.jobs == 0
    assert len(watch.arrived) == 1 and len(watch.freed) == act.rows
    return max(watch.freed) - watch.arrived[0]


@pytest.mark.parametrize("name", ACTS)
def test_within_two_steps_of_a_stop_all_of_it_is_free(
    browser: Browser, served_runs: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert steps_until_free(browser, served_runs, monkeypatch, ACTS[name]) <= 2


def test_as_soon_when_the_page_is_left(browser: Browser, served_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps_until_free(browser, served_runs, monkeypatch, ACTS["text"], leave="the page") <= 2


def test_a_server_that_looks_for_its_clients_now_and_then_is_noticed(
    browser: Browser, served_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = answering.end_when_gone

    async def late(job: BaseJob[Any], worker: EngineThread[Any], receive: Receive) -> None:
        async def receive_late() -> Message:
            message = await receive()
            await asyncio.sleep(10 * STEP_S)
            return message

        await at_once(job, worker, receive_late)

    monkeypatch.setattr(answering, "end_when_gone", late)
    assert steps_until_free(browser, served_runs, monkeypatch, ACTS["denoising"]) > 2
