"""One image file -> a square of uint8 pixels. Files come from anyone: what is not plainly a picture is refused."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP")
"""What is read, by its content, whatever its name says; no format that runs a program, such as EPS."""
MAX_PIXELS = 64_000_000


def decode(file: Path | str | BinaryIO, resolution: int, channels: int) -> Tensor:
    """Return the picture (C, R, R) uint8: upright, on white, its centre square scaled to `resolution` pixels a side.

    channels: 1 = grey, 3 = RGB. An animation gives its first frame. A ValueError says in one line what is wrong with
    the file.
    """
    with one_line_errors():
        return square(plain(upright(file), channels), resolution)


def upright(file: Path | str | BinaryIO) -> Image.Image:
    """Return a picture as its file has it, but turned upright. To be called within `one_line_errors`."""
    with Image.open(file, formats=FORMATS) as image:  # reads the header only
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are read")
        return ImageOps.exif_transpose(image)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn whatever is raised by reading a picture into a ValueError of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"its header promises more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise ValueError(f"no {', '.join(FORMATS)} image") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever their formats' layers raise
        raise ValueError((str(error).splitlines() or [""])[0] or type(error).__name__) from None


def plain(image: Image.Image, channels: int) -> Image.Image:
    """Convert to 8-bit grey or RGB; white shows through what is transparent."""
    if image.mode.startswith("I"):  # 16 bits a pixel
        image = Image.fromarray((np.asarray(image, np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def square(image: Image.Image, resolution: int) -> Tensor:
    """Cut out the centre square, (C, R, R) uint8. It is cropped before it is scaled: a strip would become a giant."""
    from torchvision.transforms.v2 import functional  # takes seconds to import, and most commands decode nothing

    pixels = functional.center_crop(functional.to_image(image), [min(image.size)])
    return functional.resize(pixels, [resolution, resolution], antialias=True).as_subclass(torch.Tensor)
