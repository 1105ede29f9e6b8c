"""What an autoencoder decodes between, around and for pictures: paths, planes, reconstructions."""

from typing import Any

import torch

from gengen.data.image.decode import decode
from gengen.generation.image.autoencoder import SPAN, AutoencoderGenerator
from gengen.serving.answers import encoded
from gengen.serving.family_protocol import PathRequest, PlaneRequest, ReconstructRequest
from gengen.serving.image_runs import ServedImages, base64_png
from gengen.serving.protocol import invalid


def on_the_way(run: ServedImages, generator: AutoencoderGenerator, asked: PathRequest) -> bytes:
    """Return the images from one draw of the prior to another, on the great arc."""
    a, b = generator.prior([asked.first, asked.to], asked.seed)
    ends: dict[str, Any] = {"from": asked.first, "to": asked.to, "seed": asked.seed}
    said = [ends | {"at": i / (asked.steps - 1)} for i in range(asked.steps)]
    images = generator.interpolate(a, b, asked.steps).cpu()
    rows = [{"b64_json": base64_png(run, *row), "gengen": row[1]} for row in zip(images, said, strict=True)]
    return encoded({"data": rows})


def on_a_plane(run: ServedImages, generator: AutoencoderGenerator, asked: PlaneRequest) -> bytes:
    """Return a draw with two channels moved: rows of images, and the deviations of the rows and the columns."""
    latents = generator.prior([asked.first], asked.seed)[0]
    if beyond := [z for z in asked.channels if z >= len(latents)]:
        raise invalid("channels", f"channels: there is no {beyond[0]}; the latent has 0 to {len(latents) - 1}")
    down, across = asked.channels
    images = generator.plane(latents, (down, across), asked.steps).cpu()
    said = {"seed": asked.seed, "index": asked.first, "channels": asked.channels}
    rows = [[base64_png(run, image, said) for image in row] for row in images]
    return encoded({"rows": rows, "deviations": torch.linspace(-SPAN, SPAN, asked.steps).tolist(), "gengen": said})


def reconstructed(run: ServedImages, generator: AutoencoderGenerator, asked: ReconstructRequest) -> bytes:
    """Return what is left of a picture after its latents, the picture as the model took it, and the root of their mean
    squared difference, of 255."""
    c = generator.config
    assert asked.image is not None and c.resolution and c.channels, "check; a trained model has them"
    try:
        original = decode(asked.image, c.resolution, c.channels)
    except ValueError as error:
        raise invalid("image", f"image: {error}") from None
    image = generator.reconstruct(original[None])[0].cpu()
    answer = {
        "b64_json": base64_png(run, image, {"what": "reconstruction"}),
        "original": base64_png(run, original, {"what": "original"}),
        "shape": list(generator.model.latent_shape),
        "error": float((image.double() - original.double()).square().mean().sqrt()),
    }
    return encoded(answer)
