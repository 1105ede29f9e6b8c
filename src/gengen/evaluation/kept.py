"""Networks that measure others: trained once for a data set, kept beside it, and used as they were written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file
from torch import nn

from gengen.checkpoints.files import Damaged, read_json, sha256, to_json
from gengen.checkpoints.layout import load_weights, read_tensors
from gengen.data.prepared import build_once
from gengen.io import Say, fsync, write_text

Network = TypeVar("Network", bound=nn.Module)
Facts = dict[str, Any]


def kept(
    home: Path, recipe: Facts, build: Callable[[], Network], train: Callable[[], tuple[Network, Facts]], say: Say
) -> tuple[Network, Facts]:
    """Return the network in the folder `home`, in eval mode and without gradients, and what is known of it. Where it
    is missing, not as it was written, or made by another recipe, it is trained first.

    build() -> the network with any weights; train() -> it trained, and facts besides the recipe.
    """
    described, weights = "judge.json", "judge.safetensors"

    def open_() -> tuple[Network, Facts]:
        facts, path = read_json(home / described), home / weights
        if not isinstance(facts, dict) or {key: facts.get(key) for key in recipe} != recipe:
            raise Damaged(home / described, "it describes another judge")
        if not path.is_file() or sha256(path) != facts.get("sha256"):
            raise Damaged(path, "sha256 does not match")
        network = build()
        load_weights(network, read_tensors(path), path)
        return network.eval().requires_grad_(False), facts

    def make(folder: Path, spool: Path) -> None:
        network, facts = train()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        save_file(tensors, folder / weights)
        fsync(folder / weights)
        write_text(folder / described, to_json(recipe | facts | {"sha256": sha256(folder / weights)}))

    return build_once(home, open_, make, say)
