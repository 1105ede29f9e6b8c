"""Saves beside training: the copy is exact, is made once, and what becomes of a writer costs no checkpoint."""

import math
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gengen.checkpoints import background, store
from gengen.checkpoints.background import BackgroundSaver
from gengen.checkpoints.layout import Checkpoint, read
from gengen.checkpoints.saving import Keeping, Save, Saved, SaverInTurn
from gengen.checkpoints.snapshot import Snapshot, read_snapshot
from gengen.cli import main
from gengen.errors import UserError
from helpers.processes import ForkedWriter
from helpers.runs import same_checkpoint


def checkpoint(step: int) -> Checkpoint:
    """One with tensors of every kind, and with whatever JSON a state may have."""
    g = torch.Generator().manual_seed(step)
    weight = torch.randn(5, 3, generator=g)
    odd = {"empty": torch.empty(0, 4), "scalar": torch.tensor(1.5), "flags": torch.tensor([True, False])}
    whole = {"columns": weight[:, 1], "turned": weight.T, "half": weight.bfloat16(), "bytes": weight.to(torch.uint8)}
    return Checkpoint(
        step=step,
        config={"model": {"name": "gpt"}, "optim": {"lr": 0.1}},
        model={"w": weight, "b": weight[0].double()} | odd | whole,
        optimizer={
            "state": {"w": {"step": torch.tensor(float(step)), "exp_avg": weight / 2}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95), "fused": None}],
            "extra": {"rows": [torch.arange(step), {"score": math.nan}]},
        },
        state={"best": (4, math.inf), "rng": [1, None], "loop": {"batch": {"total": {"ready": 3}}}},
        tokenizer="\u00e9\n" * 300,
        ema={"w": weight / 3} if step % 2 else None,
        facts={"data": "abc", "clocks": {"seconds": 1.5}},
    )


@pytest.fixture
def saver(monkeypatch: pytest.MonkeyPatch) -> Iterator[BackgroundSaver]:
    monkeypatch.setattr(background, "started", ForkedWriter)
    saver = BackgroundSaver()
    yield saver
    saver.close()


def test_what_is_written_beside_is_what_is_written_in_turn(saver: BackgroundSaver, tmp_path: Path) -> None:
    """To the last byte, though the tensors change as soon as a save has begun; and the same ones are pruned."""
    for step in (1, 2, 3, 4, 40):
        SaverInTurn().begin(Save(tmp_path / "turn", checkpoint(step), Keeping(step == 2, 2)))
        held = checkpoint(step)
        saver.begin(Save(tmp_path / "beside", held, Keeping(step == 2, 2)))
        for tensor in held.model.values():
            tensor.zero_()
        assert saver.ended(wait=True) == Saved()
    for name in ("LATEST", "BEST"):
        assert (tmp_path / "beside" / name).read_text() == (tmp_path / "turn" / name).read_text()
    kept = sorted(path.name for path in (tmp_path / "turn").glob("step-*"))
    assert kept == sorted(path.name for path in (tmp_path / "beside").glob("step-*")) and len(kept) == 3
    for name in kept:
        for path in (tmp_path / "turn" / name).iterdir():
            assert path.read_bytes() == (tmp_path / "beside" / name / path.name).read_bytes(), path


def test_memory_is_kept_and_grows_only_where_it_must() -> None:
    snapshot = Snapshot()
    save = Save(Path("x"), checkpoint(3), Keeping(True, 2))
    snapshot.take(save)
    first = snapshot.memory.data_ptr()
    back = read_snapshot(snapshot.file, snapshot.take(save))
    assert snapshot.memory.data_ptr() == first and (back.root, back.keeping) == (save.root, save.keeping)
    save.checkpoint.model["more"] = torch.ones(100_000)
    back = read_snapshot(snapshot.file, snapshot.take(save))
    assert back.checkpoint.model["more"].sum() == 100_000 and torch.equal(
        back.checkpoint.model["w"], save.checkpoint.model["w"]
    )
    snapshot.close()


def test_a_save_that_fails_is_told_once_and_the_next_succeeds(saver: BackgroundSaver, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    saver.begin(Save(tmp_path / "file", checkpoint(1)))
    saved = saver.ended(wait=True)
    assert saved and saved.failure and "file" in saved.failure
    assert saver.ended(wait=True) is None
    saver.begin(Save(tmp_path / "run", checkpoint(2)))
    assert saver.ended(wait=True) == Saved() and store.newest(tmp_path / "run")


def test_a_writer_that_is_killed_is_told_and_replaced(
    saver: BackgroundSaver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of before is there, and what was begun is not."""
    saver.begin(Save(tmp_path, checkpoint(1)))
    assert saver.ended(wait=True) == Saved()
    assert saver.writer
    os.kill(saver.writer.pid, signal.SIGKILL)
    (tmp_path / ".tmp-step-000000002-1").mkdir()
    saver.begin(Save(tmp_path, checkpoint(2)))
    saved = saver.ended(wait=True)
    assert saved and saved.failure == f"{tmp_path}: the process that writes checkpoints ended with SIGKILL"
    assert [path.name for path in tmp_path.glob("*step*")] == ["step-000000001"]
    saver.begin(Save(tmp_path, replace(checkpoint(3), ema=None)))
    assert saver.ended(wait=True) == Saved() and read(tmp_path / "step-000000003").step == 3


def test_other_systems_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(UserError, match=r"trainer\.save=async needs Linux"):
        BackgroundSaver()


@pytest.mark.slow
def test_sixteen_saves_beside_training_are_those_of_a_run_that_waits(tiny: list[str], tmp_path: Path) -> None:
    """With the writer as it is started in earnest."""
    rhythm = ["max_steps=16", "save_every=1", "eval_every=4", "sample_every=16", "log_every=1", "keep=20"]
    argv = ["train", *tiny, "optim.ema=0.9", *(f"trainer.{one}" for one in rhythm), "run=r"]
    for save in ("sync", "async"):
        assert main([*argv, f"trainer.save={save}", f"runs_dir={tmp_path / save}"]) == 0
    for step in range(1, 17):
        name = f"r/checkpoints/step-{step:09d}"
        same_checkpoint(tmp_path / "sync" / name, tmp_path / "async" / name)
