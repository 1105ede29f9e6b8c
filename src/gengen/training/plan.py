"""What a training run is told: what to train, and how to talk and be stopped. Imports no torch."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gengen.checkpoints.run import Run
from gengen.config.train import TrainConfig
from gengen.data.prepared import PreparedData
from gengen.training.monitor.console import Console
from gengen.training.monitor.interruption import Interruption
from gengen.training.ranks import Ranks

if TYPE_CHECKING:
    from torch import Tensor


class RunData(Protocol):
    """What the loop asks of a datamodule beside what Lightning does."""

    skipped_batches: int
    """Batches that the run has left out so far."""

    def val_batches(self) -> Iterable[dict[str, "Tensor"]]:
        """All that is held out, once, in order: batches of tensors with the rows as first dimension."""


@dataclass(frozen=True)
class Plan:
    """What to train, settled in every field, and where to begin."""

    config: TrainConfig
    run: Run
    prepared: PreparedData
    init_from: Path | None = None  # a checkpoint whose weights a new run starts from
    checkpoint: Path | None = None  # the one that training goes on from
    skipped_batches: int | None = None  # left out so far; None = what the checkpoint says


@dataclass(frozen=True)
class Session:
    """How a run talks, how it is stopped, and whether it may end its process."""

    console: Console
    interruption: Interruption
    ranks: Ranks = field(default_factory=Ranks)
    owns_process: bool = True  # else no watchdog ends the process, and no further ranks are started


@dataclass(frozen=True)
class Outcome:
    """What came out of a command's training."""

    run: Run
    step: int
    """Of the newest checkpoint."""
    config: TrainConfig
    interrupted: bool = False
    was_finished: bool = False  # there was nothing left to train

    @property
    def max_steps(self) -> int:
        return self.config.trainer.max_steps or 0

    @property
    def is_finished(self) -> bool:
        return self.step >= self.max_steps
