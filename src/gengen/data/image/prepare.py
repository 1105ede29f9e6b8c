"""Pictures -> a folder of pixels ready to be drawn from.

    <data.dir>/prepared/<name>-<fingerprint>/  train.safetensors  val.safetensors  descriptions.json  tokenizer.json
    meta.json

A picture whose pixels another one has is dropped before any is held out, so no image is on both sides. The first is
kept, with its label and captions; copies that have others are counted. Every class has a picture to train on.
tokenizer.json is trained on the captions of the training part, where there are any.
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
from gengen.config.data.image import VOCABULARY
from gengen.config.model import DiffusionProcess
from gengen.data.image.captions import CaptionFeatures, CaptionTokenizer, CaptionTokens, Description
from gengen.data.image.holdout import combinations_held_out, held_out
from gengen.data.image.sources.base import Picture, composed, image_source
from gengen.data.prepared import Batch, FromMeta, PreparedFolder, PrepareRequest, naming
from gengen.data.sources.base import Source, read_records
from gengen.data.sources.skips import Skips
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.io import Say, write_text

CHUNK = 64 * 2**20  # bytes copied at a time
PARTS = ("train", "val")


class ImageSet:
    """One split. images: (N, C, R, R) uint8, memory-mapped; labels: (N,) int64, -1 = none; descriptions: N."""

    def __init__(self, path: Path, descriptions: list[Description]):
        try:
            with safe_open(path, "pt") as file:
                self.images: Tensor = file.get_tensor("images")
                self.labels: Tensor = file.get_tensor("labels")
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        self.descriptions = descriptions
        self._path = path

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[type, tuple[Path, list[Description]]]:
        """A spawned loader worker opens the file itself: a memory map would be copied to it whole."""
        return ImageSet, (self._path, self.descriptions)


@dataclass(frozen=True)
class PreparedImages(FromMeta):
    """The images of the two parts. `config` is the one given.

    caption_tokenizer: trained on their captions; None where there are none. words: their captions in tokens, or as a
    frozen text encoder reads them, for a model that does; None for others.
    """

    config: ImageConfig
    meta: dict[str, Any]
    train: ImageSet
    val: ImageSet
    caption_tokenizer: TextTokenizer | None = None
    words: CaptionTokens | CaptionFeatures | None = None

    @property
    def classes(self) -> list[str]:
        """Names of the labels, sorted."""
        return self.meta["classes"]

    @property
    def model_facts(self) -> dict[str, Any]:
        """What the data fixes of the model, and sigma_data, which is measured on it."""
        fixed = {"resolution": self.config.resolution, "channels": self.config.channels, "classes": self.classes}
        if self.words:  # a model that reads captions is told no classes beside
            fixed |= {"classes": []} | self.words.model_facts
        return fixed | {"sigma_data": root_mean_square(self.train.images)}

    @property
    def dependencies(self) -> dict[str, Path]:
        """Return the folders that a run keeps a copy of, by the name they have there."""
        return self.words.dependencies if self.words else {}

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """Return the tokenizer of the captions, which a model that reads them keeps with its weights."""
        return self.words.tokenizer if self.words else None

    def caption_features(self) -> Tensor:
        """Return what a frozen text encoder said of each different caption: see `CaptionFeatures`."""
        assert isinstance(self.words, CaptionFeatures)
        return self.words.features()

    def held_out_captions(self, n: int) -> list[str]:
        """Return up to n different captions of what is held out, evenly spaced."""
        captions = list(dict.fromkeys(row.caption for row in self.val.descriptions if row.captions))
        return [captions[i * len(captions) // n] for i in range(n)] if len(captions) > n else captions

    def batch(self, split: str, index: Tensor, flipped: Tensor | None = None) -> Batch:
        """Return images (B, C, R, R) float32 in [-1, 1], labels (B,) int64 and the index; for a model that reads
        captions, these too (see `CaptionTokens.rows` and `CaptionFeatures.rows`).

        split: train or val; index: (B,) int64; flipped: (B,) bool, which to mirror left to right; None = none.
        """
        part = self.train if split == "train" else self.val
        images = part.images.index_select(0, index).float().div_(127.5).sub_(1)  # many times as fast as images[index]
        if flipped is not None:
            rows = flipped.nonzero().flatten()
            images.index_copy_(0, rows, images.index_select(0, rows).flip(-1))
        words = self.words.rows(split, index) if self.words else {}
        return {"images": images, "labels": part.labels.index_select(0, index), "index": index} | words

    def describe(self) -> list[str]:
        """Return what it is, in aligned lines."""
        m, names = self.meta, self.classes
        some = ", ".join(names[:12]) + ", ..." * (len(names) > 12)
        captioned = sum(bool(row.captions) for row in self.train.descriptions + self.val.descriptions)
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
    """Prepare images, the same for every model; for one with its own text encoder, with the captions' tokens.

    Those for a frozen one are encoded afterwards (`gengen.generation.image.encode`).
    """
    found = prepare(request.config, request.say, trained_on=request.trained_on, allow_build=request.allow_build)
    model = request.model
    if isinstance(model, DiffusionProcess) and model.text and model.text_encoder == "own":
        brought = TextTokenizer.from_json(request.tokenizer) if request.tokenizer else found.caption_tokenizer
        parts = {"train": found.train.descriptions, "val": found.val.descriptions}
        found = replace(found, words=CaptionTokens.of(parts, brought, model.text_context, request.config))
    return found


def prepare(config: ImageConfig, say: Say, *, trained_on: str = "", allow_build: bool = True) -> PreparedImages:
    """Open the prepared images of this config, and make them first where they are missing or damaged. trained_on,
    allow_build: see PrepareRequest."""
    return ImagesFolder(config, say, trained_on).get(allow_build)


class ImagesFolder(PreparedFolder[PreparedImages]):
    FORMAT = 2  # 1: one caption a picture, in captions.json
    config: ImageConfig
    source: Source[Picture]

    def __init__(self, config: ImageConfig, say: Say, trained_on: str = ""):
        super().__init__(config, image_source(config), say, trained_on)

    def facts(self) -> dict[str, Any]:
        keys = ("source", "resolution", "channels", "validation", "max_bad")
        later = {"holdout": "groups", "vocab_size": VOCABULARY}  # fields that came later, and what was done before
        changed = {key: value for key, was in later.items() if (value := getattr(self.config, key)) != was}
        return {key: getattr(self.config, key) for key in keys} | {"kind": "image"} | changed

    def opened(self, meta: dict[str, Any]) -> PreparedImages:
        c = self.config
        descriptions = self.descriptions(meta["format"])
        parts = []
        for part in PARTS:
            with naming(path := self.home / f"{part}.safetensors"):
                found = ImageSet(path, descriptions[part])
                shapes = tuple(found.images.shape), tuple(found.labels.shape), len(descriptions[part])
                n = meta[part]["images"]
                if shapes != (expected := ((n, c.channels, c.resolution, c.resolution), (n,), n)):
                    raise ValueError(f"shapes {shapes}, expected {expected}")
            parts.append(found)
        tokenizer = None
        if meta["format"] > 1 and any(row.captions for row in descriptions["train"]):
            with naming(path := self.home / "tokenizer.json"):
                tokenizer = TextTokenizer.from_json(path.read_text(encoding="utf8"))
        train, val = parts
        return PreparedImages(c, meta, train, val, tokenizer)

    def descriptions(self, version: int) -> dict[str, list[Description]]:
        """Read what the pictures of each part show."""
        with naming(path := self.home / ("descriptions.json" if version > 1 else "captions.json")):
            found = json.loads(path.read_bytes())
            if version == 1:
                found = {part: [{"captions": [text] if text else []} for text in found[part]] for part in PARTS}
            return {part: [Description.from_json(row) for row in found[part]] for part in PARTS}

    def build(self, folder: Path, spool: Path, skips: Skips) -> dict[str, Any]:
        """Read the source once into a spool on disk, choose what is held out, and write each part from there."""
        c = self.config
        source, licence = self.source.describe()
        rows, copies = _write_spool(spool, read_records(self.source, skips, self.say), self.say)
        in_val = np.array([row.split == "val" for row in rows])
        how = "as the source is divided"
        if c.holdout == "combinations":
            in_val, how = combinations_held_out([row.things for row in rows], c.validation)
        elif not in_val.any():
            in_val = held_out([row.group or "" for row in rows], [row.label or "" for row in rows], c.validation)
            how = "a share of each class"
        _check_classes(rows, in_val, copies, c.validation)
        classes = sorted({row.label for row in rows if row.label is not None})
        parts, descriptions = {}, dict[str, list[Description]]()
        for part in PARTS:
            index = np.flatnonzero(in_val == (part == "val"))
            if not len(index):
                settings = f"{len(rows)} different images, data.validation={c.validation}"
                raise UserError(f"data: the {part} part is empty: {settings}")
            shape = (c.channels, c.resolution, c.resolution)
            _write_images(folder / f"{part}.safetensors", spool, index, numbered(rows, classes), shape)
            descriptions[part] = [Description.of(rows[i]) for i in index]
            counts = Counter(rows[i].label or "" for i in index)
            parts[part] = {"images": len(index), "classes": dict(sorted(counts.items()))}
        as_json = {part: [row.to_json() for row in found] for part, found in descriptions.items()}
        write_text(folder / "descriptions.json", json.dumps(as_json))
        if captions := [caption for row in descriptions["train"] for caption in row.captions]:
            write_text(folder / "tokenizer.json", CaptionTokenizer.of(captions, c.vocab_size).to_json())
        if disagree := of_which(copies.disagreeing()):
            self.say(f"data: copies of other pictures that were dropped: {copies.dropped:,}{disagree}{copies.pairs()}")
        return {
            "format": self.FORMAT, "fingerprint": self.fingerprint, "name": c.name, "source": source,
            "licence": licence, "resolution": c.resolution, "channels": c.channels,
            "split": how,
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
        self.captions += kept.captions[:1] != copy.captions[:1]
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
