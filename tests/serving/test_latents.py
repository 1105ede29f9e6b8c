"""Paths, planes and reconstructions over HTTP are the library's, pixel for pixel."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gengen
from gengen.generation.image.files import to_uint8
from gengen.serving.app import Application
from helpers.image_stand_ins import png
from helpers.served import Test, pixels

Served = Callable[[Test], None]


def stacked(rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.stack([pixels(row["b64_json"]) for row in rows])


def test_a_path_is_that_between_two_draws(served: Served, image_runs: Path) -> None:
    generator: Any = gengen.load(image_runs / "vae")
    expected = generator.interpolate(*generator.prior([4, 9], 3), 5)

    async def test(post: Any, application: Application) -> None:
        asked = {"model": "vae", "seed": 3, "first": 4, "to": 9, "steps": 5}
        rows = (await post("/gengen/v1/latent/path", **asked)).json()["data"]
        assert torch.equal(stacked(rows), expected) and not torch.equal(expected[0], expected[-1])
        assert [row["gengen"]["at"] for row in rows] == [0, 0.25, 0.5, 0.75, 1]
        for bad in ({"steps": 1}, {"steps": 33}, {"to": -1}, {"model": "gan"}):
            answer = await post("/gengen/v1/latent/path", **asked | bad)
            assert answer.status_code == 400 and answer.json()["error"]["param"] in bad, bad

    served(test)


def test_a_plane_moves_two_channels_and_nothing_else(served: Served, image_runs: Path) -> None:
    """A corner is what `deviations` of these channels give; the first channel changes down."""
    generator: Any = gengen.load(image_runs / "vae")
    model = generator.model
    corner = generator.prior([2], 1)
    for channel, deviations in ((1, 3.0), (0, -3.0)):
        corner[:, channel] = deviations * model.latent_std[channel] + model.latent_mean[channel]

    async def test(post: Any, application: Application) -> None:
        asked = {"model": "vae", "seed": 1, "first": 2, "channels": [1, 0], "steps": 3}
        found = (await post("/gengen/v1/latent/plane", **asked)).json()
        assert found["deviations"] == [-3, 0, 3] and [len(row) for row in found["rows"]] == [3, 3, 3]
        assert torch.equal(pixels(found["rows"][2][0]), to_uint8(generator.decode(corner))[0])
        for bad in ([0, 0], [0], [0, 7], [True, 0], "01"):
            answer = await post("/gengen/v1/latent/plane", **asked | {"channels": bad})
            assert answer.status_code == 400 and answer.json()["error"]["param"] == "channels", bad

    served(test)


def test_a_picture_is_reconstructed_as_the_library_does(served: Served, image_runs: Path) -> None:
    generator: Any = gengen.load(image_runs / "vae")
    image = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    sent = base64.b64encode(png(image)).decode()

    async def test(post: Any, application: Application) -> None:
        found = (await post("/gengen/v1/reconstruct", model="vae", image=sent)).json()
        original = torch.from_numpy(image)[None]
        assert torch.equal(pixels(found["original"]), original)
        assert torch.equal(pixels(found["b64_json"]), generator.reconstruct(original[None])[0])
        for bad in ({}, {"image": "/etc/passwd"}, {"image": "AAAA"}, {"image": 3}):
            answer = await post("/gengen/v1/reconstruct", model="vae", **bad)
            assert answer.status_code == 400 and answer.json()["error"]["param"] == "image", bad

    served(test)


def test_the_strongest_channels_are_those_of_a_traversal(served: Served, image_runs: Path) -> None:
    generator: Any = gengen.load(image_runs / "vae")
    expected = generator.traverse(generator.prior([1], 2)[0], 8, 2)[1]

    async def test(post: Any, application: Application) -> None:
        asked = {"model": "vae", "seed": 2, "first": 1}
        assert (await post("/gengen/v1/latent", **asked, channels=2)).json()["channels"] == expected
        assert "channels" not in (await post("/gengen/v1/latent", **asked)).json()

    served(test)


def test_a_walk_of_a_gan_is_the_library_s(served: Served, image_runs: Path) -> None:
    """On the great arc between two samples, all of one class, each with its logit."""
    generator: Any = gengen.load(image_runs / "gan")
    z = 0.7 * generator.latents([3, 8], 5)
    expected = generator.interpolate(z[0], z[1], 1, 4)

    async def test(post: Any, application: Application) -> None:
        asked = {"model": "gan", "prompt": "dog", "n": 4, "seed": 5, "first": 3, "to": 8, "truncation": 0.7}
        rows = (await post("/gengen/v1/gan", **asked)).json()["data"]
        assert torch.equal(stacked(rows), expected) and len({row["logit"] for row in rows}) == 4
        assert [row["gengen"]["class"] for row in rows] == ["dog"] * 4
        answer = await post("/gengen/v1/gan", **asked | {"n": 1})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "n"

    served(test)
