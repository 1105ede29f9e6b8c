"""Pictures -> a folder of pixels ready to be drawn from.

    <data.dir>/prepared/<name>-<fingerprint>/  train.safetensors  val.safetensors  captions.json  meta.json

A picture whose pixels another one has is dropped before any is held out, so no image is on both sides. The first is
kept, with its label and caption; copies that have another are counted. Every class has a picture to train on.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gengen.config.data import ImageConfig
from gengen.data.image.sources.base import Picture, composed, image_source
from gengen.data.prepared import Batch, FromMeta, PreparedFolder, PrepareRequest, naming
from gengen.data.sources.base import Source, read_records
from gengen.data.sources.skips import Skips
from gengen.errors import UserError
from gengen.io import Say, write_text

CHUNK = 64 * 2**20  # bytes copied at a time
PARTS = ("train", "val")


class ImageSet:
    """One split. images: (N, C, R, R) uint8, memory-mapped; labels: (N,) int64, -1 = none; captions: "" = none."""

    def __init__(self, path: Path, captions: list[str]):
        try:
            with safe_open(path, "pt") as file:
                self.images: Tensor = file.get_tensor("images")
                self.labels: Tensor = file.get_tensor("labels")
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        self.captions = captions
        self._path = path

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[type, tuple[Path, list[str]]]:
        """A spawned loader worker opens the file itself: a memory map would be copied to it whole."""
        return ImageSet, (self._path, self.captions)


@dataclass(frozen=True)
class PreparedImages(FromMeta):
    """The images of the two parts. `config` is the one given."""

    config: ImageConfig
    meta: dict[str, Any]
    train: ImageSet
    val: ImageSet

    @property
    def classes(self) -> list[str]:
        """Names of the labels, sorted."""
        return self.meta["classes"]

    @property
    def model_facts(self) -> dict[str, Any]:
        """What the data fixes of the model, and sigma_data, which is measured on it."""
        fixed = {"resolution": self.config.resolution, "channels": self.config.channels, "classes": self.classes}
        return fixed | {"sigma_data": root_mean_square(self.train.images)}

    def batch(self, split: str, index: Tensor, flipped: Tensor | None = None) -> Batch:
        """Return images (B, C, R, R) float32 in [-1, 1], labels (B,) int64 and the index.

        split: train or val; index: (B,) int64; flipped: (B,) bool, which to mirror left to right; None = none.
        """
        part = self.train if split == "train" else self.val
        images = part.images.index_select(0, index).float().div_(127.5).sub_(1)  # many times as fast as images[index]
        if flipped is not None:
            rows = flipped.nonzero().flatten()
            images.index_copy_(0, rows, images.index_select(0, rows).flip(-1))
        return {"images": images, "labels": part.labels.index_select(0, index), "index": index}

    def describe(self) -> list[str]:
        """Return what it is, in aligned lines."""
        m, names = self.meta, self.classes
        some = ", ".join(names[:12]) + ", ..." * (len(names) > 12)
        captioned = sum(map(bool, self.train.captions + self.val.captions))
        facts = {
            "images": f"{len(self.train):,} for training, {len(self.val):,} for validation ({m['split']})",
            "pixels": f"{m['resolution']} x {m['resolution']}, {'grey' if m['channels'] == 1 else 'RGB'}",
            "classes": f"{len(names)}: {some}" if names else "none",
            "captions": f"{captioned:,}" if captioned else "none",
            "duplicates": f"{m['duplicates']:,} dropped" + of_which(m.get("disagreeing", {})),
        }
        return self.described(facts)


def root_mean_square(images: Tensor) -> float:
    """Return EDM's sigma_data of images (N, ...) uint8: their root mean square in [-1, 1], to four digits."""
    counts = torch.zeros(256, dtype=torch.float64)
    for part in images.split(4096):
        counts += torch.bincount(part.flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    return round(((counts * values.square()).sum() / counts.sum()).sqrt().item(), 4)


def prepare_for(request: PrepareRequest[ImageConfig]) -> PreparedImages:
    """Prepare images, the same for every model."""
    return prepare(request.config, request.say, trained_on=request.trained_on, allow_build=request.allow_build)


def prepare(config: ImageConfig, say: Say, *, trained_on: str = "", allow_build: bool = True) -> PreparedImages:
    """Open the prepared images of this config, and make them first where they are missing or damaged. trained_on,
    allow_build: see PrepareRequest."""
    return ImagesFolder(config, say, trained_on).get(allow_build)


class ImagesFolder(PreparedFolder[PreparedImages]):
    FORMAT = 1
    config: ImageConfig
    source: Source[Picture]

    def __init__(self, config: ImageConfig, say: Say, trained_on: str = ""):
        super().__init__(config, image_source(config), say, trained_on)

    def facts(self) -> dict[str, Any]:
        keys = ("source", "resolution", "channels", "validation", "max_bad")
        return {key: getattr(self.config, key) for key in keys} | {"kind": "image"}

    def opened(self, meta: dict[str, Any]) -> PreparedImages:
        c = self.config
        with naming(self.home / "captions.json"):
            captions = json.loads((self.home / "captions.json").read_bytes())
        parts = []
        for part in PARTS:
            with naming(path := self.home / f"{part}.safetensors"):
                found = ImageSet(path, captions[part])
                shapes = tuple(found.images.shape), tuple(found.labels.shape), len(captions[part])
                n = meta[part]["images"]
                if shapes != (expected := ((n, c.channels, c.resolution, c.resolution), (n,), n)):
                    raise ValueError(f"shapes {shapes}, expected {expected}")
            parts.append(found)
        return PreparedImages(c, meta, *parts)

    def build(self, folder: Path, spool: Path, skips: Skips) -> dict[str, Any]:
        """Read the source once into a spool on disk, choose what is held out, and write each part from there."""
        c = self.config
        source, licence = self.source.describe()
        rows, copies = _write_spool(spool, read_records(self.source, skips, self.say), self.say)
        in_val = np.array([row.split == "val" for row in rows])
        if not (divided := in_val.any()):
            in_val = held_out([row.group or "" for row in rows], [row.label or "" for row in rows], c.validation)
        _check_classes(rows, in_val, copies, c.validation)
        classes = sorted({row.label for row in rows if row.label is not None})
        parts, captions = {}, {}
        for part in PARTS:
            index = np.flatnonzero(in_val == (part == "val"))
            if not len(index):
                settings = f"{len(rows)} different images, data.validation={c.validation}"
                raise UserError(f"data: the {part} part is empty: {settings}")
            shape = (c.channels, c.resolution, c.resolution)
            _write_images(folder / f"{part}.safetensors", spool, index, numbered(rows, classes), shape)
            captions[part] = [rows[i].caption for i in index]
            counts = Counter(rows[i].label or "" for i in index)
            parts[part] = {"images": len(index), "classes": dict(sorted(counts.items()))}
        write_text(folder / "captions.json", json.dumps(captions))
        if disagree := of_which(copies.disagreeing()):
            self.say(f"data: copies of other pictures that were dropped: {copies.dropped:,}{disagree}{copies.pairs()}")
        return {
            "format": self.format, "fingerprint": self.fingerprint, "name": c.name, "source": source,
            "licence": licence, "resolution": c.resolution, "channels": c.channels,
            "split": "as the source is divided" if divided else "a share of each class",
            "classes": classes, **parts, "duplicates": copies.dropped, "disagreeing": copies.disagreeing(),
        }  # fmt: skip


def numbered(rows: list[Picture], classes: list[str]) -> np.ndarray:
    """Return the number of each picture's class, (N,) int64; -1 where it has none."""
    number: dict[str | None, int] = {label: i for i, label in enumerate(classes)} | {None: -1}
    return np.array([number[row.label] for row in rows], "<i8")


@dataclass
class Copies:
    """Pictures that were dropped because an earlier one has the same pixels."""

    dropped: int = 0
    captions: int = 0  # with another caption than the picture that is kept
    labels: Counter[tuple[str | None, str | None]] = field(default_factory=Counter)
    """(kept, dropped), where these differ."""

    def add(self, kept: Picture, copy: Picture) -> None:
        self.dropped += 1
        self.captions += kept.caption != copy.caption
        if kept.label != copy.label:
            self.labels[kept.label, copy.label] += 1

    def disagreeing(self) -> dict[str, int]:
        """Return how many copies have another label, and another caption, for meta.json."""
        return {"label": self.labels.total(), "caption": self.captions}

    def pairs(self) -> str:
        """Return the most frequent pairs of labels, for people."""
        pairs = self.labels.most_common(5)
        some = [f"{count:,} in {copy or 'no class'} and kept in {kept or 'none'}" for (kept, copy), count in pairs]
        return f" ({'; '.join(some)}{'; ...' * (len(self.labels) > 5)})" if some else ""


def of_which(disagreeing: dict[str, int]) -> str:
    """Return how many copies disagree with the picture that is kept, for people."""
    parts = [f"{count:,} with another {what}" for what, count in disagreeing.items() if count]
    return f", of which {' and '.join(parts)}" if parts else ""


def _write_spool(path: Path, found: Iterator[Picture], say: Say) -> tuple[list[Picture], Copies]:
    """Write the pixels of different pictures, the first of equals; return the pictures without them, and copies."""
    rows: list[Picture] = []
    seen, spelling, copies, nothing = dict[bytes, Picture](), dict[str, str](), Copies(), torch.empty(0)
    with open(path, "wb") as file:
        for picture in found:
            raw = picture.pixels.numpy().tobytes()
            digest = hashlib.sha256(raw).digest()
            label = picture.label and spelling.setdefault(composed(picture.label), picture.label)
            row = replace(picture, pixels=nothing, label=label, group=picture.group or digest.hex())
            if digest in seen:
                copies.add(seen[digest], row)
                continue
            seen[digest] = row
            file.write(raw)
            rows.append(row)
            if len(rows) % 20_000 == 0:
                say(f"data: {len(rows):,} images so far")
    return rows, copies


def _check_classes(rows: list[Picture], in_val: np.ndarray, copies: Copies, share: float) -> None:
    """Raise UserError, which names the class, where one has no picture to train on."""
    trained = {row.label for row, held_out in zip(rows, in_val, strict=True) if not held_out}
    for label in sorted({copy for _, copy in copies.labels if copy} - {row.label for row in rows}):
        kept = ", ".join(sorted({kept or "no class" for kept, copy in copies.labels if copy == label}))
        raise UserError(
            f"data: class {label!r} is left empty: its pictures are all in {kept}, too; of equals the first is kept"
            "\n  take them out of one of the two"
        )
    if empty := sorted({row.label for row in rows if row.label} - trained):
        names = ", ".join(map(repr, empty[:5])) + ", ..." * (len(empty) > 5)
        raise UserError(
            f"data: class {names} is left without a picture to train on: all of them are held out"
            f"\n  (by data.validation={share:g}, or as the source is divided); each class needs one for training"
        )


def held_out(groups: list[str], labels: list[str], share: float) -> np.ndarray:
    """Return which pictures are for validation, (N,) bool: all of a group or none, and of each class the share, to
    within a group.

    Groups are laid out by class, and in a class by the hash of their names, which no order of files changes; along
    that line one is taken each time `share` of one more has passed.
    """
    label_of: dict[str, str] = {}
    for group, label in zip(groups, labels, strict=True):
        label_of.setdefault(group, label)
    line = sorted(label_of, key=lambda group: (label_of[group], hashlib.sha256(group.encode()).digest()))
    taken = {group for i, group in enumerate(line) if int((i + 1) * share) > int(i * share)}
    return np.array([group in taken for group in groups], bool)


def _write_images(path: Path, spool: Path, index: np.ndarray, labels: np.ndarray, shape: tuple[int, int, int]) -> None:
    """Write a .safetensors file of the spool's pictures in `index`, a chunk at a time: one tensor, never whole in
    memory.
    """
    pixels = np.memmap(spool, np.uint8, "r").reshape(-1, *shape)
    start, end = 8 * len(index), 8 * len(index) + len(index) * pixels[0].size
    tensors = {
        "labels": {"dtype": "I64", "shape": [len(index)], "data_offsets": [0, start]},
        "images": {"dtype": "U8", "shape": [len(index), *shape], "data_offsets": [start, end]},
    }
    header = json.dumps(tensors).encode()
    header = header.ljust(-(-len(header) // 8) * 8)  # the labels that follow are aligned
    step = max(1, CHUNK // pixels[0].size)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + labels[index].tobytes())
        for i in range(0, len(index), step):
            file.write(pixels[index[i : i + step]].tobytes())
        file.flush()
        os.fsync(file.fileno())
