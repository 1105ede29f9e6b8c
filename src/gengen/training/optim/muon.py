"""Muon for hidden matrices and AdamW for all else, as one optimizer with one count of steps."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from gengen.training.optim.averages import are_grouped, move_averages
from gengen.training.optim.owners import Owners
from gengen.training.sharding import local

Groups = Iterable[dict[str, Any]]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalized(x: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return nearly U V^T for matrices U S V^T (..., m, n): Muon's quintic Newton-Schulz (Jordan et al. 2024).

    Singular values end between about 0.7 and 1.2, which trains as well as 1 and is cheap. bf16 is enough for each
    product; where it is emulated, fp32 is many times as fast.
    """
    a, b, c = COEFFICIENTS
    shape, tall = x.shape, x.shape[-2] > x.shape[-1]
    x = x.reshape(-1, *shape[-2:])
    x = x.mT if tall else x  # (B, m, n), m <= n
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(steps):  # x <- (a + b G + c G^2) x with G = x x^T; a product takes the sum along
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(shape)


class Muon(torch.optim.Optimizer):
    """Groups with muon=True hold matrices, the others what fused AdamW (Loshchilov & Hutter 2019) updates.

    A convolution's weight (out, in, k, k) is taken as the matrix (out, in * k * k) that it applies to each patch.
    A matrix (m, n) moves by lr * sqrt(max(1, m / n)) along the orthogonalised Nesterov momentum of its gradient, after
    decaying by lr * weight_decay. A matrix that stacks several maps (queries, keys and values; gate and up) names the
    rows of each in `stacked_rows`, and each is orthogonalised by itself; all of one shape are done in one batch. Of a
    sharded matrix that is done by its owner (owners.py), and all else in rows where they lie. Rates are set in each
    group. `found_inf`, a tensor that is set from outside, makes a step that changes nothing where it is 1, as in fused
    AdamW.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        groups: Groups,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        dtype: torch.dtype = torch.bfloat16,
    ):
        self.dtype = dtype  # of the matrix products in `orthogonalized`
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": 0.0, "muon": False}
        super().__init__(groups, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Put AdamW's counts of steps beside their weights, where its fused kernel wants them; loading ends here.

        Torch moves them for its own fused optimizers alone.
        """
        super().__setstate__(state)
        for parameter, moments in self.state.items():
            if "step" in moments:
                moments["step"] = moments["step"].to(parameter.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            (self.muon if group["muon"] else self.adamw)(with_gradient, group)

    def adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {"step": torch.zeros((), device=p.device)} | {
                    key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")
                }
        states = [self.state[p] for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        first, second, steps = ([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        beta1, beta2 = group["betas"]
        adamw(
            parameters, gradients, first, second, [], steps, fused=True, found_inf=self.found_inf,
            amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"],
            eps=group["eps"], maximize=False,
        )  # fmt: skip

    def muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        kept = 1.0 if self.found_inf is None else 1.0 - self.found_inf
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {"momentum": torch.zeros_like(p)}
        directions = self.directions(parameters, group["momentum"], kept)
        if parameters:
            torch._foreach_mul_([local(p) for p in parameters], 1 - group["lr"] * group["weight_decay"] * kept)
        rows = [getattr(p, "stacked_rows", [len(p)]) for p in parameters]
        sharded = [p for p in parameters if isinstance(p, DTensor)]
        if not sharded:
            self.move(list(zip(parameters, directions, rows, strict=True)), group, kept)
            return
        owners = Owners(sharded)
        wholes = owners.gathered(directions)
        moves = {i: torch.zeros_like(direction) for i, direction in wholes.items()}
        self.move([(moves[i], wholes[i], rows[i]) for i in wholes], group, kept)
        for p, move in zip(sharded, owners.scattered(moves, directions), strict=True):
            local(p).add_(move)

    def directions(self, parameters: list[Tensor], momentum: float, kept: float | Tensor) -> list[Tensor]:
        """Take the gradients into their averages; return the Nesterov momentum of each."""
        gradients = [torch.nan_to_num(local(p.grad), 0.0, 0.0, 0.0) * kept for p in parameters if p.grad is not None]
        averages = [local(self.state[p]["momentum"]) for p in parameters]
        move_averages(averages, gradients, (1 - momentum) * kept, are_grouped(averages))
        return list(torch._foreach_lerp(gradients, averages, momentum)) if gradients else []

    def move(
        self, weights: list[tuple[Tensor, Tensor, list[int]]], group: dict[str, Any], kept: float | Tensor
    ) -> None:
        """Move whole weights; each comes with its direction and the rows of its parts."""
        by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for weight, direction, rows in weights:
            for part, update in zip(weight.split(rows), direction.split(rows), strict=True):
                by_shape[(len(part), part[0].numel())].append((part, update.flatten(1)))
        for (m, n), pairs in by_shape.items():
            updates = orthogonalized(torch.stack([update for _, update in pairs]), dtype=self.dtype)
            rate = group["lr"] * max(1.0, m / n) ** 0.5 * kept
            parts = [part for part, _ in pairs]
            moves = [update.view_as(part) for part, update in zip(parts, updates.to(parts[0].dtype), strict=True)]
            torch._foreach_sub_(parts, torch._foreach_mul(moves, rate))
