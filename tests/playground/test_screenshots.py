"""The pictures of docs/playground.md: each page as it is once its main act is done. `make screenshots` writes them, of
the runs of pictured_runs.py; without that, each page is visited and pictured all the same, of the tests' own runs.
"""

import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page

from helpers.page_pictures import drawn
from helpers.pages import PAGES, Visit

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "pictures/playground"
WRITTEN = bool(os.environ.get("PICTURED_RUNS"))  # the folder of their runs: `make screenshots`
WIDTH, HEIGHT = 960, 1500  # pixels of a picture at most; what is below is left out
COLOURS = 96  # of a picture: few enough for a small file, many enough for shades
MOST_BYTES = 60_000


@dataclass(frozen=True)
class Shot:
    """where: what follows the page's name in its address. shows: what the picture must hold. act: done on it first."""

    where: str
    shows: str
    act: Callable[[Page], object] = drawn
    height: int = HEIGHT


def voted(page: Page) -> None:
    """Vote on a pair; the next one is shown beside what is told of the one before."""
    drawn(page)
    page.keyboard.press("1")
    page.get_by_text("Left was by").wait_for()
    drawn(page)


def with_samples(page: Page) -> None:
    """Wait for what comes last of a run: what it drew, behind its curves."""
    page.locator("h3").first.wait_for()


SHOTS = {
    "ideas": Shot("drawn=1", "blockquote"),
    "text": Shot(
        "run=story&prompt=One+day&max_tokens=60&seed=1&temperature=0.8&shown=1&token=1.0.2", ".odds tr >> nth=5"
    ),
    "chat": Shot("run=chat&say=Tell+me+of+a+fox.&max_tokens=60&n=2&temperature=0.8&shown=1", ".reward"),
    "stages": Shot("run=chat&prompt=One+day&max_tokens=40&temperature=0.8&shown=1", "section .token"),
    "diffusion": Shot("run=text&prompt=a+blue+heart&steps=12&seed=3&step=4&drawn=1", ".strip"),
    "edit": Shot("run=text&mask=right&of=a+red+circle&prompt=a+blue+square&n=4&drawn=1", "img.result"),
    "autoencoder": Shot("run=vae&view=path&seed=3&steps=6", ".strip"),
    "gan": Shot("run=gan&seed=1&n=16", ".verdict"),
    "run": Shot("runs=story/chat", "table", with_samples),
    "prefer": Shot(
        "run=story&other=chat&prompts=One+day&max_tokens=40&annotator=pictured&number=1",
        "text=Left was by",
        voted,
        1200,
    ),
}


def pictured(page: Page, height: int) -> Image.Image:
    """The page from its top down to a height, in few colours."""
    whole = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    return whole.crop((0, 0, WIDTH, min(height, whole.height))).quantize(COLOURS, dither=Image.Dither.NONE)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOTS)
def test_a_page_is_pictured_with_what_it_shows(visit: Visit, name: str) -> None:
    shot = SHOTS[name]
    with visit(f"{name}?{shot.where}", (WIDTH, 800)) as page:
        shot.act(page)
        page.evaluate("document.activeElement.blur()")
        place = page.locator(shot.shows).first.bounding_box()
        picture = pictured(page, shot.height)
    assert place and place["y"] + place["height"] <= picture.height, "what the page is for is cut off"
    if WRITTEN:
        FOLDER.mkdir(parents=True, exist_ok=True)
        picture.save(FOLDER / f"{name}.png", optimize=True)


def test_the_docs_show_every_page_and_no_other() -> None:
    shown = re.findall(r"!\[[^\]]+\]\(pictures/playground/(\w+)\.png\)", (DOCS / "playground.md").read_text())
    assert sorted(shown) == sorted(SHOTS) == PAGES
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.png" for name in shown}
    for path in FOLDER.iterdir():
        with Image.open(path) as picture:
            assert (picture.mode, picture.width) == ("P", WIDTH), f"{path.name} is not of make screenshots"
        assert path.stat().st_size <= MOST_BYTES, path.name
