"""What a file of any kind becomes, and what is refused."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from gengen.data.image import decode as image_files
from gengen.data.image.decode import decode

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return io.BytesIO(file.getvalue())


def block(colour, side=8, mode="RGB"):
    return Image.new(mode, (side, side), colour)


def of_colour(pixels, colour, tolerance=0):
    want = torch.tensor(colour, dtype=torch.uint8).view(-1, 1, 1).expand(pixels.shape)
    torch.testing.assert_close(pixels, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "file, colour, tolerance",
    [
        (saved(block(RED)), RED, 0),
        (saved(block(RED), "JPEG", quality=95), RED, 3),
        (saved(block(RED), "WEBP", lossless=True), RED, 0),
        (saved(block(RED).quantize(4)), RED, 0),  # a palette
        (saved(block(77, mode="L")), (77, 77, 77), 0),
        (saved(block(1, mode="1")), WHITE, 0),
        (saved(Image.fromarray(np.full((8, 8), 257 * 51, np.uint16))), (51, 51, 51), 0),  # 16 bits
        (saved(block((0, 255, 255, 0), mode="CMYK"), "JPEG", quality=95), RED, 3),
        (saved(block((0, 0, 0, 0), mode="RGBA")), WHITE, 0),  # transparent black is white
        (saved(block((255, 0, 0, 51), mode="RGBA")), (255, 204, 204), 1),
        (saved(block((0, 0), mode="LA")), WHITE, 0),
        (saved(block(RED), transparency=RED), WHITE, 0),
        (saved(block(RED).quantize(4), transparency=0), WHITE, 0),
        (saved(block(RED), "PNG", save_all=True, append_images=[block(BLUE)]), RED, 0),  # the first frame
        (saved(block(RED), "WEBP", save_all=True, append_images=[block(BLUE)], lossless=True), RED, 0),
    ],
)
def test_every_mode_is_brought_to_rgb(file, colour, tolerance):
    of_colour(decode(file, 4, 3), colour, tolerance)


def test_grey_and_size():
    pixels = decode(saved(block(GREEN, 20)), 16, 1)
    assert pixels.shape == (1, 16, 16) and pixels.dtype == torch.uint8 and type(pixels) is torch.Tensor
    of_colour(pixels, (150,))  # 0.587 * 255, ITU-R 601


def test_the_centre_square_is_scaled_with_antialiasing():
    stripes = np.zeros((40, 60, 3), np.uint8)
    stripes[:, 10:50:2] = 255  # in the square: white, black, white, ... one pixel each
    stripes[:, :10] = stripes[:, 50:] = RED
    inner = decode(saved(Image.fromarray(stripes)), 10, 3)[:, :, 1:-1].float()
    assert (inner - 127.5).abs().max() < 20 and (inner[0] == inner[1]).all()  # grey, and nothing red


def test_orientation_is_honoured():
    image = block(RED, 8)
    image.paste(BLUE, (0, 0, 8, 4))  # blue above red; EXIF says: turn it by 180 degrees
    exif = Image.Exif()
    exif[0x0112] = 3
    for kind in ("PNG", "WEBP"):
        pixels = decode(saved(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})), 8, 3)
        of_colour(pixels[:, :4], RED)
        of_colour(pixels[:, 4:], BLUE)


def header(width, height):
    """The start of a PNG that promises these pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return io.BytesIO(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IDAT"
    )


@pytest.mark.parametrize(
    "width, height", [(50_000, 50_000), (10_000, 9_500), (8_001, 8_000)]
)  # Pillow: an error, a warning, nothing
def test_a_bomb_is_refused_by_its_header(width, height):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"64,000,000"):
        decode(header(width, height), 16, 3)
    assert time.perf_counter() - start < 0.5


def test_a_strip_does_not_become_a_giant():
    of_colour(
        decode(saved(Image.new("RGB", (20_000, 1), RED)), 64, 3), RED
    )  # scaled by its short side: 64 x 1,280,000 pixels


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n"


@pytest.mark.parametrize(
    "raw, why",
    [
        (EPS, "no PNG, JPEG, WEBP image"),
        (saved(block(RED), "GIF").getvalue(), "no PNG, JPEG, WEBP image"),
        (b"", "no PNG, JPEG, WEBP image"),
        (b"\x89PNG\r\n\x1a\n", "."),
        (saved(Image.effect_noise((64, 64), 90)).getvalue()[:2000], "truncated"),
        (saved(Image.effect_noise((64, 64), 90), "JPEG").getvalue()[:1000], "truncated"),
        (saved(block(RED, 64)).getvalue().replace(b"IDAT", b"IDAU"), "."),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, raw, why):
    (tmp_path / "named.png").write_bytes(raw)
    with pytest.raises(ValueError, match=why) as error:
        decode(tmp_path / "named.png", 16, 3)
    assert str(error.value) and "\n" not in str(error.value)


def test_without_the_list_of_formats_an_eps_would_be_opened(tmp_path, monkeypatch):
    (tmp_path / "named.png").write_bytes(EPS)
    monkeypatch.setattr(image_files, "FORMATS", None)  # the bug put back
    with Image.open(tmp_path / "named.png", formats=image_files.FORMATS) as image:
        assert image.format == "EPS"  # decoding it would start Ghostscript


def test_content_decides_not_the_name(tmp_path):
    (tmp_path / "named.png").write_bytes(saved(block(RED), "JPEG", quality=95).getvalue())
    of_colour(decode(tmp_path / "named.png", 8, 3), RED, 3)
