"""The page of runs, while one is written."""

from pathlib import Path

import pytest
from test_run_files import COLUMNS, png, write_files

from gengen.checkpoints.metrics_csv import Metrics
from helpers.pages import Visit

pytestmark = pytest.mark.slow


@pytest.fixture
def written(served_runs: Path) -> Path:
    """In the folder that is served: the runs `quick` and `slow`, which have curves and samples."""
    if not (served_runs / "quick").exists():
        for name in ("quick", "slow"):
            run = write_files(served_runs / name, rows=3)
            (run / "samples/step-000000010.png").write_bytes(png(5))
            (run / "samples/step-000000020.txt").write_text("<b>Once</b> upon\u202e a time")
    return served_runs


def test_runs_are_chosen_by_keyboard_and_the_address_keeps_them(visit: Visit, written: Path) -> None:
    with visit("run?runs=quick") as page:
        page.wait_for_selector("td:has-text('quick')")
        page.get_by_role("checkbox", name="slow").focus()
        page.keyboard.press("Space")
        page.wait_for_selector("td:has-text('slow')")
        assert page.locator("tbody tr").count() == 2
        page.wait_for_selector("h3:has-text('slow: 2 of 2 samples')")
        words = page.get_by_label("what slow drew at step 20")
        assert words.text_content() == "<b>Once</b> upon\u202e a time"
        picture = page.get_by_alt_text("what slow drew at step 10")
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 5
        page.reload()
        page.wait_for_selector("td:has-text('slow')")
        assert page.locator("tbody tr").count() == 2
        page.go_back()
        page.wait_for_function("() => document.querySelectorAll('tbody tr').length === 1")


def test_a_slider_pulls_runs_through_what_they_drew(visit: Visit, written: Path) -> None:
    """By keyboard: of each run the newest sample up to the step, beside the other's; a reload keeps it."""
    (written / "quick/samples/step-000000015.png").write_bytes(png(7))
    with visit("run?runs=quick/slow&at=20") as page:
        page.get_by_label("slow at step 20").wait_for()
        page.get_by_label("quick at step 20").wait_for()
        slider = page.get_by_label("Step of training")
        slider.press("ArrowLeft")
        assert slider.get_attribute("aria-valuetext") == "step 15"
        for name, width in (("quick at step 15", 7), ("slow at step 10", 5)):
            image = page.get_by_alt_text(name)
            assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == width
        page.wait_for_function("() => location.hash.includes('at=15')")
        page.reload()
        page.get_by_alt_text("slow at step 10").wait_for()
        page.get_by_alt_text("quick at step 15").wait_for()
    (written / "quick/samples/step-000000015.png").unlink()


def test_a_curve_grows_as_its_file_does(visit: Visit, written: Path) -> None:
    metrics = Metrics(written / "quick/metrics.csv", COLUMNS)
    metrics.start(30)
    with visit("run?runs=quick") as page:
        page.wait_for_selector("td:has-text('30 of 500')")
        points = page.locator("svg[aria-label='train/loss'] polyline")
        assert len(str(points.get_attribute("points")).split()) == 3
        metrics.write({"step": 40, "seconds": 20.0, "train/loss": 0.5})
        page.wait_for_selector("td:has-text('40 of 500')", timeout=8000)
        metrics.write({"step": 40, "val/loss": 0.25})  # the row gains a value
        page.wait_for_selector("td:has-text('0.25')", timeout=8000)
        metrics.write({"step": 50, "seconds": 25.0, "train/loss": float("nan")})
        page.wait_for_selector("td:has-text('1 rows with a number that is not finite')", timeout=8000)
        assert len(str(points.get_attribute("points")).split()) == 4
        Metrics(written / "quick/metrics.csv", COLUMNS).start(20)  # the run goes on from an earlier step
        page.wait_for_selector("td:has-text('20 of 500')", timeout=8000)
        assert len(str(points.get_attribute("points")).split()) == 2
