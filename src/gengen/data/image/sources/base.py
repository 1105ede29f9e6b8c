"""A picture as a source yields it, and the one way a file becomes one."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from gengen.config.data import ImageConfig
from gengen.data.image.decode import decode
from gengen.data.sources.base import Source, source_for
from gengen.data.sources.skips import Skips

HELD_OUT = ("validation", "val", "test")  # names of the folder or split that is held out; the first that is there


@dataclass(frozen=True)
class Thing:
    """One thing in a picture: what may be asked for of it by words, and where it is."""

    attributes: Mapping[str, str] = field(default_factory=dict)
    """Attribute -> value, such as {"shape": "heart", "colour": "red"}. Two or more together are a combination."""
    centre: tuple[float, float] | None = None
    """(x, y) of its middle from the top left corner, in shares of the side; None where it is not known."""


@dataclass(frozen=True)
class Picture:
    pixels: Tensor  # (C, R, R) uint8
    label: str | None = None
    captions: tuple[str, ...] = ()
    """What it shows in words, the plainest first; training draws one of them anew each time."""
    things: tuple[Thing, ...] = ()
    category: str = ""
    """What kind of request its captions are, by which judges report: "colour", "position", ...; "" = none."""
    group: str | None = None
    """Pictures of one group are never divided between training and validation."""
    split: str | None = None
    """train or val, where the source comes divided; what is held out comes first."""


def image_source(config: ImageConfig) -> Source[Picture]:
    """The source of a config."""
    return source_for("image", config)


def decode_or_skip(file: Path | BinaryIO, config: ImageConfig, skips: Skips, where: str) -> Tensor | None:
    """Return the pixels of a file, (C, R, R) uint8; None where it cannot be read, which is counted."""
    try:
        pixels = decode(file, config.resolution, config.channels)
    except ValueError as error:
        skips.skip("image", where, str(error))
        return None
    skips.good["image"] += 1
    return pixels


def captions_in(text: object) -> tuple[str, ...]:
    """Return the captions in a row's field "text": a string, a list of strings, or null. Blank ones are left out.
    Raises ValueError for anything else."""
    found = [] if text is None else text if isinstance(text, list) else [text]
    texts: list[str] = []
    for caption in found:
        if not isinstance(caption, str):
            where = "a list with " * isinstance(text, list)
            raise ValueError(f"'text' holds {where}{type(caption).__name__}, not a string or a list of strings")
        caption.encode()  # JSON can spell half a surrogate pair, which no UTF-8 can hold: a UnicodeEncodeError
        texts += [caption] if caption.strip() else []
    return tuple(dict.fromkeys(texts))


def composed(name: str) -> str:
    """Return a name in composed characters: file systems and archives write é as one or as two, which look alike."""
    return unicodedata.normalize("NFC", name)
