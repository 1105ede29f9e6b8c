"""A server with pages over small runs of every kind, and Debian's Chromium to look at them."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

import gengen
from gengen.data.text.tokenizer import TextTokenizer
from gengen.generation.load import load_as
from gengen.generation.text.generator import TextGenerator
from helpers.pages import DESK, Visit
from helpers.served import IMAGE_RUNS, Process, new_process, write_image_runs, write_run
from helpers.trained_on import TrainedOn, trained_on

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a browser come last: playwright keeps an event loop running in this thread, beside which none of the
    other tests' can run."""
    items.sort(key=lambda item: "browser" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = which("chromium")
    if path is None:
        assert not os.environ.get("BROWSER_REQUIRED"), "chromium is not installed, and these tests may not be left out"
        pytest.skip("chromium is not installed (apt-get install chromium): no page was looked at")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=FLAGS)


@pytest.fixture(scope="session")
def stories(tiny: list[str]) -> TrainedOn:
    """What `story` says it was trained on."""
    return trained_on(tiny)


@pytest.fixture(scope="session")
def shapes(picture_data: list[str]) -> TrainedOn:
    """What `gan` says it was trained on: its first class are circles, then crosses and squares."""
    return trained_on(["model=gan", *picture_data, "data.resolution=8"])


@pytest.fixture(scope="session")
def served_runs(
    tmp_path_factory: pytest.TempPathFactory, text_run: Path, stories: TrainedOn, shapes: TrainedOn
) -> Path:
    """A folder with the runs `story`, `chat`, `unet`, `gan`, `vae`, `reward`, and `text`, which reads captions; or the
    trained ones of pictured_runs.py, to be pictured."""
    if trained := os.environ.get("PICTURED_RUNS"):
        return Path(trained).absolute()
    folder = tmp_path_factory.mktemp("playground")
    write_run(folder / "story", TextTokenizer.byte(), stories)
    write_run(folder / "chat", TextTokenizer.byte().with_chat())
    write_image_runs(folder, shapes)
    (folder / "text").symlink_to(text_run)
    return folder


@pytest.fixture(scope="session")
def play(served_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    said = tmp_path_factory.mktemp("play") / "said.txt"
    runs = [str(served_runs / name) for name in IMAGE_RUNS if (served_runs / name).exists()]
    votes = f"preferences={said.parent}/preferences.jsonl"
    with new_process([*runs, "playground=true", f"runs_dir={served_runs}", votes], said) as running:
        yield running
        assert "Traceback" not in running.said.read_text(), running.said.read_text()


@pytest.fixture
def visit(browser: Browser, play: Process) -> Visit:
    @contextmanager
    def visited(
        where: str,
        size: tuple[int, int] = DESK,
        dark: bool = False,
        refused: bool = False,
        before: Callable[[Page], None] = lambda page: None,
    ) -> Iterator[Page]:
        scheme: Any = "dark" if dark else "light"
        with browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme) as context:
            page, problems = context.new_page(), []

            def said(message: ConsoleMessage) -> None:
                if refused and "status of 400" in message.text:
                    return
                if message.type in ("error", "warning"):
                    problems.append(f"{message.type}: {message.text}")

            def asked(request: Request) -> None:
                if not request.url.startswith((play.url, "data:", "blob:")):
                    problems.append(f"foreign: {request.url}")

            page.on("console", said)
            page.on("request", asked)
            page.on("pageerror", lambda error: problems.append(f"thrown: {error}"))
            before(page)
            page.goto(f"{play.url}/#{where}")
            try:
                page.wait_for_selector("main h1")
                yield page
            except Exception as failure:
                failure.add_note(f"{page.url}\n{problems}\n{page.locator('body').inner_text()}")
                raise
            assert not problems, problems

    return visited


@pytest.fixture(scope="session")
def story(served_runs: Path) -> TextGenerator:
    return load_as(TextGenerator, str(served_runs / "story"), device="cpu")


@pytest.fixture(scope="session")
def chat(served_runs: Path) -> TextGenerator:
    return load_as(TextGenerator, str(served_runs / "chat"), device="cpu")


@pytest.fixture(scope="session")
def vae(served_runs: Path) -> Any:
    return gengen.load(served_runs / "vae")
