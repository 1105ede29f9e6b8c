"""How much a diffusion model of pictures listens to captions, by noise level: its error with each picture's own
caption, and by how much it is larger with another picture's, and with none.

    python benchmarks/listening.py runs/WORDS ... [images=256]

A loss hardly shows it: at low noise the picture itself says what it is, and most of the loss is there.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from turns import arguments

from gengen.checkpoints.migrate import read_config
from gengen.config.data import DataConfig
from gengen.config.schema import build
from gengen.data.image.prepare import PreparedImages, prepare_for
from gengen.data.prepared import PrepareRequest
from gengen.diffusion.parameterizations import network_inputs, target
from gengen.generation.diffusion import path_of
from gengen.generation.image.diffusion import ImageGenerator
from gengen.generation.load import find_checkpoint, generator_of

NOISE = (0.3, 0.5, 0.7, 0.9, 0.98)  # shares of noise, sigma / (alpha + sigma)


@torch.no_grad()
def error(generator: ImageGenerator, images: Tensor, share: float, captions: Tensor | None) -> float:
    """Return the mean squared error at a noise level, with always the same noise; captions: None = empty ones."""
    c, path = generator.config, path_of(generator.config)
    assert c.sigma_data
    eps = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    t = path.time_at(torch.full((len(images),), share / (1 - share), dtype=torch.float64)).float()
    x_t, level = network_inputs(path.add_noise(images, eps, t), t, path, c.sigma_data)
    wanted = target(c.prediction, images, eps, t, path, c.sigma_data)
    return float((generator.model(x_t, level, text=captions) - wanted).square().mean())


def main(runs: list[str], images: int) -> None:
    print(f"{'error, own caption; more with another; with none':60}" + "".join(f"{share:>24}" for share in NOISE))
    for run in map(Path, runs):
        directory = find_checkpoint(str(run), run.parent, "latest", print)
        generator, tree = generator_of(directory), read_config(directory)
        assert isinstance(generator, ImageGenerator) and generator.config.text and generator.codec is None
        request = PrepareRequest(build(DataConfig, tree["data"]), generator.config, print)
        prepared = prepare_for(request)  # type: ignore[arg-type]
        assert isinstance(prepared, PreparedImages)
        some = torch.linspace(0, len(prepared.train.images) - 1, images).long()
        batch = prepared.batch("train", some)
        own = batch["captions"][:, 0]
        cells = []
        for share in NOISE:
            right, other, none = (error(generator, batch["images"], share, c) for c in (own, own.roll(37, 0), None))
            cells.append(f"{right:10.4f} {other - right:+.4f} {none - right:+.4f}")
        print(f"{run!s:60}" + "".join(cells))


if __name__ == "__main__":
    asked, rest = arguments(sys.argv[1:], images=256)
    main(rest, **asked)
