"""`play`: which runs it serves, and what it says where there is none."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from gengen.checkpoints.listing import newest_of_each, runs_in
from gengen.cli import main
from gengen.data.text.tokenizer import TextTokenizer
from helpers.served import process, write_image_runs, write_run


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two language models, `new` being newer than `old`, and runs of other families."""
    folder = tmp_path_factory.mktemp("written")
    for age, name in enumerate(("new", "old")):
        manifest = write_run(folder / name, TextTokenizer.byte()) / "checkpoints/step-000000007/manifest.json"
        os.utime(manifest, (10**9 - age, 10**9 - age))
    write_image_runs(folder)
    return folder


def test_the_newest_run_of_each_family_and_stage_comes_first(written: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(written, tmp_path / "runs")
    (copy / "begun").mkdir()
    shutil.copy(copy / "gan/config.json", copy / "begun")  # has no checkpoint yet
    (copy / "broken").mkdir()
    (copy / "broken/config.json").write_text("{")
    (copy / "elsewhere").symlink_to(written / "gan")
    (copy / "again").symlink_to(copy / "again")
    names = [[path.name for path in runs] for runs in newest_of_each(copy)]
    assert names == [["gan"], ["new", "old"], ["reward"], ["unet"], ["vae"]]
    assert sorted(runs_in(copy)) == ["begun", "broken", "gan", "new", "old", "reward", "unet", "vae"]


def test_without_a_run_it_says_which_command_makes_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torch"]:
        monkeypatch.setitem(sys.modules, name, None)  # an import of it now fails
    assert main(["play", f"runs_dir={tmp_path}/none"]) == 2
    assert capsys.readouterr().err == (
        f"error: no run in {tmp_path}/none/ has a checkpoint yet; this makes one in minutes:\n"
        "  python scripts/train.py model=gpt data=tinystories\n"
    )


def test_a_damaged_run_makes_way_for_the_next_newest(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without a file of votes none is written."""
    monkeypatch.chdir(tmp_path)
    for name in ("new", "old"):
        shutil.copytree(written / name, tmp_path / "runs" / name)
    weights = tmp_path / "runs/new/checkpoints/step-000000007/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    settings = [f"runs_dir={tmp_path}/runs", "preferences="]
    with process(settings, tmp_path / "said.txt", command="play") as server:
        assert [model["id"] for model in server.get("/v1/models").json()["data"]] == ["old"]
        assert server.get("/").status_code == 200
        assert "new is passed over: " in server.said.read_text()
        assert f"open {server.url}/ in a browser" in server.said.read_text()
    assert [path.name for path in tmp_path.glob("*.jsonl")] == []


def test_a_run_that_is_named_must_be_there(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", "nwe", f"runs_dir={written}"]) == 2
    assert "did you mean new?" in capsys.readouterr().err
