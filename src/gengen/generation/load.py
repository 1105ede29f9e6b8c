"""From a run or checkpoint directory to something that generates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gengen.checkpoints import store
from gengen.checkpoints.layout import identity, load_weights, meta_model, read_weights, unique_state, verify
from gengen.checkpoints.migrate import read_config
from gengen.checkpoints.run import find
from gengen.config.model import GPTConfig, LoRAConfig, ModelConfig
from gengen.config.schema import build
from gengen.errors import UserError
from gengen.generation.base import Generator, GeneratorClass
from gengen.hardware import pick_device
from gengen.io import Say
from gengen.models.gpt import GPT
from gengen.models.lora import add_adapters, merge_adapters
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
    weights = whole_weights(checkpoint)
    if adapt_weights := getattr(model, "adapt_weights", None):
        weights = adapt_weights(weights, read_config(checkpoint)["model"]["vocab_size"])
    load_weights(model, weights, checkpoint)


def whole_weights(checkpoint: Path, weights: str | None = None) -> dict[str, Tensor]:
    """Return the weights that a checkpoint is sampled with; of an adapter, its base's with the adapter merged."""
    if not lora_of(config := read_config(checkpoint)).is_on:
        return read_weights(checkpoint, weights)
    model = adapted_model(config, checkpoint, weights)
    merge_adapters(model)
    return {name: tensor.detach() for name, tensor in unique_state(model).items()}


def whole_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config that goes with `whole_weights`: without an adapter."""
    return config | {"model": {name: value for name, value in config["model"].items() if name != "lora"}}


def lora_of(config: dict[str, Any]) -> LoRAConfig:
    """Return what a run's config says of an adapter: none where it is no config, as building the model will say."""
    model = config.get("model")
    stated = model.get("lora") if isinstance(model, dict) else None
    found: LoRAConfig = build(LoRAConfig, stated if isinstance(stated, dict) else {}, "model.lora.")
    return found


def adapted_model(config: dict[str, Any], checkpoint: Path, weights: str | None = None) -> GPT:
    """Build the network of a checkpoint that holds an adapter, with its base, wherever that lies."""
    entry, stage = family_and_stage(config, checkpoint)
    model_config = build(ModelConfig, config["model"])
    assert isinstance(model_config, GPTConfig)
    base = base_checkpoint(model_config.lora, checkpoint.absolute().parents[2])
    check_same_shape(model_config, base)
    model: GPT = entry.load_for("model", stage)(model_config)
    adapt(model, base)
    load_weights(model, read_weights(checkpoint, weights), checkpoint)
    return model


def adapt(model: GPT, base: Path) -> None:
    """Give a model the weights of its base, and the adapters that its config asks for.

    Where the base knows fewer tokens, what embeds and predicts them is trained as a whole: nothing else could tell the
    new ones apart.
    """
    c = model.config.lora
    start_from(model, base)
    known = read_config(base)["model"]["vocab_size"]
    is_grown = known < model.vocab_size
    if is_grown and c.base_precision != "fp32":
        raise UserError(
            f"model.lora.base_precision={c.base_precision}: {model.vocab_size - known} tokens are new to {base}, and "
            "are trained in fp32; take model.lora.base_precision=fp32, or start from a run that knows them"
        )
    add_adapters(model, c, trained=("embedding", "head") if is_grown else ())


def base_checkpoint(c: LoRAConfig, runs_dir: Path) -> Path:
    """Return the verified checkpoint that an adapter is for: where it was, or in a folder of runs that was moved as a
    whole. Raises UserError where it is gone or not the same."""
    stated = Path(str(c.base))
    places = [stated, runs_dir.joinpath(*stated.parts[-3:])]
    if (base := next((path for path in places if (path / "manifest.json").is_file()), None)) is None:
        raise UserError(f"{stated}, the base of this adapter, is not there: put it back, or beside the adapter's run")
    if (found := identity(base)) != c.base_sha256:
        raise UserError(
            f"{base} is not the base that this adapter was trained on: its hash is {found[:12]}, not "
            f"{str(c.base_sha256)[:12]}"
        )
    return base


def check_same_shape(c: GPTConfig, base: Path) -> None:
    """Raise UserError unless a model has the dimensions of its base; so nothing takes more memory than that."""
    other = build(ModelConfig, read_config(base)["model"])
    for name in ("layers", "width", "heads", "kv_heads", "head_size", "ff", "context"):
        if (own := getattr(c.resolved(), name)) != (theirs := getattr(other.resolved(), name, None)):
            raise UserError(f"model.{name}={own} is not that of the base {base}, {theirs}")


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


def generator_of(directory: Path, weights: str | None = None, device: str = "auto", merge: bool = True) -> Generator:
    """Load the model of a verified checkpoint, and wrap it in what its family draws with. merge: see `load_model`."""
    model = load_model(directory, weights, merge).to(torch.device(pick_device(device))).eval()
    entry, stage = family_and_stage(read_config(directory), directory)
    family: GeneratorClass[nn.Module] = entry.load_for("generator", stage)
    return family.from_checkpoint(model, directory)


def load_model(directory: Path, weights: str | None = None, merge: bool = True) -> nn.Module:
    """Build the model of a verified checkpoint by its registered name, and load its weights.

    That they are the model's is found out before it takes memory. merge: make an adapter part of its base's weights,
    which costs nothing when it is used; else the two stay side by side.
    """
    config = read_config(directory)
    if lora_of(config).is_on:
        adapted = adapted_model(config, directory, weights)
        if merge:
            merge_adapters(adapted)
        return adapted
    entry, stage = family_and_stage(config, directory)
    network: Callable[[ModelConfig], nn.Module] = entry.load_for("model", stage)
    model_config: ModelConfig = build(ModelConfig, config["model"])
    stored = read_weights(directory, weights)
    load_weights(meta_model(network, model_config, len(stored)), stored, directory)
    model = network(model_config)
    load_weights(model, stored, directory)
    return model


def load_as(kind: type[G], where: str, runs_dir: Path = Path("runs"), *, device: str = "auto") -> G:
    """Load a run that must be of one kind, such as the autoencoder of a latent diffusion model. Raises UserError where
    it is another."""
    generator = load_generator(where, runs_dir, device=device)
    if not isinstance(generator, kind):
        raise UserError(f"{where} is loaded as {type(generator).__name__}; {kind.__name__} is needed here")
    return generator
