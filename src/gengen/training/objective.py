"""What every objective shares: one batch in, one step out."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from gengen.checkpoints.format import load_weights, unique_state
from gengen.config.train import TrainConfig
from gengen.training.optimizers import build_optimizer, rate

Batch = dict[str, Tensor]
"""Tensors with the rows of a batch as first dimension."""


class Objective(L.LightningModule):
    """What every objective shares: one batch in, one step out.

    A batch is everything one step needs. It is cut into micro-batches here, and each one's summed loss is divided by
    the count of the whole step over all ranks, so the gradient does not depend on how the batch was cut (dropout aside,
    which draws as it goes). A step whose loss or gradient is not finite is a step that changes no weight.

    A subclass writes `loss_sum`, `count` and the evaluation; nothing about precision, ranks or clipping.
    """

    automatic_optimization = False
    metrics: tuple[str, ...] = ("val/loss",)  # what `evaluation_metrics` returns, the columns of metrics.csv
    monitor = "val/loss"  # the metric whose lowest value makes a checkpoint the best
    sums = 1  # how many numbers `evaluation_sums` returns
    unit = "samples"  # what `count` counts, for the throughput

    def __init__(self, config: TrainConfig, model: nn.Module):
        super().__init__()
        self.config = config
        self.model = model
        self._network: tuple[Any] = (model,)  # a tuple, so that it is no submodule: weights keep their uncompiled names
        self.ema = {n: t.detach().clone() for n, t in unique_state(model).items()} if config.optim.ema else None
        self.bad_steps = torch.zeros((), dtype=torch.long)  # steps in a row that were not finite
        self.logged: dict[str, Tensor] = {}  # loss, norm of the gradient and count of the last step

    @property
    def network(self) -> nn.Module:
        """The model as it is called: compiled, where that is on."""
        return self._network[0]

    def use_compiled(self) -> None:
        self._network = (torch.compile(self.model),)

    def loss_sum(self, batch: Batch) -> Tensor:
        """The loss summed over everything that `count` counts, fp32 scalar."""
        raise NotImplementedError

    def count(self, batch: Batch) -> Tensor:
        """How many tokens or samples of the batch have a loss."""
        raise NotImplementedError

    def draws(self, rows: int, generator: torch.Generator) -> Batch:
        """Random draws (times, noise, masks) for the `rows` of the global batch, a function of (seed, step) alone."""
        return {}

    def evaluation_sums(self, batch: Batch) -> Tensor:
        """What is summed over an evaluation, fp64 (sums,)."""
        raise NotImplementedError

    def evaluation_metrics(self, sums: Tensor) -> dict[str, float]:
        """The metrics that those sums make."""
        raise NotImplementedError

    def write_samples(self, stem: Path, interrupted: Callable[[], bool]) -> str | None:
        """Write samples of the current weights to files named after `stem`; returns a line to show, None if interrupted."""
        raise NotImplementedError

    def flops_per_row(self) -> float:
        """Floating-point operations that training on one row of a batch takes."""
        raise NotImplementedError

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.config.optim)

    def training_step(self, batch: Batch, index: int) -> None:
        if (world := self.trainer.world_size) > 1:  # each rank its own dropout, a function of (seed, step, rank)
            torch.manual_seed(self.config.seed * 1_000_003 + self.global_step * world + self.global_rank)
        batch = self.with_draws(batch)
        total = self.all_reduced(self.count(batch))
        self.logged = {"loss": torch.zeros((), device=self.device), "count": total}
        *first, last = self.micro_batches(batch)
        with self.no_sync():
            for part in first:
                self.backward_share(part, total)
        self.backward_share(last, total)
        self.update()

    def with_draws(self, batch: Batch) -> Batch:
        """The batch with this rank's rows of the step's draws."""
        rows = len(next(iter(batch.values())))
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_000_007 + self.global_step)
        mine = slice(self.global_rank * rows, (self.global_rank + 1) * rows)
        drawn = self.draws(rows * self.trainer.world_size, generator)
        return batch | {name: tensor[mine].to(self.device) for name, tensor in drawn.items()}

    def micro_batches(self, batch: Batch) -> Iterator[Batch]:
        rows = len(next(iter(batch.values())))
        size = min(self.config.data.micro_batch_size or rows, rows)
        for start in range(0, rows, size):
            yield {name: tensor[start : start + size] for name, tensor in batch.items()}

    def backward_share(self, part: Batch, total: Tensor) -> None:
        """Add this micro-batch's share of the step's gradient. DDP averages over ranks, hence the factor."""
        with self.autocast():
            loss = self.loss_sum(part) / total
        self.logged["loss"] += loss.detach()
        self.manual_backward(loss * self.trainer.world_size)

    def update(self) -> None:
        """Clip, check, step, and follow with the EMA; without a word from the device to the host."""
        optimizer = self.optimizers(use_pl_optimizer=True)
        assert not isinstance(optimizer, list)
        c = self.config.optim
        for group in optimizer.param_groups:
            group["lr"] = c.lr * rate(self.global_step, self.trainer.max_steps, c)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), c.clip or float("inf"))
        loss = self.all_reduced(self.logged["loss"])
        finite = torch.isfinite(norm) & torch.isfinite(loss)
        optimizer.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # the fused kernel then leaves weights and moments alone
        optimizer.step()
        optimizer.zero_grad()
        self.bad_steps = torch.where(finite, 0, self.bad_steps.to(finite.device) + 1)
        self.logged |= {"loss": loss, "grad_norm": norm}
        if self.ema is not None:
            self.follow(finite)

    @torch.no_grad()
    def follow(self, finite: Tensor) -> None:
        """Move the EMA of weights and buffers; its decay warms up as (1 + t) / (10 + t), so that early weights fade."""
        assert self.ema is not None and self.config.optim.ema
        decay = min(self.config.optim.ema, (1 + self.global_step) / (10 + self.global_step))
        for name, tensor in unique_state(self.model).items():
            average = self.ema[name] = self.ema[name].to(tensor.device)
            if average.is_floating_point():
                average.lerp_(tensor.detach(), (1 - decay) * finite.to(average.dtype))
            else:
                average.copy_(tensor)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch], interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """The metrics over all ranks' batches; None if interrupted. Touches no training state and no generator."""
        with self.averaged():
            sums = torch.zeros(self.sums, dtype=torch.float64, device=self.device)  # all a rank without batches has
            for batch in batches:
                if interrupted():
                    return None
                with self.autocast():
                    part = self.evaluation_sums({name: tensor.to(self.device) for name, tensor in batch.items()})
                sums += part
            return self.evaluation_metrics(self.all_reduced(sums))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model is in evaluation mode and has the weights it is sampled with: their EMA, where one is kept."""
        trained = {} if self.ema is None else {name: tensor.detach().clone() for name, tensor in unique_state(self.model).items()}
        self.model.eval()
        try:
            if self.ema is not None:
                load_weights(self.model, self.ema, Path("ema"))
            yield
        finally:
            if trained:
                load_weights(self.model, trained, Path("trained"))
            self.model.train()

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.trainer.precision == "bf16")

    def no_sync(self) -> AbstractContextManager[Any]:
        """Inside, gradients stay on their rank."""
        wrapped = self.trainer.strategy.model
        return wrapped.no_sync() if isinstance(wrapped, nn.parallel.DistributedDataParallel) else nullcontext()

    def all_reduced(self, value: Tensor) -> Tensor:
        """The sum over ranks."""
        return self.trainer.strategy.reduce(value, reduce_op="sum") if self._trainer and self.trainer.world_size > 1 else value

    # What Lightning saves and restores as the module's state is the model's own, each shared tensor once.

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return {name: tensor.detach() for name, tensor in unique_state(self.model).items()}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> None:
        load_weights(self.model, state_dict, Path("checkpoint"))
