"""A checkpoint whose tensors lie in several files, each written by another process, laid out as Hugging Face does it:

    model-00001-of-00002.safetensors  model-00002-of-00002.safetensors  model.safetensors.index.json

and likewise ema and optimizer. A tensor is whole, in one of the files; the index says in which. All processes write
into one folder, on a disk that they share.
"""

import shutil
from pathlib import Path

from safetensors import safe_open

from gengen.checkpoints import store
from gengen.checkpoints.files import read_json, to_json
from gengen.checkpoints.layout import (
    Checkpoint,
    index_beside,
    nbytes,
    tensors_of,
    texts_of,
    write_files,
    write_manifest,
)
from gengen.faults import fault
from gengen.io import Json, write_text


def stage_of(root: Path, step: int) -> Path:
    """Return where all write: the same folder, without a word to each other."""
    return root / f".tmp-step-{step:09d}-shards"


def begin(root: Path, checkpoint: Checkpoint) -> None:
    """Make the folder, before any of them writes."""
    root.mkdir(parents=True, exist_ok=True)
    size = checkpoint.nbytes()
    store.check_space(root, size, size)
    stage = stage_of(root, checkpoint.step)
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    fault("save:begin")


def write_shard(root: Path, checkpoint: Checkpoint, number: int, of: int) -> None:
    """Write the tensors that this process holds: those on the meta device are with others. 0 writes the texts, too.

    What was written is noted in a file beside, for `finish`.
    """
    stage = stage_of(root, checkpoint.step)
    shards = {
        f"{part}-{number + 1:05d}-of-{of:05d}.safetensors": {n: t for n, t in tensors.items() if not t.is_meta}
        for part, tensors in tensors_of(checkpoint).items()
    }
    files = write_files(stage, shards, texts_of(checkpoint) if number == 0 else {}, lambda file: fault(f"save:{file}"))
    write_text(note(stage, number), to_json(files))


def note(stage: Path, number: int) -> Path:
    return stage / f"written-{number + 1:05d}.json"


def finish(root: Path, checkpoint: Checkpoint, of: int) -> Path:
    """Make one checkpoint of what all have written: the indexes, the manifest, and only then its name."""
    stage = stage_of(root, checkpoint.step)
    notes = [note(stage, number) for number in range(of)]
    files: dict[str, Json] = {}
    for path in notes:
        files |= read_json(path)
        path.unlink()
    indexes = {
        index_beside(Path(f"{part}.safetensors")).name: index(stage, part, nbytes(tensors))
        for part, tensors in tensors_of(checkpoint).items()
    }
    files |= write_files(stage, {}, indexes, lambda file: fault(f"save:{file}"))
    write_manifest(stage, checkpoint, files, lambda file: fault(f"save:{file}"))
    return store.publish(root, stage, checkpoint.step)


def index(stage: Path, part: str, size: int) -> str:
    """Return the index of a part's files, whose tensors have so many bytes."""
    places: dict[str, str] = {}
    for path in sorted(stage.glob(f"{part}-*-of-*.safetensors")):
        with safe_open(path, "pt") as file:
            places |= dict.fromkeys(file.keys(), path.name)
    return to_json({"metadata": {"total_size": size}, "weight_map": places})
