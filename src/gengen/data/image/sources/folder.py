"""Your own image files: a folder a class, captions from a metadata.jsonl."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gengen.config.data import ImageConfig
from gengen.data.image.sources.base import HELD_OUT, Picture, captions_in, composed, decode_or_skip
from gengen.data.sources.files import changed, content_hash, ending, existing, files_below, left_out
from gengen.data.sources.skips import Skips, tallied
from gengen.data.sources.text_files import field_text, json_rows
from gengen.errors import UserError
from gengen.io import Say

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
METADATA = "metadata.jsonl"
MAX_HASHED = 512 * 2**20  # bytes; in a larger folder
HASHED = 1024  # files, spread evenly, are hashed beside the metadata; all others are told by name and size


class ImageFolder:
    """The class is the name of the folder an image is in, counted from the top; one at the top has none. A
    metadata.jsonl has rows of file_name, text (a caption, or a list of them) and perhaps label."""

    def __init__(self, config: ImageConfig):
        self.config = config

    def describe(self) -> tuple[str, str]:
        return f"files {self.config.path}", self.config.licence

    def facts(self) -> dict[str, Any]:
        files = self.files()
        if small(files):
            return self.listed(files, lambda path: content_hash(path, MAX_HASHED))
        hashed = {*files[:: -(-len(files) // HASHED)], *(path for path in files if path.name == METADATA)}
        return self.listed(files, lambda path: content_hash(path) if path in hashed else "")

    def facts_by_time(self) -> dict[str, Any]:
        files = self.files()
        return self.listed(files, changed) if not small(files) else self.facts()

    def files(self) -> list[Path]:
        return [path for _, paths in find_images(self.config.path).values() for path in paths]

    def listed(self, files: list[Path], told: Callable[[Path], str]) -> dict[str, Any]:
        root = Path(self.config.path or "")
        return {"files": [[str(path.relative_to(root)), path.stat().st_size, told(path)] for path in files]}

    def read(self, skips: Skips, say: Say) -> Iterator[Picture]:
        found, unread = Counter[str](), Counter[str]()
        for split, (root, files) in find_images(self.config.path, say).items():
            images = [path for path in files if path.name != METADATA]
            rows = read_metadata([path for path in files if path.name == METADATA], images, skips)
            for path in images:
                inside = path.relative_to(root).parts
                label, captions = rows.get(path, (None, ()))
                label = label or (inside[0] if len(inside) > 1 else None)
                found[composed(label or "")] += 1
                if (pixels := decode_or_skip(path, self.config, skips, str(path))) is not None:
                    yield Picture(pixels, label, captions, split=split)
                else:
                    unread[composed(label or "")] += 1
        skips.check()
        for name, count in unread.items():
            if name and count == found[name]:
                why = f"none of its {count:,} images can be read ({skips.first})"
                raise UserError(f"data: class {name!r} is left empty: {why}")


def small(files: list[Path]) -> bool:
    """Whether all of the files are hashed, each whole."""
    return sum(path.stat().st_size for path in files) <= MAX_HASHED


def find_images(path: str | None, say: Say | None = None) -> dict[str | None, tuple[Path, list[Path]]]:
    """Split -> (its folder, the files in it): val and train where the folder is divided into train/ and validation/,
    val/ or test/, else all under None. Files are those with the suffix of an image, and metadata.jsonl; hidden ones
    are left out.

    say: takes lines about what else is there.
    """
    if not path:
        raise UserError(f"data.path is not set: name your own folder of images ({', '.join(SUFFIXES)})")
    root = existing(path)
    if not root.is_dir():
        raise UserError(f"data.path={path}: a folder of images is wanted, a folder in it for each class")
    folders: dict[str | None, Path] = {None: root}
    if (root / "train").is_dir():
        held_out = [root / name for name in HELD_OUT if (root / name).is_dir()]
        folders = {"val": held_out[0], "train": root / "train"} if held_out else {None: root / "train"}
    wanted: dict[str | None, tuple[Path, list[Path]]] = {}
    kinds: set[str] = set()
    lines = [outside(root, folders.values())]
    for split, folder in folders.items():
        below, others = files_below(folder)
        files = [p for p in below if p.suffix.lower() in SUFFIXES or p.name == METADATA]
        wanted[split] = folder, files
        kinds |= {*map(ending, below), *others}
        lines += [left_out(folder, set(below) - set(files), others, SUFFIXES), without_images(folder, files)]
    if not any(p.name != METADATA for _, files in wanted.values() for p in files):
        found = ", ".join(sorted(kinds)[:10]) or "no files"
        raise UserError(f"data.path={path}: the folder holds {found}; allowed are {', '.join(SUFFIXES)}")
    for line in filter(None, lines if say else []):
        say(line)  # type: ignore[misc]
    return wanted


def outside(root: Path, folders: Iterable[Path]) -> str:
    """A line that names what lies beside the parts of a divided folder; nothing where that is nothing."""
    taken = {f"{folder.name}/" for folder in folders if folder != root}
    beside = [name for name in names_in(root) if name not in taken]
    if not taken or not beside:
        return ""
    return f"data: left out of {root} beside {' and '.join(sorted(taken))}: {first_ten(beside)}"


def without_images(root: Path, files: list[Path]) -> str:
    """A line that names the folders which would be classes but hold no image; nothing where there are none."""
    classes = {path.relative_to(root).parts[0] for path in files if path.name != METADATA}
    folders = [name for name in names_in(root) if name.endswith("/") and not (root / name).is_symlink()]
    empty = [name for name in folders if name.removesuffix("/") not in classes]
    return f"data: no image, so no class, in these folders of {root}: {first_ten(empty)}" if empty else ""


def names_in(folder: Path) -> list[str]:
    """What is in a folder, but what is hidden; folders with a stroke at the end."""
    return [path.name + "/" * path.is_dir() for path in sorted(folder.iterdir()) if not path.name.startswith(".")]


def first_ten(names: list[str]) -> str:
    return ", ".join(names[:10]) + f" and {len(names) - 10:,} more" * (len(names) > 10)


def read_metadata(
    paths: list[Path], images: list[Path], skips: Skips
) -> dict[Path, tuple[str | None, tuple[str, ...]]]:
    """Image -> (label, captions) by rows {"file_name": relative to the metadata's folder, "text": ..., "label": ...}
    where a name is that of the image which has it, in this or another Unicode form."""
    found: dict[Path, tuple[str | None, tuple[str, ...]]] = {}
    exact = set(images)
    forms: dict[str, list[Path]] = {}
    for image in images:
        forms.setdefault(composed(str(image)), []).append(image)
    for path in paths:
        with tallied(path, skips):
            for number, row in json_rows(path, skips):
                try:
                    named = path.parent / field_text(row, "file_name")
                    alike = [named] if named in exact else forms.get(composed(str(named)), [])
                    if len(alike) != 1:
                        raise ValueError(f"{'no' if not alike else 'more than one'} image {row['file_name']!r}")
                    captions = captions_in(row.get("text"))
                    found[alike[0]] = (None if row.get("label") is None else str(row["label"]), captions)
                    skips.good["line"] += 1
                except ValueError as error:
                    skips.skip("line", f"{path} line {number}", str(error))
    return found
