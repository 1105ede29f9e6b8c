"""A network that is trained beside the model: a critic of answers, an adversary of reconstructions."""

from typing import Any

import torch
from torch import nn

from gengen.config.train import OptimConfig
from gengen.training.checkpointing import by_index, by_name
from gengen.training.optim.groups import build_optimizer


class Beside:
    """A network and its optimizer. It is no module of the objective: in no EMA, sampled by nothing, and kept in a
    checkpoint beside the optimizer."""

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
