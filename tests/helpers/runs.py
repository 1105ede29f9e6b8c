"""Two runs compared, to the last byte, and a run that sends itself a signal."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gengen.checkpoints import store
from gengen.checkpoints.metrics_csv import read_metrics
from gengen.config.resume import ONE_COMMAND
from gengen.config.schema import leaves

FREE = {"run", "runs_dir", "trainer.save", *ONE_COMMAND}


def last_checkpoint(run: Path) -> Path:
    path = store.newest(run / "checkpoints")
    assert path is not None
    return path


def same_checkpoint(a: Path, b: Path, free: set[str] = FREE) -> None:
    """Every file byte-equal but the clocks and the free config fields."""
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())
    for path in a.iterdir():
        if path.name == "config.json":
            assert flat(path, free) == flat(b / path.name, free)
        elif path.name == "manifest.json":
            one, two = json.loads(path.read_text()), json.loads((b / path.name).read_text())
            for manifest in (one, two):
                del manifest["clocks"], manifest["sha256"], manifest["files"]["config.json"]
            assert one == two
        else:
            assert path.read_bytes() == (b / path.name).read_bytes(), path.name


def flat(path: Path, free: set[str]) -> dict[str, Any]:
    return {key: value for key, value in leaves(json.loads(path.read_text())) if key not in free}


def curve(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.csv without what a clock wrote."""
    timed = ("seconds", "mfu", "_per_second")
    return [{k: v for k, v in row.items() if not k.endswith(timed)} for row in read_metrics(run / "metrics.csv")]


def same_curve(a: Path, b: Path) -> None:
    """Every figure but times, and every file of samples/."""
    assert curve(a) == curve(b)
    one, two = ({path.name: path.read_bytes() for path in (run / "samples").iterdir()} for run in (a, b))
    assert one == two


def same_run(a: Path, b: Path, free: set[str] = FREE) -> None:
    """The last checkpoint (weights, moments, average, generators, loop), the curve and the samples, bit for bit."""
    same_checkpoint(last_checkpoint(a), last_checkpoint(b), free)
    same_curve(a, b)


def signals_itself(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, call: int, number: int) -> None:
    """Have the n-th call of a method send this process a signal first."""
    original, calls = getattr(owner, method), iter(range(1, 10**6))

    def signalled(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, method, signalled)
