"""From a run or checkpoint directory to something that generates."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from gengen.checkpoints import store
from gengen.checkpoints.layout import load_weights, meta_model, read_weights, verify
from gengen.checkpoints.migrate import read_config
from gengen.checkpoints.run import find
from gengen.config.model import ModelConfig
from gengen.config.schema import build
from gengen.errors import UserError
from gengen.generation.base import Generator, GeneratorClass
from gengen.hardware import pick_device
from gengen.io import Say
from gengen.registry import family_and_stage

G = TypeVar("G", bound=Generator)


def silent(line: str) -> None:
    """Show nothing."""


def find_checkpoint(where: str, runs_dir: Path, which: str, say: Say = silent) -> Path:
    """Return the verified checkpoint directory that a run's name or path, or a checkpoint's own path, means."""
    path = find(where, runs_dir)
    if (path / "manifest.json").exists():
        verify(path)
        return path
    return store.choose(path / "checkpoints", which, say)


def start_from(model: nn.Module, checkpoint: Path) -> None:
    """Put the weights that another run is sampled with into a model, which may adopt them: for a stage with a head or
    tokens of its own.
    """
    weights = read_weights(checkpoint)
    if adapt_weights := getattr(model, "adapt_weights", None):
        weights = adapt_weights(weights, read_config(checkpoint)["model"]["vocab_size"])
    load_weights(model, weights, checkpoint)


def load_generator(
    where: str,
    runs_dir: Path = Path("runs"),
    checkpoint: str = "latest",
    weights: str | None = None,
    device: str = "auto",
    say: Say = silent,
) -> Generator:
    """Return the generator of a run or checkpoint, whose every byte is verified first."""
    return generator_of(find_checkpoint(where, runs_dir, checkpoint, say), weights, device)


def generator_of(directory: Path, weights: str | None = None, device: str = "auto") -> Generator:
    """Build the model of a verified checkpoint by its registered name, load its weights, and wrap it in the family's
    generator. That the weights are the model's is found out before the model takes memory."""
    # 1. the family and the stage
    config = read_config(directory)
    entry, stage = family_and_stage(config, directory)
    # 2. whether its weights fit the model that its config describes
    network: Callable[[ModelConfig], nn.Module] = entry.load_for("model", stage)
    model_config: ModelConfig = build(ModelConfig, config["model"])
    stored = read_weights(directory, weights)
    load_weights(meta_model(network, model_config, len(stored)), stored, directory)
    # 3. the model, on its device, ready to be used
    model = network(model_config)
    load_weights(model, stored, directory)
    model.to(torch.device(pick_device(device))).eval()
    # 4. what the family draws with
    family: GeneratorClass[nn.Module] = entry.load_for("generator", stage)
    return family.from_checkpoint(model, directory)


def load_as(kind: type[G], where: str, runs_dir: Path = Path("runs"), *, device: str = "auto") -> G:
    """Load a run that must be of one kind, such as the autoencoder of a latent diffusion model. Raises UserError where
    it is another."""
    generator = load_generator(where, runs_dir, device=device)
    if not isinstance(generator, kind):
        raise UserError(f"{where} is loaded as {type(generator).__name__}; {kind.__name__} is needed here")
    return generator
