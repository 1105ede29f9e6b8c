"""What a checkpoint is: tensors in safetensors, the rest in JSON, a manifest that lists and hashes every file."""

import hashlib
import os
import shutil
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from gengen.checkpoints.files import Damaged, read_json, read_text, sha256, to_json
from gengen.checkpoints.migrate import FORMAT, migrated, read_config
from gengen.config.redact import redact
from gengen.errors import UserError
from gengen.io import Json, fsync, write_text

Config = TypeVar("Config")
After = Callable[[str], object]
"""Is told the name of each file that is on the disk."""
MAX_HEADER, MAX_TENSORS = 16 * 2**20, 50_000  # bytes that describe the tensors of one file, and their number
MAX_TOKENIZER = 32 * 2**20  # bytes
MAX_NUMBER = 2**27  # of a model's config
HASHING = 2  # threads that hash what is written


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

    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(map(nbytes, (self.model, self.ema, self.optimizer)))


def nbytes(tree: object) -> int:
    """Bytes of all tensors in a tree; of a sharded one, those of the whole."""
    if isinstance(tree, Tensor):
        return tree.numel() * tree.element_size()
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return sum(map(nbytes, parts))


def pack(tree: object, tensors: dict[str, Tensor], name: str = "") -> Json:
    """The tree with each tensor moved into `tensors` and {"tensor": its name} in its place."""
    if isinstance(tree, Tensor):
        tensors[name] = tree.detach()
        return {"tensor": name}
    if isinstance(tree, dict):
        return {str(key): pack(value, tensors, f"{name}.{key}" if name else str(key)) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [pack(value, tensors, f"{name}.{i}") for i, value in enumerate(tree)]
    return tree


def unpack(tree: Json, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `pack`; a tuple comes back as a list, a number used as a key as text."""
    if isinstance(tree, dict):
        if set(tree) == {"tensor"}:
            return tensors[tree["tensor"]]
        return {key: unpack(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [unpack(value, tensors) for value in tree]
    return tree


def write(directory: Path, checkpoint: Checkpoint, after: After = lambda file: None) -> None:
    """Write every file of a checkpoint into an empty directory, each flushed, the manifest last.

    `after` is called with each file's name once it is on the disk.
    """
    tensors = {f"{part}.safetensors": held for part, held in tensors_of(checkpoint).items()}
    files = write_files(directory, tensors, texts_of(checkpoint), after)
    write_manifest(directory, checkpoint, files, after)


def tensors_of(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each part that has any, by name; the largest part comes first."""
    moments: dict[str, Tensor] = {}
    pack(checkpoint.optimizer, moments)
    parts = {"optimizer": moments, "model": checkpoint.model, "ema": checkpoint.ema}
    return {part: tensors for part, tensors in parts.items() if tensors is not None}


def texts_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the files that are not tensors, by name."""
    texts = {
        "config.json": redact(to_json(checkpoint.config)),
        "optimizer.json": to_json(pack(checkpoint.optimizer, {})),
        "state.json": to_json(checkpoint.state),
        "tokenizer.json": checkpoint.tokenizer,
    }
    return {name: text for name, text in texts.items() if text is not None}


def write_files(
    directory: Path, tensors: dict[str, dict[str, Tensor]], texts: dict[str, str], after: After
) -> dict[str, Json]:
    """Write and flush files, and return what the manifest says of each: its bytes and their sha256.

    A file is hashed while the next ones are written: hashlib lets go of the interpreter's lock.
    """
    hashes: dict[Path, Future[str]] = {}
    with ThreadPoolExecutor(HASHING) as threads:

        def done(path: Path) -> None:
            fsync(path)
            hashes[path] = threads.submit(sha256, path)
            after(path.name)

        for name, content in tensors.items():
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in content.items()}, directory / name)
            done(directory / name)
        for name, text in texts.items():
            (directory / name).write_text(text, encoding="utf8")
            done(directory / name)
    return {path.name: {"bytes": path.stat().st_size, "sha256": found.result()} for path, found in hashes.items()}


def write_manifest(directory: Path, checkpoint: Checkpoint, files: dict[str, Json], after: After) -> None:
    """Write what makes a folder of files a checkpoint."""
    manifest = {"format": FORMAT, "step": checkpoint.step, "files": files} | checkpoint.facts
    write_text(directory / "manifest.json", to_json(manifest | {"sha256": digest(manifest)}))
    after("manifest.json")


def digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(to_json(manifest).encode()).hexdigest()


def verify(directory: Path, hashed: bool = True) -> dict[str, Any]:
    """Check every file against the manifest, and return that as today's format has it, but for its `format`.

    hashed: whether to read all of each file for that, or to look at its size alone. Raises Damaged, naming the first
    file that is not as written.
    """
    path = directory / "manifest.json"
    manifest = read_json(path)
    if (
        not isinstance(manifest, dict)
        or not isinstance(files := manifest.get("files"), dict)
        or type(manifest.get("step")) is not int
    ):
        raise Damaged(path, "not a manifest")
    if isinstance(version := manifest.get("format"), int) and version > FORMAT:
        raise UserError(f"{directory} has format {version}; this gengen reads up to {FORMAT}: a newer gengen wrote it")
    claimed = manifest.pop("sha256", None)
    try:
        sound = claimed == digest(manifest) and path.read_text(encoding="utf8") == to_json(
            manifest | {"sha256": claimed}
        )
    except ValueError:  # numbers and characters that we never write
        sound = False
    if not sound:
        raise Damaged(path, "its own sha256 does not match")
    for name, expected in files.items():
        file = directory / name
        if file.name != name or not os.path.isfile(file):
            raise Damaged(file, "missing")
        if not isinstance(expected, dict) or file.stat().st_size != expected.get("bytes"):
            raise Damaged(file, f"{file.stat().st_size:,} bytes, which is not what was written")
        if hashed and sha256(file) != expected.get("sha256"):
            raise Damaged(file, "sha256 does not match")
    return migrated(manifest, "manifest", manifest.get("format"))


def read_tensors(path: Path, but: Collection[str] = ()) -> dict[str, Tensor]:
    """Return the tensors of a file, without those named in `but`: views of it, of which nothing is read yet.

    In place of one file there may be several and an index, see shards.py. Raises Damaged.
    """
    if not path.exists() and (index := index_beside(path)).exists():
        files = {path.with_name(Path(str(name)).name) for name in weight_map(index).values()}
        parts = [read_tensors(file, but) for file in sorted(files)]
        return {name: tensor for part in parts for name, tensor in part.items()}
    try:
        with path.open("rb") as raw:
            if (size := int.from_bytes(raw.read(8), "little")) > MAX_HEADER:
                raise Damaged(path, f"its header has {size:,} bytes; at most {MAX_HEADER:,} are allowed")
        with safe_open(path, "pt") as file:
            if len(names := file.keys()) > MAX_TENSORS:
                raise Damaged(path, f"{len(names):,} tensors; at most {MAX_TENSORS:,} are allowed")
            return {name: file.get_tensor(name) for name in names if name not in but}
    except (SafetensorError, OSError) as error:
        raise Damaged(path, str(error)) from None


def index_beside(path: Path) -> Path:
    """Return where the index lies, if the tensors of this file are in several ones instead."""
    return path.with_name(f"{path.name}.index.json")


def weight_map(index: Path) -> dict[str, Json]:
    """Return in which file each tensor lies. Raises Damaged."""
    tree = read_json(index)
    if not isinstance(tree, dict) or not isinstance(places := tree.get("weight_map"), dict):
        raise Damaged(index, "no weight_map")
    return places


def has_part(directory: Path, part: str) -> bool:
    """Return whether a checkpoint has tensors of this part, in one file or in several."""
    path = directory / f"{part}.safetensors"
    return path.exists() or index_beside(path).exists()


def read(directory: Path, hashed: bool = True) -> Checkpoint:
    """Verify a checkpoint and return all of it, its tensors as views of the files: what is used of them is read then.

    hashed: see `verify`.
    """
    manifest = verify(directory, hashed)
    optimizer, state = (
        migrated(read_json(directory / f"{p}.json"), p, manifest["format"]) for p in ("optimizer", "state")
    )
    try:
        optimizer = unpack(optimizer, read_tensors(directory / "optimizer.safetensors"))
    except (KeyError, TypeError) as error:
        raise Damaged(directory / "optimizer.json", f"optimizer.safetensors lacks {error}, which it names") from None
    return Checkpoint(
        step=manifest["step"],
        config=read_config(directory),
        model=read_tensors(directory / "model.safetensors"),
        optimizer=optimizer,
        state=state,
        tokenizer=read_tokenizer(directory),
        ema=read_tensors(directory / "ema.safetensors") if has_part(directory, "ema") else None,
        facts={key: value for key, value in manifest.items() if key not in ("format", "step", "files")},
    )


def read_tokenizer(directory: Path) -> str | None:
    path = directory / "tokenizer.json"
    return read_text(path, MAX_TOKENIZER) if path.exists() else None


def read_weights(directory: Path, weights: str | None = None) -> dict[str, Tensor]:
    """Read the weights to sample from: `ema` or `raw`, or by default EMA where the checkpoint has it.

    What has no average (of a GAN, the discriminator) is as trained.
    """
    has_ema = has_part(directory, "ema")
    if weights == "ema" and not has_ema:
        raise UserError(f"weights=ema: {directory} has no EMA weights; weights=raw takes the trained ones")
    averaged = read_tensors(directory / "ema.safetensors") if has_ema and weights != "raw" else {}
    return averaged | read_tensors(directory / "model.safetensors", but=averaged)


def copy_weights(checkpoint: Path, folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Copy what sampling needs of a checkpoint into a new folder: its tokenizer, these weights, and their config."""
    shutil.rmtree(folder, ignore_errors=True)  # begun by a command that was killed
    folder.mkdir()
    tokenizer, manifest = read_tokenizer(checkpoint), verify(checkpoint)
    facts = {"data": manifest.get("data")}
    write(folder, Checkpoint(manifest["step"], config, weights, tokenizer=tokenizer, facts=facts))
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
        *(
            f"{n} is {weights[n].dtype}, not {own[n].dtype}"
            for n in own.keys() & weights.keys()
            if own[n].dtype != weights[n].dtype
        ),
    ]:
        raise UserError(f"{where} does not fit the model of its config: " + "; ".join(sorted(problems)[:3]))
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


def meta_model(network: Callable[[Config], torch.nn.Module], config: Config, weights: int) -> torch.nn.Module:
    """A model on the meta device, which takes no memory: what a config that came with so many weights describes.

    Raises UserError where that is no model, or, as soon as that shows, one of more than twice as many parameters (tied
    ones count twice).
    """
    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1
        if count > 2 * weights:
            raise UserError(f"config.json describes a model of more than {weights} weights, which is all there are")

    if large := [
        f"{key}={value}" for key, value in vars(config).items() if isinstance(value, int) and value > MAX_NUMBER
    ]:
        raise UserError(f"config.json describes no model ({', '.join(large)})")
    hook = register_module_parameter_registration_hook(counted)
    try:
        with torch.device("meta"):
            return network(config)
    except (RuntimeError, TypeError, ValueError, ArithmeticError) as error:  # numbers that no tensor can have
        raise UserError(f"config.json describes no model ({str(error).splitlines()[0]})") from None
    finally:
        hook.remove()


def unique_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return the state dict with each shared tensor once, under its first name.

    Of an adapted model, whose `base_names` are the weights of another checkpoint, these are left out.
    """
    seen: set[int] = set()
    unique = {}
    elsewhere: Collection[str] = getattr(model, "base_names", ())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and name not in elsewhere:
            seen.add(id(tensor))
            unique[name] = tensor
    return unique


def identity(checkpoint: Path) -> str:
    """Verify a checkpoint, and return the hash by which it is known: its manifest's own, which covers every file."""
    verify(checkpoint)
    return str(read_json(checkpoint / "manifest.json")["sha256"])
