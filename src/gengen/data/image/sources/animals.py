"""Filled silhouettes of ten animals, out of two serialized arrays that are read and never run."""

import re
from collections.abc import Iterator
from pickletools import genops  # lists the opcodes of a stream; it runs none of them
from typing import Any

import numpy as np

from gengen.data.image.sources.archives import ArchivedPictures
from gengen.data.image.sources.base import Picture
from gengen.data.sources.skips import Skips
from gengen.data.sources.wheels import gunzip
from gengen.errors import UserError
from gengen.io import Say

ANIMALS = ["bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra"]
MEMBER = "animal_shape_mnist/data/Animal Shape/animal_{}_version_3.gz"


class Animals(ArchivedPictures):
    """Sorted by class."""

    packages = ("animal_shape_mnist",)

    def read(self, skips: Skips, say: Say) -> Iterator[Picture]:
        with self.archive("animal_shape_mnist", say) as opened:
            images = array_of(gunzip(opened.read(MEMBER.format("data"))))
            labels = array_of(gunzip(opened.read(MEMBER.format("label"))))
        yield from self.framed(images, [ANIMALS[i] for i in labels])


OPCODES = {
    "PROTO", "FRAME", "MEMOIZE", "STACK_GLOBAL", "MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "BUILD",
    "STOP", "BINGET", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "SHORT_BINUNICODE",
    "SHORT_BINBYTES", "BINBYTES",
}  # fmt: skip
NAMES = [r"numpy\.(_core|core)\.multiarray", "_reconstruct", "numpy", "ndarray", "dtype", "(u1|i8)", "[|<]"]


def array_of(stream: bytes) -> np.ndarray:
    """Return the numpy array in a serialized stream, read off the list of its opcodes: nothing is called, whatever the
    stream names.

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
