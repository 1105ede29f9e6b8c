"""Networks at the model's side that are no part of it: a frozen reference, a critic of answers, an adversary."""

from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from gengen.checkpoints.layout import load_weights, unique_state
from gengen.config.train import OptimConfig
from gengen.training.checkpointing import by_index, by_name
from gengen.training.optim.groups import build_optimizer

Network = TypeVar("Network", bound=nn.Module)


class Companion(Generic[Network]):
    """Hold a network for an objective without making it a submodule: it is in no optimizer, EMA or state dict."""

    def __init__(self, network: Network):
        self.network = network


class SideNetwork(Companion[Network]):
    """A companion with an optimizer of its own; a checkpoint keeps both in the objective's extra state."""

    optimizer: torch.optim.Optimizer

    def start(self, c: OptimConfig, device: torch.device, hidden_maps: str = "") -> None:
        """Move to a device, and make the optimizer; hidden_maps: as in `parameter_groups`."""
        self.optimizer = build_optimizer(self.network.to(device), c, hidden_maps)

    def state(self) -> dict[str, Any]:
        return {"weights": unique_state(self.network), "optimizer": by_name(self.optimizer.state_dict())}

    def load(self, state: dict[str, Any]) -> None:
        load_weights(self.network, state["weights"], Path("checkpoint"))
        self.optimizer.load_state_dict(by_index(state["optimizer"]))
