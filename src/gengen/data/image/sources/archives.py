"""Pictures in pinned packages."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from gengen.config.data import ImageConfig
from gengen.data.image.sources.base import Picture
from gengen.data.sources.wheels import open_archive, pin, wheel
from gengen.io import Say


class ArchivedPictures:
    """What sources in pinned packages have in common."""

    packages: ClassVar[tuple[str, ...]]
    """Names in data/wheels.txt."""

    def __init__(self, config: ImageConfig):
        self.config = config

    def describe(self) -> tuple[str, str]:
        return "wheel " + ", ".join(f"{name} {pin(name).version}" for name in self.packages), self.config.licence

    def facts(self) -> dict[str, Any]:
        return {"wheels": [pin(name).line.split() for name in self.packages]}

    def archive(self, package: str, say: Say) -> zipfile.ZipFile:
        return open_archive(wheel(package, Path(self.config.dir) / "wheels", say))

    def framed(self, images: np.ndarray, labels: list[str]) -> Iterator[Picture]:
        """Yield pictures in the middle of a black square of 32, scaled from there to the config's resolution.

        images: (N, 28, 28) uint8, black around.
        """
        resolution, channels = self.config.resolution, self.config.channels
        pixels = torch.from_numpy(np.pad(images, ((0, 0), (2, 2), (2, 2))))[:, None]  # (N, 1, 32, 32)
        if resolution != 32:
            from torchvision.transforms.v2 import functional

            pixels = functional.resize(pixels, [resolution] * 2, antialias=True)
        for image, label in zip(pixels.expand(-1, channels, -1, -1), labels, strict=True):
            yield Picture(image, label)
