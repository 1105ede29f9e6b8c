"""The invisible mark of pictures: its bounds, what it survives, what chance finds; and what a file says of itself."""

import io
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from gengen.cli import main
from gengen.generation.image import mark as marking
from gengen.generation.image.mark import coefficients, detect, from_coefficients, marked, signs
from gengen.generation.image.provenance import SOURCE_TYPE, read_provenance
from gengen.generation.secret_key import read_key

DIGITAL_SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
KEY, OTHER = b"k" * 32, b"o" * 32


def made_up(seed: int, side: int = 64, channels: int = 3) -> np.ndarray:
    """A picture with the spectrum of photographs, amplitude 1 / frequency, and a disc with a hard edge; uint8."""
    draw = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij"))
    spectrum = np.fft.fft2(draw.standard_normal((channels, side, side))) / np.maximum(frequency, 1 / side)
    noise = np.fft.ifft2(spectrum).real
    y, x = np.mgrid[:side, :side] / side - draw.uniform(0.3, 0.7, (2, 1, 1))
    inside = (np.hypot(y, x) < draw.uniform(0.1, 0.3)) * draw.uniform(-80, 80, (channels, 1, 1))
    return (128 + 40 * noise / noise.std() + inside).clip(0, 255).astype(np.uint8)


def as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "jpeg", quality=quality)
    return np.asarray(Image.open(file)).transpose(2, 0, 1)


def test_coefficients_are_those_of_the_orthonormal_dct() -> None:
    place, plane = np.arange(8), np.zeros((8, 8))
    plane += 5 * np.outer(np.cos(np.pi * 3 * (2 * place + 1) / 16), np.cos(np.pi * (2 * place + 1) / 16)) / 4
    band = coefficients(plane)[0, 0]
    at = [tuple(pair) for pair in marking.BAND.tolist()].index((3, 1))
    np.testing.assert_allclose(band, 5 * (np.arange(len(band)) == at), atol=1e-12)
    odd = np.random.default_rng(0).standard_normal((2, 3, len(marking.BAND)))
    back = from_coefficients(odd, (17, 30))  # what is no whole block stays as it is
    np.testing.assert_allclose(coefficients(back), odd, atol=1e-12)
    assert not back[16:].any() and not back[:, 24:].any()


@pytest.mark.parametrize("channels", [1, 3])
def test_no_value_changes_by_more_than_two_and_colours_stay(channels: int) -> None:
    image = made_up(0, channels=channels)
    change = marked(image, KEY).astype(int) - image
    assert abs(change).max() == 2 and (change == change[:1]).all()
    assert 10 * np.log10(255**2 / (change**2).mean()) > 42.1
    assert (marked(image, KEY) == marked(image, KEY)).all() and (marked(image, OTHER) != marked(image, KEY)).any()


def test_a_marked_picture_is_found_by_its_key_alone_and_after_jpeg() -> None:
    """At a false-alarm rate of 1 in 1000; the bars are of clean files and of JPEG at 90."""
    pictures = [marked(made_up(seed), KEY) for seed in range(60)]
    clean = np.array([detect(picture, KEY).p_value for picture in pictures])
    jpeg = np.array([detect(as_jpeg(picture, 90), KEY).p_value for picture in pictures])
    assert (clean < 1e-3).mean() >= 0.99 and (jpeg < 1e-3).mean() >= 0.9
    assert min(detect(picture, OTHER).p_value for picture in pictures) > 1e-4


def test_black_and_white_are_marked_by_what_may_still_change() -> None:
    for shade in (0, 255):
        picture = marked(np.full((3, 64, 64), shade, np.uint8), KEY)
        assert detect(picture, KEY).verdict == detect(as_jpeg(picture, 90), KEY).verdict == "marked"


def test_unmarked_pictures_score_as_chance_would() -> None:
    """Whatever the picture, for the key is independent of it: 10 pictures, 60 keys each, z has mean 0, deviation 1."""
    found = [detect(made_up(seed), key.to_bytes(32)) for seed in range(10) for key in range(60)]
    z, p = np.array([e.z for e in found]), np.array([e.p_value for e in found])
    assert abs(z.mean()) < 0.12 and abs(z.std() - 1) < 0.09 and (p < 1e-3).sum() <= 3
    flat = detect(np.full((1, 64, 64), 77, np.uint8), KEY)
    assert flat.counted == 0 and flat.verdict == "too little"


