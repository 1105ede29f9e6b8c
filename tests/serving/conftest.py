"""Two small runs, and one process that serves them; runs of images, served in this process."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import gengen.serving.server
from gengen.data.text.tokenizer import TextTokenizer
from gengen.generation.load import load_as
from gengen.generation.text.generator import TextGenerator
from helpers.served import (
    IMAGE_RUNS,
    Process,
    Test,
    both,
    during,
    process,
    served_here,
    write_image_runs,
    write_run,
)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `story`, of text, and `chat`, of conversations."""
    folder = tmp_path_factory.mktemp("served")
    write_run(folder / "story", TextTokenizer.byte())
    write_run(folder / "chat", TextTokenizer.byte().with_chat())
    return folder


@pytest.fixture(scope="session")
def image_runs(runs: Path, text_run: Path) -> Path:
    """The same folder, with the runs `unet`, `gan`, `vae` and `reward`, and `text`, which reads captions."""
    write_image_runs(runs)
    (runs / "text").symlink_to(text_run)
    return runs


@pytest.fixture(scope="session")
def story(runs: Path) -> TextGenerator:
    return load_as(TextGenerator, str(runs / "story"), device="cpu")


@pytest.fixture(scope="session")
def chat(runs: Path) -> TextGenerator:
    return load_as(TextGenerator, str(runs / "chat"), device="cpu")


@pytest.fixture(scope="session")
def server(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One real process that many tests share. What it has accepted has ended, once all of them are done."""
    limits = ["rows=8", "queue=16", "stall_s=1", "body_s=1"]
    said = tmp_path_factory.mktemp("server") / "said.txt"
    with process(
        both(runs, *limits), said, before=lambda: setattr(gengen.serving.server, "HEADERS_S", 1.0)
    ) as running:
        yield running
        running.until(running.quiet)
        for model in ("story", "chat"):
            assert running.figure("gengen_requests_accepted_total", model) == sum(running.outcomes(model).values())
        assert "Traceback" not in running.said.read_text(), running.said.read_text()


@pytest.fixture(scope="session")
def served(image_runs: Path) -> Callable[[Test], None]:
    """Runs a test with a function that posts, and the application whose engines run."""

    def run(test: Test) -> None:
        during(served_here(image_runs, names=IMAGE_RUNS, queue=2), test)

    return run
