"""From files, words and tensors to what an edit starts from: a picture, and a mask of what of it is open."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gengen.data.image.decode import one_line_errors, plain, square, upright
from gengen.errors import UserError, did_you_mean

PictureLike = Tensor | Path | str | BytesIO
"""A picture: a file, its bytes, or uint8 (C, H, W)."""
MaskLike = Tensor | Path | str | BytesIO
"""What of a picture is open, that is to be drawn anew: a file or its bytes, white where it is; bool or uint8 (H, W),
other than 0 where it is; or a word or a box, as `EditSettings.mask` says.
"""
WORDS = {  # the box x0, y0, x1, y1 in quarters of the picture
    "left": (0, 0, 2, 4),
    "right": (2, 0, 4, 4),
    "top": (0, 0, 4, 2),
    "bottom": (0, 2, 4, 4),
    "center": (1, 1, 3, 3),
}
OPEN = 128  # of 255: what is at least so white in a mask is open


@dataclass(frozen=True)
class Picture:
    """A picture as a model sees it. pixels: uint8 (C, R, R), the centre square of what was given, scaled. size: width
    and height of what was given. note: what was done to it, in a line; "" = nothing.
    """

    pixels: Tensor
    size: tuple[int, int]
    note: str = ""


def read_picture(given: PictureLike, resolution: int, channels: int) -> Picture:
    """Return a picture as a model of these dimensions sees it. Raises UserError for what is no picture."""
    if isinstance(given, Tensor):
        pixels = checked(given, channels)
        size = (pixels.shape[2], pixels.shape[1])
        whole = Image.fromarray(pixels[0].numpy() if channels == 1 else pixels.permute(1, 2, 0).numpy())
        done: list[str] = []
        name = "image"
    else:
        name = "image" if isinstance(given, BytesIO) else f"image={given}"
        try:
            with one_line_errors():
                image = upright(given)
                done = ["on white"] if image.has_transparency_data else []
                done += ["in 8 bits"] if image.mode.startswith("I") else []
                whole, size = plain(image, channels), image.size
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
    if size != (resolution, resolution):
        part = "its centre square" if size[0] != size[1] else "it"
        done = [f"{size[0]} x {size[1]} pixels, of which {part} is drawn at {resolution} x {resolution}", *done]
        return Picture(square(whole, resolution), size, f"{name}: {', '.join(done)}")
    return Picture(square(whole, resolution), size, f"{name}: taken {', '.join(done)}" if done else "")


def checked(pixels: Tensor, channels: int) -> Tensor:
    """Return a tensor that is a picture, on the CPU. Raises UserError for any other."""
    if pixels.dtype != torch.uint8 or pixels.dim() != 3 or len(pixels) != channels or not pixels.numel():
        shape = tuple(pixels.shape)
        raise UserError(f"image: a tensor of {pixels.dtype} {shape} is none; uint8 ({channels}, height, width) is")
    return pixels.cpu()


def read_mask(given: MaskLike, size: tuple[int, int], resolution: int) -> Tensor:
    """Return what is open of the picture that was given in this size (width, height): bool (R, R), the centre square
    scaled as the picture's is. A pixel is open if any that fell into it is.

    Raises UserError for what is no mask, of another size, or leaves nothing to draw or nothing to keep.
    """
    if isinstance(given, str) and given in WORDS:
        x0, y0, x1, y1 = WORDS[given]
        quarter = torch.arange(resolution) * 4 // resolution
        rows, columns = (quarter >= y0) & (quarter < y1), (quarter >= x0) & (quarter < x1)
        return rows[:, None] & columns
    is_open = whole_mask(given, size)
    found = (is_open.shape[1], is_open.shape[0])
    if found != size:
        is_as = f"the mask is {found[0]} x {found[1]} pixels, the image {size[0]} x {size[1]}"
        raise UserError(f"{name_of(given)}: {is_as}; draw it on a copy of the image")
    from torchvision.transforms.v2.functional import center_crop  # takes seconds to import

    cropped = center_crop(is_open[None].float(), [min(size)])
    scaled: Tensor = F.adaptive_max_pool2d(cropped, resolution)[0] > 0
    if scaled.all() or not scaled.any():
        missing = "nothing of the image is kept" if scaled.any() else "nothing is to be drawn"
        raise UserError(f"{name_of(given)}: {missing}; a mask is white where the image is drawn anew, else black")
    return scaled


def name_of(given: MaskLike) -> str:
    return "mask" if isinstance(given, Tensor | BytesIO) else f"mask={given}"


def whole_mask(given: MaskLike, size: tuple[int, int]) -> Tensor:
    """Return a mask as it was given, bool (H, W)."""
    if isinstance(given, Tensor):
        if given.dtype not in (torch.bool, torch.uint8) or given.dim() != 2:
            raise UserError(f"mask: a tensor of {given.dtype} {tuple(given.shape)} is none; bool (height, width) is")
        return given.cpu() != 0
    if isinstance(given, str) and given.replace(",", "").replace("-", "").replace(" ", "").isdecimal():
        return box(given, size)
    if not isinstance(given, BytesIO) and not Path(given).exists():
        near = did_you_mean(str(given), WORDS, all_if_none=False)
        words = ", ".join(WORDS)
        raise UserError(f"mask={given}: no such file, nor one of {words}, nor a box x0,y0,x1,y1{near}")
    try:
        with one_line_errors():
            return torch.from_numpy(np.array(plain(upright(given), channels=1))) >= OPEN
    except ValueError as error:
        raise UserError(f"{name_of(given)}: {error}") from None


def box(text: str, size: tuple[int, int]) -> Tensor:
    """Return the mask of a box "x0,y0,x1,y1" in pixels, the first within, the last without: bool (H, W)."""
    width, height = size
    try:
        x0, y0, x1, y1 = map(int, text.split(","))
    except ValueError:
        raise UserError(f"mask={text}: a box is four whole numbers, x0,y0,x1,y1") from None
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise UserError(
            f"mask={text}: a box x0,y0,x1,y1 lies within the image, 0 <= x0 < x1 <= {width}, 0 <= y0 < y1 <= {height}"
        )
    is_open = torch.zeros(height, width, dtype=torch.bool)
    is_open[y0:y1, x0:x1] = True
    return is_open


def open_cells(is_open: Tensor, side: int) -> Tensor:
    """Return a mask of pixels (R, R) as one of cells (side, side): a cell is open if any of its pixels is."""
    return F.adaptive_max_pool2d(is_open[None].float(), side)[0] > 0
