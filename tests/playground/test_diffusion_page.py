"""The page of diffusion shows what the library draws, uint8 for uint8; its keys, its address, its stop button."""

from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Page, expect
from torch import Tensor

import gengen
from helpers.page_pictures import drawn, picture_of, pictures_of
from helpers.pages import PHONE, Visit
from helpers.served import Process

pytestmark = pytest.mark.slow
RED = "a red circle"


def steps_of(page: Page) -> list[list[Tensor]]:
    """The strip: state and estimate of each step."""
    figures = page.locator(".strip figure")
    return [[picture_of(img) for img in figure.locator("img").all()] for figure in figures.all()]


def test_a_strip_is_drawn_by_keyboard_alone_and_is_the_library_s(visit: Visit, served_runs: Path) -> None:
    """Estimates are the frames of `generate`, states what its callback is given; the last picture is its own."""
    generator: Any = gengen.load(served_runs / "unet")
    frames: list[Tensor] = []
    how = {"seed": 5, "steps": 6, "sampler": "ddim"}
    expected = generator.generate(1, ["dog"], **how, frames=frames)[0]
    with visit("diffusion?run=unet&steps=6") as page:
        page.locator("select").nth(2).focus()
        page.keyboard.type("dog")
        page.keyboard.press("Tab")
        page.keyboard.type("5")
        page.keyboard.press("Control+Enter")
        drawn(page)
        found = steps_of(page)
        assert len(found) == 6 and torch.equal(torch.stack([pair[1] for pair in found]), torch.cat(frames))
        assert not torch.equal(found[0][0], found[1][0])
        assert torch.equal(picture_of(page.locator("img.result")), expected)
        assert "12 calls of the network" in page.locator(".act").inner_text(), "guided: two a step"
        scrubber = page.get_by_label("Look at a step")
        scrubber.focus()
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        assert torch.equal(picture_of(page.locator("img.large").nth(1)), frames[1][0])
        assert "step 2 of 6" in str(scrubber.get_attribute("aria-valuetext"))
        assert "seed=5" in page.url and "step=1" in page.url and "prompt=dog" in page.url


def test_the_address_brings_it_back(visit: Visit) -> None:
    """After a reload, in another tab, and by the back button: what was asked for, drawn again, at the same step."""
    with visit("diffusion?run=unet&steps=4&prompt=fox&seed=1&drawn=1&step=2") as page:
        first = drawn(page).locator("img.result").get_attribute("src")
        assert "Step 3 of 4" in page.locator(".output").inner_text()
        page.reload()
        assert (
            drawn(page).locator("img.result").get_attribute("src") == first
            and "Step 3 of 4" in page.locator(".output").inner_text()
        )
        page.get_by_label("Seed").fill("2")
        page.keyboard.press("Control+Enter")
        expect(page.locator("img.result")).not_to_have_attribute("src", str(first))
        drawn(page)
        assert "seed=2" in page.url
        page.go_back()
        expect(page.locator("img.result")).to_have_attribute("src", str(first), timeout=20_000)
        assert page.get_by_label("Seed").input_value() == "1"
        other = page.context.new_page()
        other.goto(page.url)
        assert drawn(other).locator("img.result").get_attribute("src") == first


@pytest.mark.parametrize(
    "where, cells",
    [
        (
            "run=unet&view=guidance&prompts=dog%0Afox&guidances=1,3",
            [{"prompt": p, "guidance": g} for p in ("dog", "fox") for g in (1.0, 3.0)],
        ),
        ("run=text&view=prompts&prompts=a+red+circle&seeds=4,5", [{"prompt": RED, "seed": s} for s in (4, 5)]),
        (
            "run=unet&view=samplers&counts=2,3&prompt=fox",
            [{"sampler": s, "steps": n} for s in ("heun", "dpmpp_2m", "ddim", "ancestral") for n in (2, 3)],
        ),
    ],
    ids=["guidance", "prompts", "samplers"],
)  # fmt: skip
def test_each_picture_of_a_table_is_the_library_s(
    visit: Visit, served_runs: Path, where: str, cells: list[dict[str, Any]]
) -> None:
    with visit(f"diffusion?steps=3&{where}&drawn=1", PHONE) as page:
        found = pictures_of(drawn(page).locator("td img"))
    generator: Any = gengen.load(served_runs / ("text" if "run=text" in where else "unet"))
    for image, cell in zip(found, cells, strict=True):
        how = {"steps": 3, "sampler": "ddim", "seed": 0} | cell
        prompt = how.pop("prompt", "fox")
        asked = {"prompts": prompt} if "run=text" in where else {"labels": [prompt]}
        assert torch.equal(image, generator.generate(1, **asked, **how)[0]), cell


def test_stop_frees_the_run(visit: Visit, play: Process) -> None:
    with visit("diffusion?run=unet&steps=250&sampler=heun") as page:
        play.until(lambda: not play.figure("gengen_requests_in_progress", "unet"))
        page.get_by_role("button", name="Draw").click()
        play.until(lambda: play.figure("gengen_rows_running", "unet") == 1)
        page.get_by_role("button", name="Stop").click()
        play.until(lambda: not play.figure("gengen_rows_running", "unet"), seconds=2)
        expect(page.locator(".act [role=status]")).to_have_text("stopped")


def test_a_wrong_number_is_said_in_a_sentence(visit: Visit) -> None:
    with visit("diffusion?run=unet&view=guidance&guidances=1,two&drawn=1") as page:
        expect(page.locator(".act .error")).to_have_text("Guidances: two is no number; write 1, 2, 4")
