"""Runs on two ranks that share the weights, as forks on gloo."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L

from gengen.training.loop import TrainingLoop
from helpers.processes import Ended, forked, forked_ranks


def sharded(settings: list[str], runs: Path, *more: str, saves: Path | None = None) -> Ended:
    """Run a command on two ranks that share the weights. saves: where what was loaded is saved at once."""
    two = ["trainer.devices=2", "trainer.strategy=fsdp", f"runs_dir={runs}"]
    ended = forked([*settings, *two, *more], before=forked_ranks(lambda: saving_at_start(saves)))
    assert ended.code == 0, ended.said
    return ended


def saving_at_start(folder: Path | None) -> None:
    """Has a run save its state into a folder as soon as everything is restored."""
    original = TrainingLoop.on_train_start

    def on_train_start(self: TrainingLoop, trainer: L.Trainer, objective: Any) -> None:
        original(self, trainer, objective)
        trainer.save_checkpoint(folder)  # type: ignore[arg-type]

    if folder is not None:
        TrainingLoop.on_train_start = on_train_start  # type: ignore[method-assign]


def at(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:09d}"
