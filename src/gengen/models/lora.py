"""Low-rank adapters (Hu et al. 2022) of a transformer whose own weights, the base, are frozen.

    W x + scale B A x        A (rank, in) is random at first and B (out, rank) is 0, so the network starts as its base

Where a weight stacks several maps (q, k and v; gate and up), each has an A and a B of its own. The base is fp32, bf16
or int8; A and B are fp32. A checkpoint holds what `unique_state` gives of an adapted network: all but the base.
"""

import copy
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gengen.config.model import LoRAConfig
from gengen.config.model.lora import linear_maps
from gengen.models.gpt import GPT
from gengen.models.kernels.dropout import Dropout
from gengen.models.kernels.linear import Int8Linear, Linear, quantize_maps

M = TypeVar("M", bound=nn.Module)


class LowRank(nn.Module):
    """B A x."""

    def __init__(self, inputs: int, outputs: int, rank: int):
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.uniform_(self.A, -(inputs**-0.5), inputs**-0.5)

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.A.dtype)
        return F.linear(F.linear(x, self.A), self.B)

    def product(self) -> Tensor:
        """Return B A, (out, in)."""
        return self.B @ self.A


class LoRALinear(nn.Module):
    """A frozen linear map, or several whose rows are stacked, with an adapter of those named."""

    def __init__(self, base: Linear | Int8Linear, rows: dict[str, int], adapted: list[str], c: LoRAConfig):
        super().__init__()
        assert c.rank
        self.base, self.rows, self.scale, rank = base, rows, c.scale, c.rank
        inputs = base.weight.shape[1]
        self.adapters = nn.ModuleDict({name: LowRank(inputs, rows[name], rank) for name in adapted})
        self.dropout = Dropout(c.dropout)

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        y: Tensor = self.base(x)
        read = self.dropout(x)
        parts = dict(zip(self.rows, y.split(list(self.rows.values()), dim=-1), strict=True))
        for name, adapter in self.adapters.items():
            parts[name] = parts[name] + (self.scale * adapter(read)).to(y.dtype)
        return torch.cat(list(parts.values()), dim=-1) if len(parts) > 1 else next(iter(parts.values()))

    @torch.no_grad()
    def merged(self) -> Linear:
        """Return one fp32 map that computes the same. Its base is not changed."""
        linear = self.base.dequantized() if isinstance(self.base, Int8Linear) else copy.deepcopy(self.base).float()
        parts = dict(zip(self.rows, linear.weight.split(list(self.rows.values())), strict=True))
        for name, adapter in self.adapters.items():
            assert isinstance(adapter, LowRank)
            parts[name] += self.scale * adapter.product()
        return linear


def add_adapters(model: GPT, c: LoRAConfig, trained: tuple[str, ...] = ()) -> None:
    """Freeze a network, in the precision of its base, and add adapters to the maps of its blocks, in place.

    trained: further parts of the network that stay fp32 and are trained as a whole.
    """
    trained = (*trained, *model.new_parts)
    adapted = c.adapted(model.config.mlp)
    stacked = {module: stacked_rows(model, module) for module in adapted}
    for name, child in model.named_children():
        if name not in trained:
            child.requires_grad_(False)
            if c.base_precision == "int8":
                quantize_maps(child) if name == "blocks" else None
            if c.base_precision != "fp32":
                child.bfloat16()
    for block in model.blocks:
        for module, maps in adapted.items():
            part, name = module.split(".")
            owner = block.get_submodule(part)
            setattr(owner, name, LoRALinear(getattr(owner, name), stacked[module], maps, c))
    model.base_names = frozenset(
        name
        for name, tensor in model.state_dict(keep_vars=True).items()
        if not tensor.requires_grad and name.split(".")[0] not in trained
    )


def stacked_rows(model: GPT, module: str) -> dict[str, int]:
    """Return the maps that a module's weight stacks, and how many of its rows, first to last, each has."""
    linear = model.blocks[0].get_submodule(module)
    assert isinstance(linear, nn.Linear)
    rows = getattr(linear.weight, "stacked_rows", [linear.out_features])
    return dict(zip(linear_maps(model.config.mlp)[module], rows, strict=True))


def adapted_maps(model: nn.Module) -> Iterator[tuple[nn.Module, str, LoRALinear]]:
    """Yield (owner, name, map) of each adapted map of a network."""
    for owner in list(model.modules()):
        for name, child in owner.named_children():
            if isinstance(child, LoRALinear):
                yield owner, name, child


def merge_adapters(model: GPT) -> None:
    """Make an adapted network a plain one in fp32, in place, that computes the same."""
    for owner, name, adapted in adapted_maps(model):
        setattr(owner, name, adapted.merged())
    for owner in list(model.modules()):
        for name, child in owner.named_children():
            if isinstance(child, Int8Linear):
                setattr(owner, name, child.dequantized())
    model.float().base_names = frozenset()


def without_adapters(module: M) -> M:
    """Return the base of an adapted network, as a network of its own that shares all weights: nothing is copied."""
    if isinstance(module, LoRALinear):
        return module.base  # type: ignore[return-value]
    children = {name: without_adapters(child) for name, child in module.named_children()}
    if all(child is children[name] for name, child in module.named_children()):
        return module
    twin = copy.copy(module)
    twin._modules = {**module._modules, **children}
    return twin
