"""The runs of a folder, as their files tell, whoever writes them at the moment."""

from pathlib import Path

from gengen.checkpoints.migrate import read_config
from gengen.errors import UserError
from gengen.registry import family_and_stage


def inside(folder: Path, path: Path) -> bool:
    """Return whether a path leads to a place in a folder, whatever links it goes through."""
    try:
        return path.resolve(strict=True).is_relative_to(folder.resolve(strict=True))
    except (OSError, RuntimeError):  # it is gone, or a link that leads to itself
        return False


def nameable(path: Path) -> bool:
    """Return whether a name is UTF-8, and so can be written anywhere; those of files may be any bytes."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return False
    return True


def runs_in(folder: Path) -> dict[str, Path]:
    """Return the directories of a folder that hold a config.json, by name. Links out of the folder are left out."""
    if not folder.is_dir():
        return {}
    found = [path for path in sorted(folder.iterdir()) if nameable(path) and (path / "config.json").is_file()]
    return {path.name: path for path in found if inside(folder, path / "config.json")}


def newest_of_each(folder: Path) -> list[list[Path]]:
    """Return the runs with checkpoints, those of one family and stage in a list, the newest first.

    A run whose config cannot be read is left out: `doctor` says what is wrong with it.
    """
    found: dict[tuple[str, str], list[tuple[float, Path]]] = {}
    for path in runs_in(folder).values():
        try:
            entry, stage = family_and_stage(read_config(path), path)
            written = [manifest.stat().st_mtime for manifest in path.glob("checkpoints/step-*/manifest.json")]
        except (UserError, OSError):
            continue
        if written:
            found.setdefault((entry.name, stage or "pretrain"), []).append((max(written), path))
    return [[path for _, path in sorted(runs, reverse=True)] for _, runs in sorted(found.items())]
