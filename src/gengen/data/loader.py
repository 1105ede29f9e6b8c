"""Batches of a run: whole steps, in an order that is a function of the step, from any step on."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, cast

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, Dataset

from gengen.config.data import DataConfig
from gengen.config.model import ModelConfig
from gengen.data import order
from gengen.data.prepared import Batch, FlippableRows, PreparedData, PreparedRows
from gengen.errors import UserError
from gengen.faults import fault
from gengen.registry import DATA

Made = TypeVar("Made")


class StepData(L.LightningDataModule):
    """The datamodule that training expects. One item of the train loader is one step's whole batch, or this rank's
    slice of it. There is no state to save: the loader starts at the trainer's global step, and the number of workers
    changes nothing.

    steps: step -> its batch. A subclass gives the steps and `val_batches`.
    """

    def __init__(self, config: DataConfig, steps: Dataset[Batch], rank: int, world: int):
        super().__init__()
        if config.batch_size % world:
            raise UserError(f"data.batch_size={config.batch_size} cannot be cut into equal parts for {world} ranks")
        self.config, self.steps, self.rank, self.world = config, steps, rank, world
        self.skipped_batches = 0  # batches that a run has left out so far

    def train_dataloader(self) -> "Unbroken":
        return Unbroken(self.loader, (self.trainer.global_step if self.trainer else 0) + self.skipped_batches)

    def loader(self, start_step: int) -> DataLoader[Batch]:
        """Yield the batches of start_step, start_step + 1, ..., without end."""
        workers = self.config.num_workers
        return DataLoader(
            self.steps,
            batch_size=None,
            sampler=order.From(start_step),
            collate_fn=received,
            num_workers=workers,
            timeout=self.config.worker_timeout if workers else 0,
            pin_memory=torch.cuda.is_available(),  # it is then copied while the device computes
            generator=torch.Generator(),  # its own: a loader draws a seed for its workers even if they use none
        )

    def val_batches(self) -> Iterator[Batch]:
        """Yield this rank's validation batches, the same ones in the same order each time it is called."""
        raise NotImplementedError

    def val_parts(self, n: int) -> Iterator[range]:
        """Yield this rank's validation batches as ranges of 0 .. n - 1, none larger than those it trains on. All ranks
        take one at a time, side by side; what is left at the end is cut into equal parts."""
        share = self.config.batch_size // self.world
        size = self.config.eval_batch_size or min(self.config.micro_batch_size or share, share)
        for first in range(0, n, self.world * size):
            block = range(first, min(first + self.world * size, n))
            part = -(-len(block) // self.world)
            if mine := block[self.rank * part : (self.rank + 1) * part]:
                yield mine


def received(batch: Made) -> Made:
    """Pass on a batch where it was made: in a worker, if there are any."""
    fault("data:batch")
    return batch


class Unbroken:
    """The batches of a loader from a step on. If a worker dies, hangs or raises, the loader is made anew at the batch
    it owes; once.
    """

    def __init__(self, loader: Callable[[int], DataLoader[Batch]], start: int):
        self.loader, self.start = loader, start

    def __iter__(self) -> Iterator[Batch]:
        step, failures = self.start, 0
        batches: Any = None
        while True:
            try:
                with deaths_are_heard():
                    batches = iter(self.loader(step)) if batches is None else batches
                    batch = next(batches)
            except Exception as error:
                failures += 1
                if not hasattr(batches, "_shutdown_workers"):
                    raise
                batches = batches._shutdown_workers()
                if failures > 1:
                    raise UserError(
                        f"a data worker failed for the second time (data.num_workers=0 reads without any):\n{error}"
                    ) from None
            else:
                yield batch
                step += 1


@contextmanager
def deaths_are_heard() -> Iterator[None]:
    """Inside, and only there, the death of a worker is raised as an error.

    Torch's own handler raises it wherever Python then is, such as within a step. Only the main thread may handle
    signals; in others, where torch sets no handler either, a death is found by the next look.
    """
    if threading.current_thread() is not threading.main_thread():
        torch._C._error_if_any_worker_fails()
        yield
        return
    signal.signal(signal.SIGCHLD, lambda *_: torch._C._error_if_any_worker_fails())
    try:
        torch._C._error_if_any_worker_fails()
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class IndexedSteps(Dataset[Batch]):
    """step -> the rows of that step's batch that fall to one rank; some of them mirrored, where `flip` is on."""

    def __init__(self, prepared: PreparedRows, flip: bool, seed: int, batch_size: int, rank: int, world: int):
        self.prepared, self.flip, self.seed = prepared, flip, seed
        self.batch_size, self.rank, self.world = batch_size, rank, world

    def __getitem__(self, step: int) -> Batch:
        share = self.batch_size // self.world
        first = step * self.batch_size + self.rank * share
        index, mirrored = order.images(first, share, self.seed, len(self.prepared.train))
        if not self.flip:
            return self.prepared.batch("train", torch.from_numpy(index))
        rows = cast(FlippableRows, self.prepared)  # only data that can be mirrored have a config with `flip`
        return rows.batch("train", torch.from_numpy(index), torch.from_numpy(mirrored))


class IndexedData(StepData):
    """Batches of what consists of rows: of images, or what another model has made of them; of conversations,
    preferences, prompts."""

    def __init__(self, config: DataConfig, prepared: PreparedRows, *, seed: int, rank: int = 0, world: int = 1):
        flip = getattr(config, "flip", False)
        super().__init__(config, IndexedSteps(prepared, flip, seed, config.batch_size, rank, world), rank, world)
        self.prepared = prepared

    def val_batches(self) -> Iterator[Batch]:
        """Yield all that is held out once, in order, nothing mirrored."""
        for part in self.val_parts(len(self.prepared.val)):
            yield self.prepared.batch("val", torch.tensor(part))


class BuildDataModule(Protocol):
    """How the datamodule of a registered data set is built (`register_data(datamodule=...)`)."""

    def __call__(
        self, config: Any, prepared: Any, model: ModelConfig, *, seed: int, rank: int = 0, world: int = 1
    ) -> StepData: ...


def build_datamodule(
    config: DataConfig, prepared: PreparedData, model: ModelConfig, *, seed: int, rank: int = 0, world: int = 1
) -> StepData:
    """Build the datamodule of the data set that the config names."""
    build: BuildDataModule = DATA[config.name].load("datamodule")
    return build(config, prepared, model, seed=seed, rank=rank, world=world)


def datamodule_for(
    config: DataConfig, prepared: PreparedRows, model: ModelConfig, *, seed: int, rank: int = 0, world: int = 1
) -> IndexedData:
    """Build the datamodule of rows, the same for every model."""
    return IndexedData(config, prepared, seed=seed, rank=rank, world=world)
