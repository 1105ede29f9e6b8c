"""The state of one step in memory that two processes share: one trains and copies, the other reads and writes.

The memory is an anonymous file: it has no name that a crash could leave behind, and no limit of /dev/shm.
"""

import json
import mmap
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from gengen.checkpoints.files import with_special_floats, without_special_floats
from gengen.checkpoints.layout import Checkpoint, pack, unpack
from gengen.checkpoints.saving import Keeping, Save
from gengen.io import Json

ALIGNMENT = 64  # bytes
TREES = ("model", "ema", "optimizer")  # of a checkpoint, those that hold tensors


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the memory."""

    offset: int
    dtype: str
    shape: list[int]

    def of(self, memory: Tensor) -> Tensor:
        """Return the tensor, as a view of the memory (bytes)."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        size = dtype.itemsize * torch.Size(self.shape).numel()
        return memory[self.offset : self.offset + size].view(dtype).view(self.shape)


@dataclass(frozen=True)
class Written:
    """What the other process needs to know to read a snapshot."""

    size: int  # of the memory, in bytes
    end: int  # of the tensors, where the text begins
    text: int  # its length: JSON that says what the tensors are, and all that is small


class Snapshot:
    """Memory for one snapshot at a time, kept and used again; it grows where that is too small."""

    def __init__(self) -> None:
        self.file = os.memfd_create("gengen-checkpoint")
        self.memory = torch.empty(0, dtype=torch.uint8)
        self.is_pinned = False

    def take(self, save: Save) -> Written:
        """Copy a save; when this returns, all of it is there. Raises OSError where there is no memory for it."""
        tensors: dict[str, Tensor] = {}
        trees = {name: pack(getattr(save.checkpoint, name), tensors, name) for name in TREES}
        places, end = laid_out(tensors)
        text = json.dumps(without_special_floats(as_json(save) | trees | {"places": places_as_json(places)})).encode()
        on_device = [tensor for tensor in tensors.values() if tensor.is_cuda]
        self.reserve(end + len(text), pinned=bool(on_device))
        for name, tensor in tensors.items():
            places[name].of(self.memory).copy_(tensor, non_blocking=True)
        self.memory[end : end + len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        for device in {tensor.device for tensor in on_device}:
            torch.cuda.current_stream(device).synchronize()
        return Written(len(self.memory), end, len(text))

    def reserve(self, size: int, pinned: bool) -> None:
        """Have at least so many bytes; pinned, a GPU writes into them at full speed."""
        if size <= len(self.memory):
            return
        self.release()
        size += size // 16  # texts differ a little in length from save to save
        os.ftruncate(self.file, size)
        self.memory = mapped(self.file, size)
        if pinned:
            self.is_pinned = int(torch.cuda.cudart().cudaHostRegister(self.memory.data_ptr(), size, 0)) == 0

    def release(self) -> None:
        """Let go of the memory, but not of the file."""
        if self.is_pinned:
            torch.cuda.cudart().cudaHostUnregister(self.memory.data_ptr())
        self.memory, self.is_pinned = torch.empty(0, dtype=torch.uint8), False

    def close(self) -> None:
        self.release()
        os.close(self.file)


def read_snapshot(file: int, written: Written) -> Save:
    """Return the save that was copied; its tensors are views of the memory."""
    memory = mapped(file, written.size)
    text = bytes(memory[written.end : written.end + written.text].numpy())
    found = with_special_floats(json.loads(text))
    tensors = {name: Place(**place).of(memory) for name, place in found.pop("places").items()}
    root, keeping = Path(found.pop("root")), found.pop("keeping")
    trees = {name: unpack(found.pop(name), tensors) for name in TREES}
    return Save(root, Checkpoint(**found, **trees), keeping and Keeping(**keeping))


def mapped(file: int, size: int) -> Tensor:
    """Return a file as a tensor of bytes: who writes one writes the other."""
    return torch.frombuffer(mmap.mmap(file, size), dtype=torch.uint8)


def laid_out(tensors: dict[str, Tensor]) -> tuple[dict[str, Place], int]:
    """Return a place for each tensor, one behind the other, and where the last one ends."""
    places, end = {}, 0
    for name, tensor in tensors.items():
        places[name] = Place(end, str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
        size = tensor.numel() * tensor.element_size()
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return places, end


def places_as_json(places: dict[str, Place]) -> Json:
    return {name: asdict(place) for name, place in places.items()}


def as_json(save: Save) -> dict[str, Json]:
    """Return what a save holds beside its tensors."""
    small = {name: value for name, value in vars(save.checkpoint).items() if name not in TREES}
    return small | {"root": str(save.root), "keeping": save.keeping and asdict(save.keeping)}
