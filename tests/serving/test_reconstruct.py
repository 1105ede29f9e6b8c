"""What an autoencoder leaves of a picture, over HTTP: the library's reconstruction."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gengen.data.image.decode import decode
from gengen.generation.image.autoencoder import AutoencoderGenerator
from gengen.generation.load import load_as
from gengen.serving.app import Application
from helpers.served import during, pixels, served_here, write_image_runs


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_image_runs(folder)
    return folder


def png(side: int) -> bytes:
    drawn, file = np.random.default_rng(0).integers(0, 256, (side, side + 6, 3), np.uint8), io.BytesIO()
    Image.fromarray(drawn).save(file, "png")
    return file.getvalue()


def test_it_is_the_library_s(pictures: Path) -> None:
    """Of any size and colours: the picture is brought to the model's first, and the answer shows it so."""
    given = png(12)
    image = decode(io.BytesIO(given), 8, 1)
    generator = load_as(AutoencoderGenerator, str(pictures / "vae"), device="cpu")
    expected = generator.reconstruct(image[None])[0]
    difference = (expected.double() - image.double()).square().mean().sqrt()

    async def test(post: Any, application: Application) -> None:
        body = {"model": "vae", "image": base64.b64encode(given).decode()}
        found = (await post("/gengen/v1/reconstruct", **body)).json()
        assert torch.equal(pixels(found["b64_json"]), expected) and torch.equal(pixels(found["original"]), image)
        assert found["shape"] == list(generator.encode(torch.zeros(1, 1, 8, 8))[0].shape[1:])
        assert found["error"] == pytest.approx(float(difference)) and found["error"] > 0

    during(served_here(pictures, names=("vae",)), test)


def test_what_is_no_picture_of_a_run_that_has_latents(pictures: Path) -> None:
    picture = base64.b64encode(png(12)).decode()
    cut = base64.b64encode(png(12)[:-40]).decode()

    async def test(post: Any, application: Application) -> None:
        for body, param in [
            ({"model": "vae"}, "image"),
            ({"model": "vae", "image": "/etc/passwd"}, "image"),
            ({"model": "vae", "image": cut}, "image"),
            ({"model": "gan", "image": picture}, "model"),
        ]:
            answer = await post("/gengen/v1/reconstruct", **body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text

    during(served_here(pictures, names=("vae", "gan")), test)
