"""Images as files: a grid, the single files, an animation, and a JSON that says how each was drawn."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gengen.checkpoints.files import replace_bytes, replace_text, to_json


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1] -> the nearest of 0 .. 255: x = v / 127.5 - 1 comes back as v. Out of range is clipped.

    Every image that is written or measured goes through here: a network's output that was never rounded is another image.
    """
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """0 .. 255 -> [-1, 1], fp32."""
    return images.float() / 127.5 - 1


def grid(images: Tensor, columns: int | None = None, gap: int = 2) -> Tensor:
    """(N, C, H, W) uint8 -> (C, H', W'), row by row, on a mid-grey ground. columns: null = about square."""
    n, c, h, w = images.shape
    columns = columns or max(1, round(n**0.5))
    rows = -(-n // columns)
    sheet = torch.full((c, rows * (h + gap) + gap, columns * (w + gap) + gap), 128, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        sheet[:, top : top + h, left : left + w] = image
    return sheet


def enlarged(image: Tensor, least: int = 64) -> Tensor:
    """(..., H, W) with each pixel repeated until the shorter side has `least`: what is tiny can be looked at."""
    times = max(1, -(-least // min(image.shape[-2:])))
    return image.repeat_interleave(times, -1).repeat_interleave(times, -2)


def picture(image: Tensor) -> Image.Image:
    """(C, H, W) uint8, C = 1 or 3, as a PIL image."""
    array = image.cpu().numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))


def write_png(path: Path, image: Tensor) -> None:
    """(C, H, W) uint8 to a file, in one step."""
    data = io.BytesIO()
    picture(image).save(data, "png")
    replace_bytes(path, data.getvalue())


def write_gif(path: Path, frames: Sequence[Tensor], seconds: float = 3.0) -> None:
    """Frames (C, H, W) uint8 as an endless animation that stays on its last frame for a while."""
    first, *rest = [picture(frame) for frame in frames]
    each = round(1000 * seconds / len(frames))
    data = io.BytesIO()
    first.save(data, "gif", save_all=True, append_images=rest, duration=[each] * len(rest) + [1500], loop=0)
    replace_bytes(path, data.getvalue())


def write_pictures(
    folder: Path, images: Tensor, facts: Sequence[dict[str, Any]], columns: int | None = None, frames: Sequence[Tensor] = ()
) -> None:
    """grid.png, 00000.png ..., samples.json with a dict an image; and denoising.gif of `frames`, each (N, C, H, W) uint8."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        write_png(folder / f"{i:05}.png", image)
    write_png(folder / "grid.png", grid(enlarged(images), columns))
    if frames:
        write_gif(folder / "denoising.gif", [grid(enlarged(frame), columns) for frame in frames])
    entries = [{"file": f"{i:05}.png"} | fact for i, fact in enumerate(facts)]
    replace_text(folder / "samples.json", to_json(entries))
