"""Weights in rows, a share on each rank (FSDP2: Zhao et al. 2023; torch's `fully_shard`), and whole again.

A rank holds its rows of every weight, moment and average. A unit's weights are whole on all ranks only while the unit
is computed; gradients are averaged and cut as soon as the unit's are there, so that those of several micro-batches are
added up in rows, too. Checkpoints hold whole tensors, the same as without sharding; rank 0 writes them, or each rank
some of them.
"""

import copy
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from gengen.checkpoints.layout import unique_state
from gengen.errors import UserError
from gengen.training.optim.owners import dealt

Batch = TypeVar("Batch")
Name = TypeVar("Name", bound=Hashable)


class Units(Protocol):
    """What a model says of itself to be sharded."""

    def units(self) -> Sequence[nn.Module]:
        """Return the parts whose weights are made whole together, in the order in which they are computed."""


def local(tensor: Tensor) -> Tensor:
    """Return this rank's rows of a tensor: the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor; of a sharded one, every rank must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, own: Tensor) -> Tensor:
    """Return a whole tensor as `own` is held: if that is sharded, this rank's rows, without a word to the others."""
    if not isinstance(own, DTensor) or tensor.shape != own.shape:
        return tensor
    rows = distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
    return rows.clone()  # else it keeps the whole in memory


class Sharding:
    """A model that has been sharded in place, and what makes it whole again."""

    def __init__(self, model: nn.Module, mesh: DeviceMesh, compiled: bool, saves_shares: bool = False):
        """compiled: whether units are compiled, in place: a twin would not make its weights whole. saves_shares:
        whether each rank saves some of the tensors, instead of rank 0 all."""
        self.saves_shares = saves_shares
        self.model, self.mesh = model, mesh
        self.keeps = mesh.get_rank() == 0  # what is gathered
        self.skeleton = copied(model, {name: torch.empty_like(p, device="meta") for name, p in parameters(model)})
        rows = {name: stacked for name, p in parameters(model) if (stacked := getattr(p, "stacked_rows", None))}
        for unit in cast(Units, model).units():
            if compiled:
                unit.forward = torch.compile(unit.forward)  # within what makes it whole, which is not compiled
            fully_shard(unit, mesh=mesh)
        fully_shard(model, mesh=mesh)  # what is in no unit
        for name, p in parameters(model):
            if name in rows:
                setattr(p, "stacked_rows", rows[name])  # for Muon; the sharded weight is another object

    def gathered(self, tensors: Mapping[Name, Tensor], device: torch.device | str = "cpu") -> dict[Name, Tensor]:
        """Return whole tensors on rank 0, and nothing on the others; all ranks must ask.

        It goes one by one: only rank 0 ever holds more than one that is whole.
        """
        kept = {}
        for name, tensor in tensors.items():
            complete = whole(tensor.detach())
            if self.keeps:
                kept[name] = complete.to(device)
        return kept

    def to_save(self, tensors: Mapping[Name, Tensor]) -> dict[Name, Tensor]:
        """Return whole tensors as this rank is to save them; all ranks must ask.

        Where each saves a share of them, those of others are on the meta device.
        """
        if not self.saves_shares:
            return self.gathered(tensors)
        names = sorted(tensors, key=str)  # the same order after a resume, which reads them in another
        shares = dealt([tensors[name].numel() for name in names], self.mesh.size())
        mine, kept = {names[i] for i in shares[self.mesh.get_rank()]}, {}
        for name, tensor in tensors.items():
            complete = whole(tensor.detach())
            kept[name] = complete.to("cpu" if name in mine else "meta")
        return kept

    def whole_model(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return, on rank 0, a whole model with these weights, to be evaluated; all ranks must ask."""
        device = next(iter(weights.values())).device
        gathered = self.gathered(weights, device)
        return copied(self.skeleton, gathered).eval() if self.keeps else self.model

    def reshard(self) -> None:
        """Let go of what the model keeps whole after its forward pass, where no backward pass follows."""
        cast(FSDPModule, self.model).reshard()

    def side_by_side(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
        """Yield each batch and True; as long as other ranks have more, the last one again, and False.

        All ranks call a sharded model equally often, or wait for each other for ever. Raises UserError where some
        rank has no batch at all.
        """
        last: Batch | None = None
        rest = iter(batches)
        while True:
            batch = next(rest, None)
            last = last if batch is None else batch
            ranks = torch.tensor([batch is not None, last is None], dtype=torch.long, device=self.mesh.device_type)
            dist.all_reduce(ranks)
            having, lacking = ranks.tolist()
            if not having:
                return
            if last is None or lacking:
                raise UserError(
                    f"trainer.strategy=fsdp: {lacking} of {self.mesh.size()} ranks have nothing to evaluate; "
                    "hold out more (data.validation), or take fewer devices"
                )
            yield last, batch is not None


def parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the names and parameters of a model, each tied one once."""
    return list(model.named_parameters())


def copied(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a model that holds these tensors, by name, in place of its own; they are not copied."""
    known = {}
    for name, own in unique_state(model).items():
        if name in tensors:
            is_parameter = isinstance(own, nn.Parameter)
            known[id(own)] = nn.Parameter(tensors[name], own.requires_grad) if is_parameter else tensors[name]
    return copy.deepcopy(model, known)
