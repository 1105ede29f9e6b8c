"""A second network of a step: a critic of answers, an adversary of reconstructions."""

from typing import Any

import torch
from torch import nn

from gengen.config.train import OptimConfig
from gengen.training.checkpointing import by_index, by_name
from gengen.training.optim.groups import build_optimizer


class SideNetwork:
    """A network with an optimizer of its own. It is not a submodule of the objective: it is in no EMA and is never
    sampled, and a checkpoint keeps it in `extra_state`.
    """

    def __init__(self, network: nn.Module):
        self.network = network

    def start(self, c: OptimConfig, device: torch.device, hidden_maps: str = "") -> None:
        """Move to a device, and make the optimizer; hidden_maps: as in `parameter_groups`."""
        self.optimizer = build_optimizer(self.network.to(device), c, hidden_maps)

    def state(self) -> dict[str, Any]:
        return {"weights": self.network.state_dict(), "optimizer": by_name(self.optimizer.state_dict())}

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(by_index(state["optimizer"]))
