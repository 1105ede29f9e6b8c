"""What a checkpoint is: tensors in safetensors, the rest in JSON, a manifest that lists and hashes every file."""

import hashlib
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gengen.checkpoints.files import Damaged, fsync, read_json, sha256, to_json, write_text
from gengen.config.errors import UserError
from gengen.config.redact import redact

FORMAT = 1


@dataclass
class Checkpoint:
    """One step of a run. `optimizer` may hold tensors at any depth; `config`, `state` and `facts` are JSON."""

    step: int
    config: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    ema: dict[str, Tensor] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """What the manifest records beside the files: versions, clocks, data fingerprint."""


def pack(tree: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """The tree with each tensor moved into `tensors` and {"tensor": its name} in its place."""
    if isinstance(tree, Tensor):
        tensors[name] = tree.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(tree, dict):
        return {str(key): pack(value, tensors, f"{name}.{key}" if name else str(key)) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [pack(value, tensors, f"{name}.{i}") for i, value in enumerate(tree)]
    return tree


def unpack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `pack`; a tuple comes back as a list, a number used as a key as text."""
    if isinstance(tree, dict):
        if set(tree) == {"tensor"}:
            return tensors[tree["tensor"]]
        return {key: unpack(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [unpack(value, tensors) for value in tree]
    return tree


def write(directory: Path, checkpoint: Checkpoint, after: Callable[[str], object] = lambda file: None) -> None:
    """Write every file of a checkpoint into an empty directory, each flushed, the manifest last.

    `after` is called with each file's name once it is on the disk.
    """
    moments: dict[str, Tensor] = {}
    optimizer = pack(checkpoint.optimizer, moments)
    tensors = {"model": checkpoint.model, "ema": checkpoint.ema, "optimizer": moments}
    texts = {
        "config.json": redact(to_json(checkpoint.config)),
        "optimizer.json": to_json(optimizer),
        "state.json": to_json(checkpoint.state),
        "tokenizer.json": checkpoint.tokenizer,
    }
    files: dict[str, dict[str, Any]] = {}

    def done(path: Path) -> None:
        fsync(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        after(path.name)

    for name, content in tensors.items():
        if content is not None:
            path = directory / f"{name}.safetensors"
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in content.items()}, path)
            done(path)
    for name, text in texts.items():
        if text is not None:
            (directory / name).write_text(text, encoding="utf8")
            done(directory / name)
    manifest = {"format": FORMAT, "step": checkpoint.step, "files": files} | checkpoint.facts
    write_text(directory / "manifest.json", to_json(manifest | {"sha256": digest(manifest)}))
    after("manifest.json")


def digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(to_json(manifest).encode()).hexdigest()


def verify(directory: Path) -> dict[str, Any]:
    """Check every file against the manifest and return it. Raises Damaged, naming the first file that is not as written."""
    path = directory / "manifest.json"
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise Damaged(path, "not a manifest")
    if isinstance(version := manifest.get("format"), int) and version > FORMAT:
        raise UserError(f"{directory} has format {version}; this gengen reads up to {FORMAT}: a newer gengen wrote it")
    claimed = manifest.pop("sha256", None)
    if claimed != digest(manifest) or path.read_text(encoding="utf8") != to_json(manifest | {"sha256": claimed}):
        raise Damaged(path, "its own sha256 does not match")
    for name, expected in manifest["files"].items():
        file = directory / name
        if file.name != name or not file.is_file():
            raise Damaged(file, "missing")
        if (size := file.stat().st_size) != expected["bytes"]:
            raise Damaged(file, f"{size:,} bytes, written were {expected['bytes']:,}")
        if sha256(file) != expected["sha256"]:
            raise Damaged(file, "sha256 does not match")
    return manifest


def read_tensors(path: Path, but: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors of a file, without those named in `but`. Raises Damaged."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name not in but}  # noqa: SIM118
    except (SafetensorError, FileNotFoundError, OSError) as error:
        raise Damaged(path, str(error)) from None


def read(directory: Path) -> Checkpoint:
    """Verify a checkpoint and load all of it, on the CPU."""
    manifest = verify(directory)
    moments, optimizer = read_tensors(directory / "optimizer.safetensors"), read_json(directory / "optimizer.json")
    return Checkpoint(
        step=manifest["step"],
        config=read_json(directory / "config.json"),
        model=read_tensors(directory / "model.safetensors"),
        optimizer=unpack(optimizer, moments),
        state=read_json(directory / "state.json"),
        tokenizer=read_tokenizer(directory),
        ema=read_tensors(directory / "ema.safetensors") if "ema.safetensors" in manifest["files"] else None,
        facts={key: value for key, value in manifest.items() if key not in ("format", "step", "files")},
    )


def read_tokenizer(directory: Path) -> str | None:
    path = directory / "tokenizer.json"
    return path.read_text(encoding="utf8") if path.exists() else None


def read_weights(directory: Path, weights: str | None = None) -> dict[str, Tensor]:
    """The weights to sample from: `ema` or `raw`, or by default EMA where the checkpoint has it. What has no average (of a GAN, the
    discriminator) is as trained."""
    has_ema = (directory / "ema.safetensors").exists()
    if weights == "ema" and not has_ema:
        raise UserError(f"weights=ema: {directory} has no EMA weights; weights=raw takes the trained ones")
    averaged = read_tensors(directory / "ema.safetensors") if has_ema and weights != "raw" else {}
    return averaged | read_tensors(directory / "model.safetensors", but=averaged)


def copy_weights(checkpoint: Path, folder: Path) -> None:
    """A checkpoint in a new folder with what sampling needs of it: the weights it is sampled with, its config and its tokenizer."""
    shutil.rmtree(folder, ignore_errors=True)  # begun by a command that was killed
    folder.mkdir()
    config, tokenizer, manifest = read_json(checkpoint / "config.json"), read_tokenizer(checkpoint), verify(checkpoint)
    facts = {"data": manifest["data"]}
    write(folder, Checkpoint(manifest["step"], config, read_weights(checkpoint), tokenizer=tokenizer, facts=facts))
    fsync(folder)


def load_weights(model: torch.nn.Module, weights: dict[str, Tensor], where: Path) -> None:
    """Put weights into a model. Names, shapes and dtypes must be the model's own; a tied weight is stored once."""
    own = unique_state(model)
    if problems := [
        *(f"{name} is missing" for name in own.keys() - weights.keys()),
        *(f"{name} is not a weight of this model" for name in weights.keys() - own.keys()),
        *(
            f"{n} has shape {tuple(weights[n].shape)}, the model's is {tuple(own[n].shape)}"
            for n in own.keys() & weights.keys()
            if own[n].shape != weights[n].shape
        ),
    ]:
        raise UserError(f"{where} does not fit the model of its config: " + "; ".join(sorted(problems)[:3]))
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


def unique_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state dict with each shared tensor once, under its first name."""
    seen: set[int] = set()
    unique = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor
    return unique