def test_a_block_has_its_signs_in_pictures_of_any_size() -> None:
    assert (signs(KEY, 3, 4) == signs(KEY, 9, 9)[:3, :4]).all()
    picture = marked(made_up(5, 96), KEY)
    assert detect(picture[:, :64, :72], KEY).verdict == "marked"  # cut off below and at the right
    assert abs(detect(picture[:, 3:, 3:], KEY).z) < 4  # and at the left and above, which is not promised


# --- the commands


def sampled(run: Path, folder: Path, *settings: str) -> list[Path]:
    assert (
        main(["sample", str(run), "n=2", "steps=2", "seed=7", "prompt=a red circle", f"out={folder}", *settings]) == 0
    )
    return sorted(folder.glob("0*.png"))


def test_a_file_says_how_it_was_drawn(text_run: Path, tmp_path: Path) -> None:
    first, second = sampled(text_run, tmp_path / "a")
    record, by_model = read_provenance(second)
    manifest = json.loads((text_run / "checkpoints" / "step-000000020" / "manifest.json").read_text())
    assert record is not None and by_model
    assert (record["run"], record["step"], record["sha256"]) == ("text", 20, manifest["sha256"])
    assert (record["seed"], record["index"], record["settings"]["steps"]) == (7, 1, 2)
    assert record["settings"]["prompt"] == ["a red circle"] and str(tmp_path) not in second.read_bytes().decode(
        "latin"
    )
    assert read_provenance(tmp_path / "a" / "grid.png")[1]
    with Image.open(first) as image:
        description = ElementTree.fromstring(image.info["xmp"]).find(".//{*}Description")
    assert description is not None and description.attrib[DIGITAL_SOURCE_TYPE] == SOURCE_TYPE
    again = sampled(text_run, tmp_path / "b")
    assert [path.read_bytes() for path in again] == [first.read_bytes(), second.read_bytes()]
    other = sampled(text_run / "checkpoints" / "step-000000020", tmp_path / "c", "checkpoint=10")  # a path goes first
    assert read_provenance(other[0])[0] == read_provenance(first)[0]
    plain = sampled(text_run, tmp_path / "d", "provenance=false")
    assert read_provenance(plain[0]) == (None, False)
    assert (np.asarray(Image.open(plain[0])) == np.asarray(Image.open(first))).all()


def test_sample_marks_pictures_and_detect_finds_them(
    text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What this network draws, noise, leaves the mark no room, but has it; a picture with room is found."""
    key, good = tmp_path / "my.key", tmp_path / "good.png"
    assert main(["detect", f"new_key={key}"]) == 0
    picture = sampled(text_run, tmp_path / "a", f"mark={key}")[0]
    plain = np.asarray(Image.open(sampled(text_run, tmp_path / "b")[0]))
    with Image.open(picture) as image:
        assert (np.asarray(image).transpose(2, 0, 1) == marked(plain.transpose(2, 0, 1), read_key(key))).all()
    assert str(key) not in picture.read_bytes().decode("latin")
    Image.fromarray(marked(made_up(1), read_key(key)).transpose(1, 2, 0)).save(good)
    capsys.readouterr()
    assert main(["detect", f"image={picture}", f"image={good}", f"key={key}"]) == 0
    one, two = capsys.readouterr().out.splitlines()
    assert '"index": 0' in one and "XMP: drawn by a model" in one and "marked: " in two
    with Image.open(picture) as image:
        image.save(tmp_path / "bare.jpg", quality=95)
    assert main(["detect", f"image={tmp_path / 'bare.jpg'}"]) == 0
    assert capsys.readouterr().out.endswith("the file says nothing of where it comes from\n")
    (tmp_path / "no.png").write_bytes(b"GIF89a")
    assert main(["detect", f"image={tmp_path / 'no.png'}"]) == 2
    assert "no PNG, JPEG, WEBP image" in capsys.readouterr().err
