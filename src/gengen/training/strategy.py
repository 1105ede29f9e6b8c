"""How ranks share the work of a step: Lightning's DDP, or FSDP2 with our own checkpoints."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import Store

from gengen.config.train import TrainConfig
from gengen.errors import UserError
from gengen.registry import MODELS
from gengen.training.objective import Objective
from gengen.training.sharding import sharded_like


class ReplicatedStrategy(DDPStrategy):
    """DDP among ranks that have met in a store. patience: how long they wait for each other."""

    def __init__(self, store: Store | None, patience: timedelta):
        super().__init__(timeout=patience)
        self.store = store or dist.HashStore()  # type: ignore[attr-defined] # of a rank alone

    def setup_distributed(self) -> None:
        if not dist.is_initialized():
            dist.init_process_group(
                self._get_process_group_backend(),
                store=self.store,
                rank=self.global_rank,
                world_size=self.world_size,
                timeout=self._timeout,
                device_id=self.root_device if self.root_device.type == "cuda" else None,
            )
        super().setup_distributed()


class ShardedStrategy(ReplicatedStrategy):
    """DDP's processes, with the model sharded in place instead of wrapped.

    Not Lightning's ModelParallelStrategy, which saves and loads past our CheckpointIO. A checkpoint is loaded once
    there are shards, so that each rank reads its rows alone.
    """

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True

    def configure_ddp(self) -> None:
        self.objective.shard(init_device_mesh(self.root_device.type, (self.world_size,)))

    @property
    def objective(self) -> Objective:
        assert isinstance(self.lightning_module, Objective)
        return self.lightning_module

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the whole state, as this rank saves it: on rank 0 all moments, or on each some of them."""
        saved, sharding = super().optimizer_state(optimizer), self.objective.sharding
        assert sharding is not None
        moments: dict[int, Mapping[str, Any]] = saved["state"]  # type: ignore[assignment]
        by_place = {(number, name): moment for number, one in moments.items() for name, moment in one.items()}
        state: dict[int, dict[str, Any]] = {number: {} for number in moments}
        for (number, name), moment in sharding.to_save(by_place).items():
            state[number][name] = moment
        return saved | {"state": state}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Save on all ranks, where each writes its share."""
        if self.is_global_zero or (self.objective.sharding and self.objective.sharding.saves_shares):
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        (optimizer,), (saved,) = self.optimizers, checkpoint["optimizer_states"]
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        rows = {
            number: {name: sharded_like(moment, weights[number]) for name, moment in moments.items()}
            for number, moments in saved["state"].items()
        }
        super().load_optimizer_state_dict({"optimizer_states": [saved | {"state": rows}]})


def build_strategy(config: TrainConfig, store: Store | None, patience: timedelta) -> DDPStrategy | str:
    """Build the strategy that a config asks for, for ranks that have met in a store."""
    c = config.trainer
    if c.strategy == "fsdp":
        return ShardedStrategy(store, patience)
    return ReplicatedStrategy(store, patience) if c.world > 1 or c.strategy == "ddp" else "auto"


def check_sharding(config: TrainConfig) -> None:
    """Raise UserError where trainer.strategy=fsdp is asked for what cannot be sharded."""
    if config.trainer.strategy != "fsdp":
        return
    entry, stage = MODELS[config.model.name], config.stage.name
    instead = "take trainer.strategy=ddp or auto"
    if not hasattr(entry.load_for("model", stage), "units"):
        raise UserError(
            f"trainer.strategy=fsdp: model={config.model.name} does not say what it is sharded by "
            f"(a method `units`); {instead}"
        )
    if not getattr(entry.load(f"objective:{stage}"), "can_shard", False):
        raise UserError(
            f"trainer.strategy=fsdp: stage={stage} of model={config.model.name} calls more of its networks than the "
            f"model's forward pass, which alone makes sharded weights whole; {instead}"
        )
