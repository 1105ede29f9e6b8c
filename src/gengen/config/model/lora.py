"""The config of low-rank adapters of a transformer, and the names of the maps they are for."""

import math
from dataclasses import dataclass

from gengen.config.fields import choice, option, positive
from gengen.errors import UserError


def linear_maps(mlp: str) -> dict[str, list[str]]:
    """Return the modules of a block that have a weight, and the maps that each weight stacks, first to last."""
    inner = {"mlp.gate_up": ["gate", "up"]} if mlp == "swiglu" else {"mlp.up": ["up"]}
    return {"attention.qkv": ["q", "k", "v"], "attention.out": ["out"], **inner, "mlp.out": ["out"]}


@dataclass
class LoRAConfig:
    """Low-rank adaptation (Hu et al. 2022): W x + scale B A x, where A and B are trained and W, the base, is not."""

    rank: int | None = positive(None, "rows of A and columns of B for each map; null = no adapter, all is trained")
    alpha: float | None = positive(None, "the scale is alpha / rank; null = rank")
    rank_stabilized: bool = option(False, "the scale is alpha / sqrt(rank), for large ranks (Kalajdzievski 2023)")
    targets: str = option("all", "maps that are adapted, commas between them, such as q,v,mlp.out")
    dropout: float = option(0.0, "dropped share of what A reads in training", low=0, below=1)
    base_precision: str = choice("fp32", ["fp32", "bf16", "int8"], "of the base while the adapter is trained")
    base: str | None = option(None, "the checkpoint that is adapted: a run records that of its init_from")
    base_sha256: str | None = option(None, "its manifest's own hash, by which it is known again")

    @property
    def is_on(self) -> bool:
        return self.rank is not None

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        assert self.rank
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def adapted(self, mlp: str) -> dict[str, list[str]]:
        """Return the maps that are adapted, by the module that holds them. Raises UserError for an unknown target.

        A target names a map ("q"), a module ("qkv"), or either with what it is part of ("mlp.out"); or all.
        """
        names: dict[str, set[tuple[str, str]]] = {"all": set()}
        for module, maps in linear_maps(mlp).items():
            part, weight = module.split(".")
            for one in maps:
                for name in ("all", one, weight, f"{part}.{one}", module):
                    names.setdefault(name, set()).add((module, one))
        targets = [name.strip() for name in self.targets.split(",") if name.strip()]
        unknown = [name for name in targets if name not in names]
        if unknown or not targets:
            raise UserError(
                f"model.lora.targets={self.targets}: {', '.join(unknown) or 'nothing'} is no map of this model; "
                f"it has {', '.join(names)}"
            )
        chosen = set().union(*(names[name] for name in targets))
        found = {module: [one for one in maps if (module, one) in chosen] for module, maps in linear_maps(mlp).items()}
        return {module: maps for module, maps in found.items() if maps}
