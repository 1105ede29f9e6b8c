"""The page of GANs shows what the library draws, uint8 for uint8, and what the discriminator says of it."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Page, expect
from test_run_files import png, write_files

import gengen
from gengen.checkpoints.metrics_csv import Metrics
from gengen.generation.filters.copies import CopyIndex
from gengen.generation.image.files import to_float
from helpers.page_pictures import copied, drawn, executed, pictures_of
from helpers.pages import PHONE, Visit
from helpers.served import Process
from helpers.trained_on import TrainedOn

pytestmark = pytest.mark.slow


def test_draws_and_a_walk_are_the_library_s(visit: Visit, served_runs: Path, shapes: TrainedOn) -> None:
    """More draws than a request takes, all classes in turn, beside real pictures; then the walk between two of them,
    by keyboard."""
    gan: Any = gengen.load(served_runs / "gan")
    val: Any = shapes.prepared.val
    expected = gan.generate(20, seed=3, truncation=0.5)
    with torch.no_grad():
        labels = torch.arange(20) % 3
        drawn_images = gan.model.generator(0.5 * gan.latents(range(20), 3), labels)
        logits = gan.model.discriminator(drawn_images, labels)
        places = torch.arange(len(val)) if len(val) <= 64 else torch.arange(64) * len(val) // 64
        real = gan.model.discriminator(to_float(val.images[places]), val.labels[places])
    with visit("gan?n=20&seed=3") as page:
        drawn(page)
        page.get_by_label("Truncation").fill("0.5")
        page.keyboard.press("Control+Enter")
        page.wait_for_function("() => location.hash.includes('truncation=0.5')")
        drawn(page)
        assert torch.equal(pictures_of(page.locator(".drawn img")), expected)
        assert torch.equal(executed(copied(page, "Python"), served_runs)["images"], expected)
        pairs = page.locator(".duels li")
        assert pairs.count() == 12
        left = [*range(len(places))]
        for i, pair in enumerate(pairs.all()):
            j = left.pop(next(k for k, place in enumerate(left) if val.labels[places[place]] == labels[i]))
            assert torch.equal(pictures_of(pair.locator("img")), torch.stack([expected[i], val.images[places[j]]]))
            assert ("found" if real[j] > logits[i] else "fooled") in pair.inner_text()
        share = (real[:, None] > logits).double().mean()
        assert f"finds the real one {round(100 * share.item())} times of 100" in page.locator(".verdict").inner_text()
        rows = {row[0]: row[1:] for row in table_of(page)}
        assert rows["drawn"][0] == "20" and rows["real, held out"][0] == str(len(real))
        right = max(
            (real > line).double().mean() + (logits < line).double().mean()
            for line in torch.cat([real, logits]).sort().values.unfold(0, 2, 1).mean(1)
        )
        found = [int(rows[name][-1].split()[0]) for name in ("real, held out", "drawn")]
        assert found[0] / len(real) + 1 - found[1] / 20 == pytest.approx(right.item())
        page.reload()
        drawn(page)
        assert torch.equal(pictures_of(page.locator(".drawn img")), expected)
    with visit("gan?view=walk&first=1&seed=3&steps=4&prompt=dog", PHONE) as page:
        drawn(page)
        a, b = gan.latents([2, 3], 3)
        way = gan.interpolate(a, b, 1, 4)
        assert torch.equal(pictures_of(page.locator(".strip img")), way)
        assert torch.equal(executed(copied(page, "Python"), served_runs)["images"], way)


def test_the_game_can_be_pulled_through_its_steps(visit: Visit, play: Process, served_runs: Path) -> None:
    """What training drew at a step, and where the curves were then; where it drew nothing, that is said."""
    with visit("gan?n=1") as page:
        expect(page.get_by_text("Its training drew nothing")).to_be_visible()
        page.get_by_role("button", name="Let saved checkpoints meet").press("Enter")
        expect(page.get_by_text("One checkpoint is kept")).to_be_visible()
        told = play.post("../gengen/v1/gan/game", model="gan").json()["told"]
        cell = page.get_by_role("region", name="who wins").locator("td").nth(1)
        assert cell.inner_text() == str(round(100 * told[0][0]))
        page.wait_for_function("() => location.hash.includes('met=1')")
        page.reload()
        expect(cell).to_have_text(str(round(100 * told[0][0])))
    files = write_files(served_runs / "gan", rows=0, config=None)
    metrics = Metrics(files / "metrics.csv", ["step", "val/kid"])
    metrics.start(0)
    for step in (10, 20, 30):
        metrics.write({"step": step, "val/kid": 1 / step})
        (files / f"samples/step-{step:09d}.png").write_bytes(png(step))
    with visit("gan?n=1&at=20", PHONE) as page:
        image = page.get_by_alt_text("gan at step 20")
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 20
        cursor = page.locator("svg[aria-label='KID'] .cursor")
        middle = float(cursor.get_attribute("x1") or 0)
        page.get_by_label("Step of training").press("End")
        expect(page.get_by_alt_text("gan at step 30")).to_be_visible()
        assert float(cursor.get_attribute("x1") or 0) > middle
    for path in (files / "samples", files / "metrics.csv"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def table_of(page: Page) -> list[list[str]]:
    return [row.locator("th, td").all_inner_texts() for row in page.locator("tr").all()]


def test_the_ideas_are_shown_on_one_s_own_runs(visit: Visit, served_runs: Path, stories: TrainedOn) -> None:
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
        assert f"{alike} of 16" in verdicts[3] and "contrast" in verdicts[2]
        assert re.search(r"at [0-9.e+-]+ %", verdicts[0])
        made = executed(copied(page, "Python"), served_runs)
        whole = "Once upon a time" + made["text"][0].text
        assert page.locator("blockquote").inner_text().rstrip() == whole.rstrip()
        data: Any = stories.prepared
        tokens = np.array(data.tokenizer.encode(whole))
        at, length = CopyIndex(data.train, 8).longest(tokens)
        passage = data.tokenizer.decode(tokens[at : at + length].tolist())
        assert page.locator("mark").all_inner_texts() == ([passage] if length else [])
        assert (f"{length} tokens in a row" if length else "no 8 tokens") in verdicts[1]
        found = pictures_of(page.locator("section").nth(1).locator("img"))
        assert torch.equal(found[1], made["diffusion"][0]) and not torch.equal(found[0], found[1])
        draw = pictures_of(page.locator("section").nth(2).locator("img"))[0]
        assert torch.equal(draw, made["autoencoder"][0])
        page.reload()
        expect(page.locator("blockquote")).to_have_count(1, timeout=20_000)
