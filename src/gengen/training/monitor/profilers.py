"""Lightning's profilers by the names that trainer.profiler knows. Each writes what it finds into the run's folder."""

from pathlib import Path

from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from gengen.errors import UserError
from gengen.registry import PROFILERS, imported

FILENAME = "profile"  # Lightning puts "fit-" before it and ".txt" behind


def simple(folder: Path) -> Profiler:
    """How long each of Lightning's hooks took, in sum and on average."""
    return SimpleProfiler(dirpath=folder, filename=FILENAME)


def advanced(folder: Path) -> Profiler:
    """Every Python function that each hook called, by cProfile."""
    return AdvancedProfiler(dirpath=folder, filename=FILENAME)


def pytorch(folder: Path) -> Profiler:
    """Every torch operator, with a trace for chrome://tracing."""
    return PyTorchProfiler(dirpath=folder, filename=FILENAME)


def build_profiler(name: str | None, folder: Path) -> Profiler | None:
    """The registered profiler of that name, made for a run's folder. Raises UserError for what is no profiler."""
    if name is None:
        return None
    profiler = imported(PROFILERS[name])(folder)
    if not isinstance(profiler, Profiler):
        raise UserError(f"trainer.profiler={name}: {PROFILERS[name]} returned {profiler!r}, not a Lightning Profiler")
    return profiler
