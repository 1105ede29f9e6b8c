"""The page of GANs shows what the library draws, uint8 for uint8, and what the discriminator says of it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import expect

import gengen
from helpers.page_pictures import copied, drawn, executed, pictures_of
from helpers.pages import PHONE, Visit

pytestmark = pytest.mark.slow


def test_draws_and_a_walk_are_the_library_s(visit: Visit, served_runs: Path) -> None:
    """More draws than a request takes, all classes in turn; then the walk between two of them, by keyboard."""
    gan: Any = gengen.load(served_runs / "gan")
    expected = gan.generate(20, seed=3, truncation=0.5)
    with torch.no_grad():
        labels = torch.arange(20) % 3
        drawn_images = gan.model.generator(0.5 * gan.latents(range(20), 3), labels)
        fooled = int((gan.model.discriminator(drawn_images, labels) > 0).sum())
    with visit("gan?n=20&seed=3") as page:
        drawn(page)
        page.get_by_label("Truncation").fill("0.5")
        page.keyboard.press("Control+Enter")
        page.wait_for_function("() => location.hash.includes('truncation=0.5')")
        drawn(page)
        assert torch.equal(pictures_of(page.locator(".grid img")), expected)
        assert torch.equal(executed(copied(page, "Python"), served_runs)["images"], expected)
        assert f"{fooled} of 20 pass for real" in page.locator(".verdict").inner_text()
        counts = [int(cell.inner_text()) for cell in page.locator("td:last-child").all()]
        assert sum(counts) == 20 and sum(counts[4:]) == fooled
        page.reload()
        drawn(page)
        assert torch.equal(pictures_of(page.locator(".grid img")), expected)
    with visit("gan?view=walk&first=1&seed=3&steps=4&prompt=dog", PHONE) as page:
        drawn(page)
        a, b = gan.latents([2, 3], 3)
        way = gan.interpolate(a, b, 1, 4)
        assert torch.equal(pictures_of(page.locator(".strip img")), way)
        assert torch.equal(executed(copied(page, "Python"), served_runs)["images"], way)


def test_the_ideas_are_shown_on_one_s_own_runs(visit: Visit, served_runs: Path, story: Any) -> None:
    """By keyboard: a sample of each family, the library's own; failures with their figures; costs in a table."""
    gan: Any = gengen.load(served_runs / "gan")
    images = gan.generate(16, ["cat"], seed=0).float()
    apart = (images[:, None] - images[None]).abs().flatten(2).mean(-1) + 255 * torch.eye(16)
    alike = int((apart.min(1).values <= 2).sum())
    with visit("ideas") as page:
        page.locator("button.main").focus()
        page.keyboard.press("Enter")
        drawn(page)
        rows = page.locator("tr").all_inner_texts()
        assert len(rows) == 5 and all(re.search(r"\d\.\d\d s", row) for row in rows[1:])
        verdicts = page.locator(".verdict").all_inner_texts()
        assert f"{alike} of 16" in verdicts[2] and "contrast" in verdicts[1]
        assert re.search(r"at [0-9.e+-]+ %", verdicts[0])
        made = executed(copied(page, "Python"), served_runs)
        assert page.locator("blockquote").inner_text().rstrip() == ("Once upon a time" + made["text"][0].text).rstrip()
        found = pictures_of(page.locator("section").nth(1).locator("img"))
        assert torch.equal(found[1], made["diffusion"][0]) and not torch.equal(found[0], found[1])
        draw = pictures_of(page.locator("section").nth(2).locator("img"))[0]
        assert torch.equal(draw, made["autoencoder"][0])
        page.reload()
        expect(page.locator("blockquote")).to_have_count(1, timeout=20_000)
