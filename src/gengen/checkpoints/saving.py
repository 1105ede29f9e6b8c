"""One save from its beginning to its end: written, marked as the best, older ones pruned; now, or beside training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gengen.checkpoints import store
from gengen.checkpoints.layout import Checkpoint


@dataclass(frozen=True)
class Keeping:
    """What becomes of a run's checkpoints with a new one."""

    is_best: bool
    keep: int
    """How many of the newest stay."""


@dataclass(frozen=True)
class Save:
    """A checkpoint that is to be written into `root`."""

    root: Path
    checkpoint: Checkpoint
    keeping: Keeping | None = None  # None: nothing is marked, and nothing goes


@dataclass(frozen=True)
class Saved:
    """How a save ended."""

    failure: str | None = None
    """Why the checkpoint was not written."""
    left: str | None = None
    """Why older checkpoints are still there."""


class Saver(Protocol):
    """Takes one save after another: the next may begin once it is known how the last one ended."""

    def start(self) -> None:
        """Make ready what a save needs, without waiting for it."""

    def begin(self, save: Save) -> None:
        """Begin a save. When this returns, the tensors may change."""

    def ended(self, wait: bool) -> Saved | None:
        """Return, once, how the save ended that was begun last; None while it goes on, if this is not to wait."""

    def close(self) -> None:
        """Let a save that goes on end, and give back what saves needed."""


def carry_out(save: Save) -> Saved:
    """Write the checkpoint, and let others go: what fails is told and not raised."""
    try:
        path = store.save(save.root, save.checkpoint)
    except store.SaveFailed as failure:
        return Saved(failure=str(failure))
    return let_go(save, path)


def let_go(save: Save, path: Path) -> Saved:
    """Mark what was saved, and prune older ones."""
    try:
        if save.keeping and save.keeping.is_best:
            store.mark_best(save.root, path)
        if save.keeping:
            store.prune(save.root, save.keeping.keep)
    except OSError as error:
        return Saved(left=str(error))
    return Saved()


class SaverInTurn:
    """Saves while training waits. act: carries out a save; where ranks share one, all of them begin it together."""

    def __init__(self, act: Callable[[Save], Saved] = carry_out) -> None:
        self.act = act
        self.saved: Saved | None = None

    def start(self) -> None:
        pass

    def begin(self, save: Save) -> None:
        self.saved = self.act(save)

    def ended(self, wait: bool) -> Saved | None:
        saved, self.saved = self.saved, None
        return saved

    def close(self) -> None:
        pass
