"""The one importer of foreign weights: read a published PyTorch file of named tensors, running nothing of it."""

import io
import zipfile
from collections.abc import Callable

import torch
from torch import Tensor

from gengen.errors import UserError

MAX_BYTES = 2**30  # of the file, and of the tensors in it


def read_foreign(
    raw: bytes, say: Callable[[str], None] = lambda line: None, name: str = "weights"
) -> dict[str, Tensor]:
    """Return the tensors of a PyTorch state dict, on the CPU, contiguous and owning their memory.

    Such files are pickles. `weights_only=True` admits nothing but tensors and plain containers: no code of the file is
    run. What it admits is still checked, as a few bytes may declare any size. Raises UserError for a file that is too
    large, unreadable, or not a flat mapping of names to dense tensors. `name` is what errors call the file.
    """
    try:
        _limit(name, len(raw), "bytes")
        if zipfile.is_zipfile(io.BytesIO(raw)):
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                _limit(name, sum(member.file_size for member in archive.infolist()), "bytes when unpacked")
        loaded: object = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True, mmap=False)
    except UserError:
        raise
    except Exception as error:  # a damaged file makes the unpickler raise almost anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name}: cannot be read as PyTorch weights ({reason[:200]})") from None
    if not isinstance(loaded, dict) or not loaded:
        raise UserError(f"{name}: holds {type(loaded).__name__}, not a mapping of names to tensors")
    for key, tensor in loaded.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{name}: {key!r} is {type(tensor).__name__}; only names with tensors are allowed")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise UserError(f"{name}: {key} is not a dense tensor")
    total = sum(tensor.numel() * tensor.element_size() for tensor in loaded.values())
    _limit(name, total, "bytes of tensors")
    say(f"{name}: {len(loaded)} tensors, {total / 2**20:.1f} MiB")
    return {key: tensor.detach().clone(memory_format=torch.contiguous_format) for key, tensor in loaded.items()}


def _limit(name: str, size: int, what: str) -> None:
    if size > MAX_BYTES:
        raise UserError(f"{name}: {size:,} {what}; at most {MAX_BYTES:,} are allowed")
