"""What `auto` means on the machine at hand."""

import os
import shutil
from collections.abc import Callable

import torch

from gengen.config.train import TrainerConfig
from gengen.errors import UserError


def pick_device(wanted: str, devices: int = 1) -> str:
    """cpu or cuda; raises UserError for CUDA devices that are not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch sees no CUDA device; device=cpu or auto run without one")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    if device == "cuda" and devices > torch.cuda.device_count():
        raise UserError(f"trainer.devices={devices}: this machine has {torch.cuda.device_count()}")
    return device


def wait_for(device: torch.device) -> None:
    """Return when the device has done what it was told. CUDA is told ahead, so that a clock would time the telling."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def has_bf16(device: str) -> bool:
    """Whether matrix products are faster in bf16: CUDA from Ampere on, CPUs with AMX or AVX512-BF16."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu
    return bool(cpu._is_amx_tile_supported() or cpu._is_avx512_bf16_supported())


def pick_precision(wanted: str, device: str) -> str:
    return ("bf16" if has_bf16(device) else "fp32") if wanted == "auto" else wanted


def pick_compile(c: TrainerConfig, pays: bool, say: Callable[[str], None] = lambda line: None) -> bool:
    """Whether to compile; `auto` does where it pays. Without a compiler nothing is compiled, and that is said."""
    wanted = pays if c.compile == "auto" else c.compile == "true"
    if wanted and shutil.which(os.environ.get("CXX", "c++")) is None:
        say("warning: torch.compile finds no C++ compiler; going on uncompiled")
        return False
    return wanted
