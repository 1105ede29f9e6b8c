"""Which network an evaluation calls: the compiled one on CUDA, the plain one on a CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gengen.config.compose import compose_train, read_command_line
from gengen.training.build import build_objective
from gengen.training.objective import Batch, Objective

TEXT = ["model=gpt", "model.size=nano", "model.layers=1", "model.width=16", "model.vocab_size=16", "model.context=8"]
TOKENS = torch.arange(16).view(2, 8)


class Twin(nn.Module):
    """Stands for the compiled network, and counts its calls."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, *args: Any, **more: Any) -> Tensor:
        self.calls += 1
        return self.model(*args, **more)

    def features(self, *args: Any) -> Tensor:
        self.calls += 1
        return self.model.features(*args)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


def text(stage: list[str]) -> Objective:
    return build_objective(compose_train(read_command_line([*TEXT, *stage])), None)


def pretraining() -> tuple[Objective, Batch]:
    return text(["data=storybook"]), {"tokens": TOKENS, "labels": TOKENS}


def preferences() -> tuple[Objective, Batch]:
    pairs = TOKENS.view(1, 2, 8)
    batch = {"tokens": pairs, "mask": torch.ones(1, 2, 7)}
    return text(["stage=dpo", "init_from=base", "data=preferences", "stage.loss=simpo", "stage.reduction=mean"]), batch


@pytest.mark.parametrize("make", [pretraining, preferences])
@pytest.mark.parametrize(("device", "calls"), [("cpu", 0), ("cuda:0", 1)])
def test_an_evaluation_calls_the_compiled_network_on_cuda_alone(
    make: Callable[[], tuple[Objective, Batch]], device: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, batch = make()
    with torch.no_grad():
        plain = objective.evaluation_sums(batch)
        twin = Twin(objective.model)
        monkeypatch.setattr(objective, "_network", (twin,))
        monkeypatch.setattr(objective, "_device", torch.device(device))
        assert torch.equal(objective.evaluation_sums(batch), plain)
    assert twin.calls == calls
