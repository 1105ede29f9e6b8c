"""The page of edits changes pictures as the library does, uint8 for uint8, and keeps what is not open, to the bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Page, expect
from torch import Tensor

import gengen
from gengen.generation.image.masks import WORDS, read_mask
from helpers.image_stand_ins import png
from helpers.page_pictures import drawn, picture_of, pictures_of
from helpers.pages import PHONE, Visit
from helpers.served import Process

pytestmark = pytest.mark.slow
HOW: dict[str, Any] = {"steps": 3, "sampler": "ddim", "seed": 0}
FROM = {"steps": 20, "sampler": "ddim", "seed": 0}  # how the page draws the picture to begin with


def results(page: Page) -> Tensor:
    return pictures_of(drawn(page).locator("img.result"))


def test_a_part_is_drawn_anew_by_keyboard_alone(visit: Visit, served_runs: Path) -> None:
    """Cells are opened with arrow keys and space; an opened one is closed by another space."""
    generator: Any = gengen.load(served_runs / "unet")
    picture = generator.generate(1, ["cat"], **FROM)[0]
    is_open = torch.zeros(8, 8, dtype=torch.bool)
    is_open[2:4, 0:4] = True
    expected = generator.edit(picture, is_open, n=2, labels=["dog"], resamples=2, strength=1.0, **HOW)
    with visit("edit?run=unet&steps=3&resamples=2&brush=2&prompt=dog") as page:
        page.locator("canvas").focus()
        for key in ("ArrowDown", "Space", "ArrowRight", "Space", "ArrowRight", "Space", "Space"):
            page.keyboard.press(key)
        expect(page.locator(".editor [role=status]")).to_contain_text("column 5: kept. 8 of 64 pixels are open")
        page.keyboard.press("Control+Enter")
        found = results(page)
        assert torch.equal(found, expected)
        assert torch.equal(found[..., ~is_open], picture[..., ~is_open].expand(2, -1, -1))


def test_mouse_and_words_open_the_same(visit: Visit, served_runs: Path) -> None:
    """A half by its button, and by painting it, is one mask, that of the library's word; on a narrow screen too."""
    with visit("edit?run=unet&brush=2", PHONE) as page:
        editor = page.locator(".editor")
        for word in WORDS:
            editor.get_by_role("button", name=word, exact=True).click()
            expect(editor.get_by_role("status")).to_contain_text(f"{int(read_mask(word, (8, 8), 8).sum())} of 64")
            page.wait_for_url(f"**mask={word}*")
        editor.get_by_role("button", name="nothing").click()
        page.locator("canvas").scroll_into_view_if_needed()
        box = page.locator("canvas").bounding_box()
        assert box
        cell = box["width"] / 8
        page.mouse.move(box["x"] + cell / 2, box["y"] + cell / 2)
        page.mouse.down()
        for row in (0, 2, 4, 6):
            page.mouse.move(box["x"] + cell / 2, box["y"] + (row + 0.5) * cell)
            page.mouse.move(box["x"] + 2.5 * cell, box["y"] + (row + 0.5) * cell)
        page.mouse.up()
        expect(editor.get_by_role("status")).to_contain_text("32 of 64")
        page.wait_for_url("**mask=left*")


def test_a_picture_of_one_s_own_is_changed_and_goes_on(visit: Visit, served_runs: Path) -> None:
    """It is in the address: a reload shows it again. A result is the next picture to change."""
    generator: Any = gengen.load(served_runs / "unet")
    rows = np.arange(64, dtype=np.uint8).reshape(8, 8) + 90
    picture = torch.from_numpy(rows)[None]
    with visit("edit?run=unet&way=vary&steps=3&strength=0.5&n=2&prompt=fox") as page:
        given = {"name": "<b>.png", "mimeType": "image/png", "buffer": png(np.pad(rows, ((0, 0), (3, 3))))}
        page.get_by_label("or a picture of your own").set_input_files(given)  # type: ignore[arg-type]
        page.wait_for_url("**picture=*")
        page.get_by_role("button", name="Draw").click()
        found = results(page)
        assert torch.equal(found, generator.edit(picture, n=2, labels=["fox"], strength=0.5, **HOW))
        page.reload()
        assert torch.equal(results(page), found)
        page.get_by_role("button", name="Go on from this").nth(1).click()
        expect(page.locator(".result")).to_have_count(0)
        assert torch.equal(picture_of(page.get_by_alt_text("the picture to change")), found[1])
        page.get_by_role("button", name="Draw").click()
        again = results(page)
        assert torch.equal(again, generator.edit(found[1], n=2, labels=["fox"], strength=0.5, **HOW))
        page.go_back()
        expect(page.locator(".result")).to_have_count(0)
        page.go_back()
        expect(page.locator(".result")).to_have_count(2, timeout=20_000)
        assert torch.equal(results(page), found), "the back button shows what it was made of"


def test_what_is_no_picture_is_said(visit: Visit) -> None:
    with visit("edit?run=unet") as page:
        given = {"name": "<b>.png", "mimeType": "image/png", "buffer": b"<svg onload=alert(1)>"}
        page.get_by_label("or a picture of your own").set_input_files(given)  # type: ignore[arg-type]
        expect(page.locator(".error").filter(has_text="<b>.png is no picture")).to_be_visible()
        page.get_by_role("button", name="Draw").click()
        expect(page.locator(".act .error")).to_contain_text("Nothing is open")


def test_a_picture_is_carried_on(visit: Visit, served_runs: Path) -> None:
    generator: Any = gengen.load(served_runs / "unet")
    picture = generator.generate(1, ["cat"], **FROM)[0]
    with visit("edit?run=unet&way=outpaint&right=4&top=2&steps=3&resamples=2&drawn=1") as page:
        found = results(page)
        expected = generator.outpaint(picture, right=4, top=2, n=2, resamples=2, **HOW)
        assert torch.equal(found, expected) and torch.equal(found[:, :, 2:, :8], picture.expand(2, -1, -1, -1))


def test_two_prompts_are_mixed(visit: Visit, served_runs: Path) -> None:
    generator: Any = gengen.load(served_runs / "text")
    with visit("edit?run=text&way=remix&prompt=a+red+circle&to=a+blue+square&pictures=3&steps=3&drawn=1") as page:
        found = results(page)
        (expected,) = generator.remix("a red circle", "a blue square", 1, pictures=3, **HOW)
        assert torch.equal(found, expected)


def test_only_runs_that_read_captions_mix_prompts(visit: Visit) -> None:
    with visit("edit?run=unet&way=remix") as page:
        options = page.get_by_label("Do what").locator("option")
        assert options.count() == 3 and page.get_by_label("Do what").input_value() == "inpaint"
        page.get_by_label("Run").select_option("text")
        expect(page.get_by_label("Do what").locator("option")).to_have_count(4)


def test_stop_frees_the_run(visit: Visit, play: Process) -> None:
    with visit("edit?run=unet&mask=left&steps=250&resamples=50&n=16") as page:
        expect(page.locator("canvas")).to_be_visible()
        play.until(lambda: not play.figure("gengen_requests_in_progress", "unet"))
        page.get_by_role("button", name="Draw").click()
        play.until(lambda: play.figure("gengen_rows_running", "unet") == 1)
        page.get_by_role("button", name="Stop").click()
        play.until(lambda: not play.figure("gengen_rows_running", "unet"), seconds=5)
        expect(page.locator(".act [role=status]")).to_have_text("stopped")
