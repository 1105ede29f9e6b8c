"""What is read of runs' own files: as they grow, and whatever is in them."""

import asyncio
import json
import os
import signal
import struct
import zlib
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from gengen.checkpoints.metrics_csv import Metrics
from gengen.checkpoints.run import Run, being_written
from gengen.config.serve import ServeConfig
from gengen.serving.app import Application
from gengen.serving.curves import MAX_ROWS, read_curves
from helpers.processes import waited
from helpers.served import in_process

COLUMNS = ["step", "seconds", "train/loss", "val/loss"]
CONFIG = {"model": {"name": "gpt"}, "data": {"name": "books"}, "trainer": {"max_steps": 500}}
Get = Callable[[str], Awaitable[httpx.Response]]


def write_files(run: Path, rows: int = 3, config: Any = CONFIG) -> Path:
    """A run's files. config: None = it has one already."""
    (run / "samples").mkdir(parents=True)
    if config is not None:
        (run / "config.json").write_text(json.dumps(config))
    metrics = Metrics(run / "metrics.csv", COLUMNS)
    metrics.start(0)
    for step in range(10, 10 * rows + 1, 10):
        metrics.write({"step": step, "seconds": step / 2, "train/loss": 1 / step})
    return run


def png(width: int = 1) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, 1, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(width + 1)))
        + chunk(b"IEND", b"")
    )


def asked(folder: Path, test: Callable[[Get], Awaitable[None]]) -> None:
    """Run a test with what gets a path of an application over a folder, which serves no run."""

    async def inside() -> None:
        application = Application({}, ServeConfig(playground=True, runs_dir=str(folder)), [])
        async with in_process(application) as client:
            await test(client.get)

    asyncio.run(inside())


# --- curves


def test_rows_come_after_a_step_and_the_last_one_again_as_it_gains_values(tmp_path: Path) -> None:
    run = write_files(tmp_path / "a")
    first = read_curves(run / "metrics.csv", -1)
    assert first.columns == {
        "step": [10, 20, 30], "seconds": [5, 10, 15],
        "train/loss": [0.1, 0.05, 0.03333333], "val/loss": [None, None, None],
    }  # fmt: skip
    assert (first.last, first.thinned, first.complete, first.unreadable) == (30, 1, True, 0)
    with (run / "metrics.csv").open("r+") as file:
        text = file.read()
        file.seek(0)
        file.write(text.replace("30,15,0.03333333,\n", "30,15,0.03333333,0.5\n40,20,0.02,\n"))
    again = read_curves(run / "metrics.csv", first.last - 1)
    assert again.columns["step"] == [30, 40] and again.columns["val/loss"] == [0.5, None]
    assert again.writing == first.writing


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_half_written_line_is_left_for_the_next_time(tmp_path: Path, cut: int) -> None:
    path = write_files(tmp_path / "a") / "metrics.csv"
    whole = path.read_bytes() + b"40,20,0.125,\n"
    path.write_bytes(whole[:-cut])
    assert read_curves(path, -1).last == 30 and read_curves(path, -1).unreadable == 0
    path.write_bytes(whole)
    assert read_curves(path, 30).columns["train/loss"] == [0.125]


def test_a_run_that_goes_on_from_before_is_told_from_one_that_grows(tmp_path: Path) -> None:
    run = write_files(tmp_path / "a")
    before = read_curves(run / "metrics.csv", -1).writing
    Metrics(run / "metrics.csv", COLUMNS).start(20)
    after = read_curves(run / "metrics.csv", -1)
    assert after.last == 20 and after.writing != before


def test_many_rows_are_thinned_evenly_and_the_last_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n" + "".join(f"{i},{i}\n" for i in range(3 * MAX_ROWS + 1)))
    found = read_curves(path, -1)
    assert found.thinned == 4 and len(found.columns["step"]) <= MAX_ROWS
    steps = [int(step or 0) for step in found.columns["step"]]
    assert {b - a for a, b in pairwise(steps)} == {4} and steps[-1] == found.last == 3 * MAX_ROWS


def test_of_a_huge_file_the_newest_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gengen.serving.curves.MAX_BYTES", 100)
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n" + "".join(f"{i},0.5\n" for i in range(1000)))
    found = read_curves(path, -1)
    assert not found.complete and found.unreadable == 0
    assert found.columns["step"] == list(range(988, 1000))  # 8 bytes a row, the first of 12.5 being cut


@pytest.mark.parametrize(
    ("text", "steps", "unreadable"),
    [
        ("", [], 0),
        ("step,loss", [], 0),
        ("loss\n1\n", [], 1),
        ("step,loss\n1,2,3\n2\n3,x\nx,4\n-5,1\n1e3,1\n" + "9" * 5000 + ",1\n7,1\n", [7], 7),
        ("step,loss\n1,nan\n2,inf\n3,-inf\n4,\n", [1, 2, 3, 4], 0),
        ('step,loss\n1,"\0\n2,1\n', [2], 1),
        ("step,step\n1,2\n", [2], 0),
        ("<script>,step\n1,2\n", [2], 0),
    ],
)
def test_whatever_a_file_holds(tmp_path: Path, text: str, steps: list[int], unreadable: int) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    found = read_curves(tmp_path / "metrics.csv", -1)
    assert found.columns.get("step", []) == steps and found.unreadable == unreadable
    json.dumps(found.tree(), allow_nan=False)


