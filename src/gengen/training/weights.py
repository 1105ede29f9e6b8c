"""The weights that an objective trains: how they are averaged, sharded, evaluated, saved and loaded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from gengen.checkpoints.layout import load_weights, unique_state
from gengen.config.train import TrainConfig
from gengen.training.optim.averages import are_grouped, move_averages
from gengen.training.sharding import Sharding, local, sharded_like


class TrainedWeights(L.LightningModule):
    """A model, the average of its weights where one is kept, and its shards where ranks share them."""

    ema_prefix = ""  # the part of the model, by name, that an average is kept of; "" = all of it
    sharding: Sharding | None = None  # once the model is sharded

    def __init__(self, config: TrainConfig, model: nn.Module):
        super().__init__()
        if steps := config.trainer.max_steps:  # settled already in a run; not in an objective built by itself
            config = replace(config, optim=config.optim.for_steps(steps))
        self.config = config
        self.model = model
        # in a tuple it is no submodule: weights keep their uncompiled names
        self._network: tuple[nn.Module] = (model,)
        self.ema: dict[str, Tensor] | None = None
        if config.optim.ema:
            self.ema = {name: tensor.detach().clone() for name, tensor in self.ema_source().items()}

    @property
    def network(self) -> nn.Module:
        """The model as it is called: compiled, where that is on."""
        return self._network[0]

    @property
    def evaluated(self) -> nn.Module:
        """The model as evaluations call it: `network` on CUDA, and the plain one on a CPU, where the bits of an
        evaluation then do not depend on trainer.compile."""
        return self.network if self.device.type == "cuda" else self.model

    def use_compiled(self) -> None:
        self._network = (cast(nn.Module, torch.compile(self.model)),)

    # --- shards

    def shard(self, mesh: DeviceMesh) -> None:
        """Keep of the model, and of its average, this rank's rows alone; the optimizer is made after this."""
        self.sharding = Sharding(
            self.model, mesh, compiled=self.network is not self.model, saves_shares=self.config.trainer.sharded_save
        )
        self._network = (self.model,)
        if self.ema is not None:
            self.ema = {name: sharded_like(self.ema[name], own) for name, own in self.ema_source().items()}

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors as this rank saves them: whole. All ranks must ask for sharded ones."""
        return self.sharding.to_save(tensors) if self.sharding else tensors

    # --- average

    def ema_decay(self) -> float:
        """The average's decay in this step. It warms up as (1 + t) / (10 + t), so that early weights fade."""
        assert self.config.optim.ema
        return min(self.config.optim.ema, (1 + self.global_step) / (10 + self.global_step))

    @torch.no_grad()
    def update_ema(self, finite: Tensor) -> None:
        """Move the EMA of weights and buffers."""
        assert self.ema is not None
        averages, weights = [], []
        for name, tensor in self.ema_source().items():
            average = self.ema[name] = self.ema[name].to(tensor.device)
            if average.is_floating_point():
                averages.append(local(average))
                weights.append(local(tensor.detach()))
            else:
                average.copy_(tensor)
        move_averages(averages, weights, (1 - self.ema_decay()) * finite.double(), are_grouped(averages))

    def ema_source(self) -> dict[str, Tensor]:
        """The weights and buffers that an average is kept of."""
        return {name: tensor for name, tensor in unique_state(self.model).items() if name.startswith(self.ema_prefix)}

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Inside, the model is in evaluation mode with the weights it is sampled with: the EMA, where one is kept."""
        trained: dict[str, Tensor] = {}
        if self.ema is not None:
            trained = {name: tensor.detach().clone() for name, tensor in unique_state(self.model).items()}
        self.model.eval()
        try:
            if self.ema is not None:
                load_weights(self.model, trained | self.ema, Path("ema"))
            yield
        finally:
            if self.sharding:
                self.sharding.reshard()
            if trained:
                load_weights(self.model, trained, Path("trained"))
            self.model.train()

    @contextmanager
    def sampled_weights(self) -> Iterator[None]:
        """Inside, the model is as `ema_weights` has it; a sharded one is whole, on rank 0, which samples alone."""
        if self.sharding is None:
            with self.ema_weights():
                yield
            return
        trained, self.model = self.model, self.sharding.whole_model(unique_state(self.model) | (self.ema or {}))
        try:
            yield
        finally:
            self.model = trained

    # What Lightning saves and restores as the module's state is the model's own, each shared tensor once.

    def state_dict(self, *args: object, **kwargs: object) -> dict[str, Tensor]:  # type: ignore[override]
        return self.whole({name: tensor.detach() for name, tensor in unique_state(self.model).items()})

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> None:
        own = unique_state(self.model)
        rows = {name: sharded_like(tensor, own.get(name, tensor)) for name, tensor in state_dict.items()}
        load_weights(self.model, rows, Path("checkpoint"))
