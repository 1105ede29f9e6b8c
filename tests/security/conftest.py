"""Runs of somebody else, in which something is planted."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gengen.checkpoints.files import to_json
from gengen.checkpoints.layout import digest

CODE = """
from pathlib import Path
Path({canary!r}).touch()
def run(*_, **__): Path({canary!r}).touch()
"""


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that every payload would make, the module `planted` among them, which can be imported. At the end it is
    not there.
    """
    path = tmp_path / "canary"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "planted.py").write_text(CODE.format(canary=str(path)))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield path
    assert sys.modules.pop("planted", None) is None, "a payload was imported"
    assert not path.exists(), "a payload was run"


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    """A copy of a run of 30 steps, of one checkpoint."""
    copy = tmp_path / "runs" / "r"
    shutil.copytree(base, copy)
    for older in set((copy / "checkpoints").glob("step-*")) - {newest(copy)}:
        shutil.rmtree(older)
    for path in (copy, newest(copy)):
        edit(path / "config.json", lambda tree: tree.update(run="r", runs_dir=str(copy.parent)))
    signed(newest(copy))
    return copy


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def edit(path: Path, change: Callable[[Any], object]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(to_json(tree))


def signed(checkpoint: Path, **facts: Any) -> None:
    """Make a checkpoint's manifest what its files are, as who plants something would."""
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    files = [file for file in checkpoint.iterdir() if file != path]
    told = {f.name: {"bytes": f.stat().st_size, "sha256": hashlib.sha256(f.read_bytes()).hexdigest()} for f in files}
    manifest |= {"files": told} | facts
    path.write_text(to_json(manifest | {"sha256": digest(manifest)}))
