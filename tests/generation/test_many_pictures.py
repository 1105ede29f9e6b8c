"""However many images are asked for, they are drawn a batch at a time, and each is on the disk before the next."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_autoencoder_samples import generator as autoencoder
from test_gan_samples import generator as gan
from test_image import generator as diffusion

from gengen.cli.sample_images import sample_images
from gengen.config.commands import AutoencoderSampling, DiffusionSampling, GANSampling
from gengen.generation.image import files as pictures

HOW = {"steps": 2, "guidance": 1.0, "batch_size": 4}
FAMILIES: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "diffusion": (diffusion, lambda **asked: DiffusionSampling(run="r", **HOW, **asked)),
    "gan": (gan, lambda **asked: GANSampling(run="r", **asked)),
    "vae": (lambda: autoencoder(4), lambda **asked: AutoencoderSampling(run="r", **asked)),
    "gan's paths": (gan, lambda **asked: GANSampling(run="r", what="interpolation", steps=4, **asked)),
    "vae's paths": (autoencoder, lambda **asked: AutoencoderSampling(run="r", what="interpolation", steps=4, **asked)),
}


def read(folder: Path, count: int) -> np.ndarray:
    return np.stack([np.array(Image.open(folder / f"{i:05}.png")) for i in range(count)])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_billion_images_begin_at_once(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All noise and labels were made before the first image, and the first file was written after the last of them.
    What was drawn when it was interrupted is whole, and as it is among few."""
    make, config = FAMILIES[family]
    written, write = itertools.count(), pictures.write_png

    def interrupted(path: Path, image: torch.Tensor, info: PngInfo | None = None) -> None:
        if path.stem != "grid" and next(written) == 6:
            raise KeyboardInterrupt
        write(path, image, info)

    monkeypatch.setattr(pictures, "write_png", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sample_images(make(), config(n=10**9, out=str(tmp_path / "many")), print)
    monkeypatch.setattr(pictures, "write_png", write)
    sample_images(make(), config(n=8, out=str(tmp_path / "few")), print)
    assert np.abs(read(tmp_path / "many", 6).astype(int) - read(tmp_path / "few", 6)).max() <= 1
    many, few = (json.loads((tmp_path / name / "samples.json").read_text()) for name in ("many", "few"))
    assert len(many) == 6 and many == few[:6]
    assert (tmp_path / "many" / "grid.png").exists() and not list((tmp_path / "many").glob(".*"))


@pytest.mark.parametrize("family", ["diffusion", "gan"])
def test_a_grid_shows_the_first_in_whole_rows(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gan: three classes, so rows of three."""
    make, config = FAMILIES[family]
    monkeypatch.setattr(pictures, "SHOWN", 5)
    said: list[str] = []
    assert sample_images(make(), config(n=9, out=str(tmp_path)), said.append).startswith("9 images in")
    shown = 3 if family == "gan" else 5
    assert said == [f"{tmp_path}/grid.png of the first {shown}"]
    first = torch.from_numpy(read(tmp_path, 9))[:, None][:shown]
    expected = pictures.grid(pictures.enlarged(first), 3 if family == "gan" else None)[0]
    assert np.array_equal(np.array(Image.open(tmp_path / "grid.png")), expected.numpy())