def test_numbers_that_are_not_finite_are_texts_and_missing_ones_null(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,loss\n1,nan\n2,inf\n3,\n")
    assert read_curves(tmp_path / "metrics.csv", -1).tree()["columns"]["loss"] == ["nan", "inf", None]


# --- who writes


def test_a_lock_is_seen_and_never_taken(tmp_path: Path) -> None:
    """Its holder is another process: a record lock is not seen by its own."""
    write_files(tmp_path / "a")
    run, (ready, told) = Run(tmp_path / "a"), os.pipe()
    assert not being_written(tmp_path / "a/run.lock")
    child = os.fork()
    if not child:
        run.lock()
        os.write(told, b"x")
        signal.pause()
    try:
        os.read(ready, 1)
        assert being_written(tmp_path / "a/run.lock")
    finally:
        waited(child, 0)
    assert not being_written(tmp_path / "a/run.lock")


# --- over HTTP


def test_runs_are_listed_newest_first_with_what_their_configs_say(tmp_path: Path) -> None:
    for age, name in enumerate(("b", "a")):
        write_files(tmp_path / name)
        for path in (tmp_path / name).iterdir():
            os.utime(path, (10**9 - age, 10**9 - age))
    half = CONFIG | {"data": {"name": "\ud800<b>"}, "trainer": {"max_steps": "many"}}
    os.utime(write_files(tmp_path / "odd", config=half) / "config.json", (1, 1))
    os.utime(write_files(tmp_path / "none", config=[1]) / "config.json", (1, 1))
    for name in ("odd", "none"):
        os.utime(tmp_path / name / "metrics.csv", (1, 1))

    async def test(get: Get) -> None:
        data = (await get("/gengen/v1/runs")).json()["data"]
        assert [run["name"] for run in data] == ["b", "a", "odd", "none"]
        assert data[0] == {
            "name": "b", "changed": 10**9, "training": False, "family": "gpt", "kind": "text", "stage": "pretrain",
            "data": "books", "max_steps": 500,
        }  # fmt: skip
        assert data[2]["data"] == "?<b>" and data[2]["max_steps"] is None
        assert "names no model" in data[3]["error"] and str(tmp_path) not in data[3]["error"]

    asked(tmp_path, test)


def test_samples_are_what_they_are_called_and_run_nothing(tmp_path: Path) -> None:
    samples = write_files(tmp_path / "a") / "samples"
    (samples / "step-000000010.png").write_bytes(png())
    (samples / "step-000000020.png").write_text("<script>alert(1)</script>")
    (samples / "step-000000020.txt").write_bytes(b"<script>alert(1)</script>\xff")
    (samples / "step-000000030.html").write_text("<script>alert(1)</script>")
    (samples / "grid.png").write_bytes(png())
    (samples / "step-000000040.txt").write_bytes(bytes(2**20 + 1))
    (samples / "step-\udcff.txt").write_text("not UTF-8")
    (samples / "step-1.png").mkdir()

    async def test(get: Get) -> None:
        data = (await get("/gengen/v1/runs/a/samples")).json()
        kinds = [("step-000000010.png", "picture"), ("step-000000020.png", "picture")]
        kinds += [("step-000000020.txt", "text"), ("step-000000040.txt", "text")]
        assert [(file["name"], file["kind"]) for file in data["data"]] == kinds
        picture = await get("/gengen/v1/runs/a/samples/step-000000010.png")
        assert picture.content == png() and picture.headers["content-type"] == "image/png"
        assert (await get("/gengen/v1/runs/a/samples/step-000000020.png")).status_code == 415
        text = await get("/gengen/v1/runs/a/samples/step-000000020.txt")
        assert text.text == "<script>alert(1)</script>\N{REPLACEMENT CHARACTER}"
        assert text.headers["content-type"] == "text/plain; charset=utf-8"
        assert (
            text.headers["x-content-type-options"] == "nosniff"
            and "sandbox" in text.headers["content-security-policy"]
        )
        assert (await get("/gengen/v1/runs/a/samples/step-000000040.txt")).status_code == 413

    asked(tmp_path, test)


def test_no_name_and_no_link_leads_out_of_the_folder(tmp_path: Path) -> None:
    write_files(tmp_path / "outside/secret")
    (tmp_path / "outside/secret/samples/step-000000010.txt").write_text("a secret")
    runs = tmp_path / "runs"
    run = write_files(runs / "a")
    (runs / "link").symlink_to(tmp_path / "outside/secret")
    (run / "samples/step-000000010.txt").symlink_to(tmp_path / "outside/secret/samples/step-000000010.txt")
    (run / "metrics.csv").unlink()
    (run / "metrics.csv").symlink_to(tmp_path / "outside/secret/metrics.csv")
    names = [
        "link",
        "..",
        "../outside/secret",
        "%2e%2e%2foutside%2fsecret",
        "/etc",
        "a/../link",
        ".",
        "a%00",
        "a/",
        "A",
    ]

    async def test(get: Get) -> None:
        assert [run["name"] for run in (await get("/gengen/v1/runs")).json()["data"]] == ["a"]
        assert (await get("/gengen/v1/runs/a/metrics")).json()["columns"] == {}
        assert (await get("/gengen/v1/runs/a/samples")).json()["data"] == []
        for name in names:
            assert (await get(f"/gengen/v1/runs/{name}/metrics")).status_code == 404, name
            assert (await get(f"/gengen/v1/runs/a/samples/x{name}")).status_code == 404, name
        assert (await get("/gengen/v1/runs/a/samples/step-000000010.txt")).status_code == 404
        for after in ("x", "1e3", "", "--1", "9" * 30, "²"):
            assert (await get(f"/gengen/v1/runs/a/metrics?after={after}")).status_code == 400, after

    asked(runs, test)


def test_files_of_runs_are_served_with_the_pages_alone() -> None:
    def paths(playground: bool) -> set[str]:
        return {route.path for route in Application({}, ServeConfig(playground=playground), []).routes}

    assert {path for path in paths(True) - paths(False) if "runs" in path}
