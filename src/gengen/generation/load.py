"""From a run or checkpoint directory to something that generates."""

from pathlib import Path
from typing import Any

import torch

from gengen.checkpoints import store
from gengen.checkpoints.layout import blueprint, load_weights, read_weights, verify
from gengen.checkpoints.migrate import read_config
from gengen.checkpoints.run import find
from gengen.config.model import ModelConfig
from gengen.config.schema import build
from gengen.errors import UserError
from gengen.hardware import pick_device
from gengen.io import Say
from gengen.registry import MODELS


def find_checkpoint(where: str, runs_dir: Path, which: str, say: Say = lambda line: None) -> Path:
    """The verified checkpoint directory that a run's name or path, or a checkpoint's own path, means."""
    path = find(where, runs_dir)
    if (path / "manifest.json").exists():
        verify(path)
        return path
    return store.choose(path / "checkpoints", which, say)


def start_from(model: torch.nn.Module, checkpoint: Path) -> None:
    """Put the weights that another run is sampled with into a model, which may adopt them: for a stage with a head or
    tokens of its own.
    """
    weights = read_weights(checkpoint)
    if adopted := getattr(model, "adopted", None):
        weights = adopted(weights, read_config(checkpoint)["model"]["vocab_size"])
    load_weights(model, weights, checkpoint)


def load_generator(
    where: str,
    runs_dir: Path = Path("runs"),
    checkpoint: str = "latest",
    weights: str | None = None,
    device: str = "auto",
    say: Say = lambda line: None,
) -> Any:
    """Verify a checkpoint, build its model by its registered name, load its weights, and wrap it in the family's
    generator. That the weights are the model's is found out before the model takes memory."""
    directory = find_checkpoint(where, runs_dir, checkpoint, say)
    config = read_config(directory)
    try:
        entry, stage = MODELS[config["model"]["name"]], config.get("stage", {}).get("name", "")
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{directory / 'config.json'} names no model") from None
    network, told, stored = (
        entry.load_for("model", stage),
        build(ModelConfig, config["model"]),
        read_weights(directory, weights),
    )
    load_weights(blueprint(network, told, len(stored)), stored, directory)
    load_weights(model := network(told), stored, directory)
    model.to(torch.device(pick_device(device))).eval()
    return entry.load_for("generator", stage).from_checkpoint(model, directory)
