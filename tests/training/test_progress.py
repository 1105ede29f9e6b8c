"""The line that a run shows of its progress."""

import pytest

from gengen.training.monitor.progress import progress_line


@pytest.mark.parametrize(("rate", "shown"), [(9_871.0, "9.9k"), (999.4, "999"), (31.4, "31"), (0.314, "0.31")])
def test_a_slow_run_shows_its_speed(rate, shown):
    line = progress_line(50, 200, 60.0, {"train/loss": 1.25, "images_per_second": rate}, {})
    assert line == f"step 50/200  loss 1.250  {shown} images/s  1m00s done, 3m00s to go"
