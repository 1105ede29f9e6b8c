"""What every objective shares: one batch in, one step out."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any, Self

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from gengen.config.train import TrainConfig
from gengen.errors import UserError
from gengen.faults import fault
from gengen.io import Say
from gengen.training.memory import in_halves
from gengen.training.monitor.console import Console
from gengen.training.monitor.spikes import Spikes
from gengen.training.optim.groups import build_optimizer, rate
from gengen.training.sharding import whole
from gengen.training.weights import TrainedWeights

TRIAL_STEPS = 16  # of a copy that is thrown away, to see how long a step takes

Optimizer = torch.optim.Optimizer | LightningOptimizer
Batch = dict[str, Tensor]
"""Tensors with the rows of a batch as first dimension."""


class Objective(TrainedWeights):
    """What every objective shares: one batch in, one step out.

    A batch is everything one step needs. It is cut into micro-batches here, and each one's summed loss is divided by
    the count of the whole step over all ranks, so the gradient does not depend on how the batch was cut (dropout
    aside, which draws as it goes). A step whose loss or gradient is not finite is a bad step, which changes no weight.

    A subclass writes `loss_sum`, `loss_count` and the evaluation; nothing about precision, ranks or clipping. What
    happens between steps is in loop.py.
    """

    automatic_optimization = False
    metrics: tuple[str, ...] = ("val/loss",)  # what `evaluation_metrics` returns, the columns of metrics.csv
    monitor = "val/loss"  # the metric whose lowest value makes a checkpoint the best
    n_eval_sums = 1  # how many numbers `evaluation_sums` returns
    logged_metrics: tuple[str, ...] = ()
    """What `optimize` leaves in `logged` beside loss and grad_norm: further columns of metrics.csv."""
    compiles_on_cpu = False  # whether compiling pays on a CPU, too, in runs of some minutes
    unit = "samples"  # what `loss_count` counts, for the throughput
    can_shard = False  # whether loss and evaluation call the model by its forward pass alone, as sharding asks
    companions: tuple[nn.Module, ...] = ()
    """Networks that go where the model goes, such as a reference, but are no part of it."""

    def __init__(self, config: TrainConfig, model: nn.Module):
        super().__init__(config, model)
        config = self.config
        self.say: Say = Console().say  # a run has its own console here
        self.bad_steps = torch.zeros((), dtype=torch.long)  # not finite, or spikes: in a row
        self.all_bad_steps = torch.zeros((), dtype=torch.long)
        self.spikes = Spikes(config.trainer.spike) if config.trainer.spike else None
        # halved where memory runs out; None = a step's whole batch
        self.micro_batch_size = config.data.micro_batch_size
        self.eval_batch_size: int | None = None  # rows, once memory has run out in an evaluation
        # what `loss_sum` gathers beside the loss, summed over micro-batches
        self.running_sums: Tensor = torch.zeros(())
        self.logged: dict[str, Tensor] = {}  # loss, norm of the gradient and count of the last step

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Take the companions along: every way to another device or dtype comes down to this."""
        for network in self.companions:
            network._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def loss_sum(self, batch: Batch) -> Tensor:
        """The loss summed over everything that `loss_count` counts, fp32 scalar."""
        raise NotImplementedError

    def loss_count(self, batch: Batch) -> Tensor:
        """How many tokens or samples of the batch have a loss."""
        raise NotImplementedError

    def draws(self, rows: int, generator: torch.Generator) -> Batch:
        """Draw times, noise or masks for the `rows` of the global batch: a function of (seed, step) alone."""
        return {}

    def evaluation_sums(self, batch: Batch) -> Tensor:
        """What is summed over an evaluation, fp64 (sums,)."""
        raise NotImplementedError

    def evaluation_metrics(self, sums: Tensor) -> dict[str, float]:
        """Return the metrics that those sums make."""
        raise NotImplementedError

    def warning(self, metrics: dict[str, float]) -> str | None:
        """Return a line on what an evaluation's metrics warn of and what to try, if they do."""
        return None

    def extra_state(self) -> dict[str, Any]:
        """Return what the next step depends on beside weights, Lightning's optimizer, the average and the generators.

        It is a tree of tensors and of what JSON holds.
        """
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """The inverse of `extra_state`."""

    def before_save(self) -> None:
        """Bring up to date what a checkpoint holds beside what was trained. Every rank calls it before each save."""

    def ready(self, interrupted: Callable[[], bool]) -> bool:
        """Make what the next step needs and no loader has. Returns False if interrupted: then nothing has changed."""
        return True

    def seconds_a_step(self, trial: list[float]) -> float:
        """Estimate a step's mean time in a whole run from the times of the first TRIAL_STEPS steps."""
        return median(trial[TRIAL_STEPS // 4 :])

    def write_samples(self, stem: Path, interrupted: Callable[[], bool]) -> str | None:
        """Write samples of the current weights to files named after `stem`.

        Returns a line to show; None if interrupted.
        """
        raise NotImplementedError

    def flops_per_row(self) -> float | None:
        """Return the floating-point operations of a step for each row of its batch.

        None where no formula says it: where rows have many lengths, or a step does more than train on them.
        """
        raise NotImplementedError

    def work_per_row(self) -> float:
        """Return what `compile=auto` decides by.

        It may be rough, but must not change: an older run would be resumed with another decision.
        """
        return self.flops_per_row() or 0.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.config.optim, self.config.model.hidden_maps)

    # --- one step

    def training_step(self, batch: Batch, index: int) -> None:
        """One step. Nothing of it waits for the device."""
        self.seed_dropout()
        fault("step")
        batch = self.with_draws(batch)
        total = self.all_reduced(self.loss_count(batch))  # tokens or samples of the step, over all ranks
        self.logged = {"count": total}
        # micro-batches (`backward_with_oom_retry`), then clip, check, optimizer (`apply_gradients`)
        finite = self.optimize(batch, total)
        self.count_bad_steps(finite)
        if self.ema is not None:
            self.update_ema(finite)

    def seed_dropout(self) -> None:
        """With several ranks, give each its own dropout: a function of (seed, step, rank)."""
        if (world := self.trainer.world_size) > 1:
            torch.manual_seed(self.config.seed * 1_000_003 + self.global_step * world + self.global_rank)

    def count_bad_steps(self, finite: Tensor) -> None:
        self.bad_steps = torch.where(finite, 0, self.bad_steps.to(finite.device) + 1)
        self.all_bad_steps = self.all_bad_steps.to(finite.device) + ~finite

    def optimize(self, batch: Batch, total: Tensor) -> Tensor:
        """Change the weights; returns whether everything was finite.

        It is one update of the whole model, unless a subclass has more networks than one.
        """
        optimizer = self.optimizers(use_pl_optimizer=True)
        assert isinstance(optimizer, LightningOptimizer)
        loss = self.backward_with_oom_retry(self.loss_sum, batch, total)
        self.logged["loss"], self.logged["grad_norm"], finite = self.apply_gradients(self.model, optimizer, loss)
        return finite

    def with_draws(self, batch: Batch) -> Batch:
        """The batch with this rank's rows of the step's draws."""
        rows = len(next(iter(batch.values())))
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_000_007 + self.global_step)
        mine = slice(self.global_rank * rows, (self.global_rank + 1) * rows)
        drawn = self.draws(rows * self.trainer.world_size, generator)
        return batch | {name: tensor[mine].to(self.device) for name, tensor in drawn.items()}

    def micro_batches(self, batch: Batch, size: int | None = None) -> Iterator[Batch]:
        """The batch in parts of `size` rows; by default those of a step."""
        rows = len(next(iter(batch.values())))
        size = min(size or self.micro_batch_size or rows, rows)
        for start in range(0, rows, size):
            yield {name: tensor[start : start + size] for name, tensor in batch.items()}

    def backward_with_oom_retry(
        self, loss_sum: Callable[[Batch], Tensor], batch: Batch, total: Tensor, network: nn.Module | None = None
    ) -> Tensor:
        """Accumulate the step's gradient; where memory runs out, again with micro-batches of half the size.

        `micro_batch_size` keeps that size for the steps to come. Returns this rank's share of the loss.
        """
        sums_before = self.running_sums.clone()
        while True:
            try:
                return self.backward_micro_batches(loss_sum, batch, total, network)
            except torch.OutOfMemoryError:
                rows = len(next(iter(next(self.micro_batches(batch)).values())))
                if rows == 1 or self.trainer.world_size > 1:  # other ranks would wait for gradients that do not come
                    raise UserError(
                        f"out of memory with micro-batches of {rows} rows: "
                        "a lower data.micro_batch_size, or a smaller model"
                    ) from None
            (network or self.model).zero_grad()
            self.micro_batch_size, self.running_sums = rows // 2, sums_before.clone()
            torch.cuda.empty_cache()

    def backward_micro_batches(
        self, loss_sum: Callable[[Batch], Tensor], batch: Batch, total: Tensor, network: nn.Module | None
    ) -> Tensor:
        """Add up the step's gradient over the micro-batches; returns this rank's share of the loss.

        network: what has that gradient, where it is not the whole model. DDP waits for the gradient of the whole
        model, so of a part it is averaged over ranks here.
        """
        loss = torch.zeros((), device=self.device)
        *first, last = self.micro_batches(batch)
        with self.no_sync():
            for part in first if network is None else [*first, last]:
                loss += self.backward_one(loss_sum, part, total)
        if network is None:
            return loss + self.backward_one(loss_sum, last, total)
        if (world := self.trainer.world_size) > 1:
            gradients = [p.grad for p in network.parameters() if p.grad is not None]
            mean = self.all_reduced(torch.cat([g.flatten() for g in gradients])) / world
            for gradient, piece in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(piece.view_as(gradient))
        return loss

    def backward_one(self, loss_sum: Callable[[Batch], Tensor], part: Batch, total: Tensor) -> Tensor:
        """Add this micro-batch's share of the step's gradient, and return its share of the loss.

        total: the count of the whole step over all ranks. DDP averages gradients over ranks, hence the factor.
        """
        with self.autocast():
            loss = loss_sum(part)
        if not (isinstance(loss, Tensor) and loss.dim() == 0 and loss.requires_grad):
            found = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)[:60]
            wanted = "a tensor of no dimensions that depends on the weights"
            raise UserError(f"{loss_sum.__qualname__} returned {found}; a loss is {wanted}")
        loss = loss / total
        if fault("loss") and self.global_rank == 0:
            loss = loss * float("nan")
        self.manual_backward(loss * self.trainer.world_size)
        return loss.detach()

    def apply_gradients(self, network: nn.Module, optimizer: Optimizer, loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clip the network's gradients, check them, and step, without a word from the device to the host.

        Returns the loss over all ranks, the norm of the gradient, and whether both were finite and no spikes; where
        they were not, no weight and no moment has changed.
        """
        self.schedule(optimizer)
        norm = whole(nn.utils.clip_grad_norm_(network.parameters(), self.config.optim.clip or float("inf")))
        loss = self.all_reduced(loss)
        finite = torch.isfinite(norm) & torch.isfinite(loss)
        if self.spikes:
            finite = finite & ~self.spikes.beyond(type(network).__name__, loss, norm)
        kernel = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        # with it, the fused kernel leaves weights and moments alone
        kernel.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad()
        return loss, norm, finite

    def schedule(self, optimizer: Optimizer) -> None:
        """Set the learning rates of this step."""
        c = self.config.optim
        share = rate(self.global_step, self.trainer.max_steps, c)
        for group in optimizer.param_groups:
            group["lr"] = (c.muon_lr if group.get("muon") else c.peak_lr) * share

    # --- evaluation

    @torch.no_grad()
    def evaluate(
        self, batches: Iterable[Batch], interrupted: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Return the metrics over all ranks' batches; None if interrupted.

        It leaves every state of the training and every random generator as it was.
        """
        with self.ema_weights():
            # all a rank without batches has
            sums = torch.zeros(self.n_eval_sums, dtype=torch.float64, device=self.device)
            alone = ((batch, True) for batch in batches)
            for batch, counts in self.sharding.side_by_side(batches) if self.sharding else alone:
                if interrupted():
                    return None
                added = self.summed({name: tensor.to(self.device) for name, tensor in batch.items()})
                if counts:
                    sums += added
            return self.evaluation_metrics(self.all_reduced(sums))

    def summed(self, batch: Batch) -> Tensor:
        """Return `evaluation_sums` of a batch: in parts once memory has run out."""

        def parts(rows: int) -> list[Tensor]:
            with self.autocast():
                return [self.evaluation_sums(part) for part in self.micro_batches(batch, rows)]

        given = len(next(iter(batch.values())))
        size = min(self.eval_batch_size or given, given)
        least = size if self.sharding else 1  # other ranks would wait for the weights of each half
        (first, *more), rows = in_halves(parts, size, "in an evaluation", least)
        if rows < given:
            self.eval_batch_size = rows
        return sum(more, first)

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.trainer.precision == "bf16")

    def no_sync(self) -> AbstractContextManager[object]:
        """Inside, gradients stay on their rank."""
        wrapped = self.trainer.strategy.model
        return wrapped.no_sync() if isinstance(wrapped, nn.parallel.DistributedDataParallel) else nullcontext()

    def all_reduced(self, value: Tensor) -> Tensor:
        """The sum over ranks."""
        if self._trainer and self.trainer.world_size > 1:
            return self.trainer.strategy.reduce(value, reduce_op="sum")
        return value
