"""The page of autoencoders shows what the library decodes, uint8 for uint8; its keys, its address, its stop button."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import expect

from helpers.image_stand_ins import png
from helpers.page_pictures import copied, drawn, executed, picture_of, pictures_of
from helpers.pages import PHONE, Visit
from helpers.served import Process

pytestmark = pytest.mark.slow


def test_a_draw_is_made_and_moved_by_keyboard_alone(visit: Visit, served_runs: Path, vae: Any) -> None:
    """The picture is the draw of the library; a slider moves one channel of it, and the address keeps it."""
    with visit("autoencoder?first=2") as page:
        page.get_by_label("Seed").focus()
        page.keyboard.type("5")
        page.keyboard.press("Control+Enter")
        drawn(page)
        image = page.locator("img.large")
        expect(page.locator("input[type=range]")).to_have_count(2)
        expected = vae.generate(1, seed=5, first=2)
        assert torch.equal(picture_of(image), expected[0])
        assert torch.equal(executed(copied(page, "Python"), served_runs)["images"], expected)
        before = str(image.get_attribute("src"))
        page.get_by_label("channel 1").focus()
        page.keyboard.press("End")
        expect(image).not_to_have_attribute("src", before)
        moved = executed(copied(page, "Python"), served_runs)["images"]
        assert torch.equal(picture_of(image), moved[0]) and not torch.equal(moved, expected)
        page.wait_for_function("() => location.hash.includes('c1=3')")
        page.reload()
        drawn(page)
        assert torch.equal(picture_of(image), moved[0])
        assert page.get_by_label("channel 1").input_value() == "3"
        page.get_by_role("button", name="Back to the draw").press("Enter")
        expect(image).to_have_attribute("src", before)
        page.go_back()
        expect(page.get_by_label("channel 1")).to_have_value("3")


def test_a_path_and_a_map_are_the_library_s(visit: Visit, served_runs: Path, vae: Any, tmp_path: Path) -> None:
    with visit("autoencoder?view=path&first=1&seed=4&steps=3", PHONE) as page:
        drawn(page)
        found = pictures_of(page.locator(".strip img"))
        assert torch.equal(found, vae.interpolate(*vae.prior([2, 3], 4), 3))
        assert torch.equal(executed(copied(page, "Python"), served_runs)["images"], found)
        page.get_by_label("Show").select_option("plane")
        expect(page.locator("td img")).to_have_count(25)
        plane = vae.plane(vae.prior([1], 4)[0], (0, 1))
        assert torch.equal(pictures_of(page.locator("td img")), plane.flatten(0, 1))
        assert torch.equal(executed(copied(page, "Python"), served_runs)["images"], plane)
        page.locator("td button").nth(2).press("Enter")
        expect(page.get_by_label("channel 0")).to_have_value("-3")
        assert torch.equal(picture_of(page.locator("img.large")), plane[0, 2])
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_picture_of_one_s_own_is_taken_through(visit: Visit, served_runs: Path, vae: Any, tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, (8, 8), np.uint8)
    expected = vae.reconstruct(torch.from_numpy(image)[None, None])[0]
    with visit("autoencoder?view=reconstruct") as page:
        page.get_by_label("Picture").set_input_files(
            {"name": "<b>mine</b>.png", "mimeType": "image/png", "buffer": png(image)}
        )
        expect(page.locator("img.large")).to_have_count(2)
        assert torch.equal(picture_of(page.locator("img.large").first), torch.from_numpy(image)[None])
        assert torch.equal(picture_of(page.locator("img.large").nth(1)), expected)
        assert torch.equal(executed(copied(page, "Python"), served_runs)["images"][0], expected)
        difference = (torch.from_numpy(image)[None].float() - expected.float()).abs().mean()
        assert f"off by {float(difference):.3g} of 255" in page.locator(".output").inner_text()
        page.reload()
        expect(page.locator("img.large")).to_have_count(2)
        page.get_by_label("Picture").set_input_files(
            {"name": "<b>mine</b>.png", "mimeType": "image/png", "buffer": b"no picture"}
        )
        expect(page.locator(".error.wide")).to_have_text(
            "<b>mine</b>.png is no picture that this browser reads: PNG, JPEG or WebP"
        )


def test_leaving_the_page_frees_the_run(visit: Visit, play: Process) -> None:
    with visit("autoencoder?view=plane") as page:
        page.evaluate("() => location.hash = '#text'")
        expect(page.locator("h1")).to_have_text("Text")
        play.until(lambda: not play.figure("gengen_requests_in_progress", "vae"))
