"""A GAN's saved checkpoints against each other: how often the discriminator of one tells the generator of another from
held-out pictures."""

from pathlib import Path

import torch
from torch import Tensor

from gengen.checkpoints import store
from gengen.data.image.prepare import PreparedImages
from gengen.generation.image.files import to_float, to_uint8
from gengen.generation.image.gan import GANGenerator
from gengen.generation.load import generator_of
from gengen.serving.calls import Progress
from gengen.serving.own_data_protocol import GameRequest

MAX_SAVED = 8  # checkpoints, the newest


def saved(run: GANGenerator, directory: Path) -> dict[int, GANGenerator]:
    """Load the checkpoints beside that of a run, the oldest first: step -> what draws and judges as it was then."""
    root = directory.parent
    places = [*store.good(root)][:MAX_SAVED] if root.name == "checkpoints" else []
    found = {store.step_of(path): generator_of(path, device=run.device.type) for path in reversed(places)}
    return {step: gan for step, gan in found.items() if isinstance(gan, GANGenerator)}


def game(
    run: GANGenerator, directory: Path, data: PreparedImages, asked: GameRequest, progress: Progress
) -> dict[str, object]:
    """Return {"steps": S, "told": S rows of S}: entry i, j is the share of pairs of a held-out picture and one that
    generator j drew of the same class in which discriminator i gives the held-out one the larger logit."""
    count = min(asked.n, len(data.val))
    places = torch.arange(count) * len(data.val) // count
    real, labels = to_float(data.val.images[places]).to(run.device), data.val.labels[places].to(run.device)
    players = saved(run, directory)
    drawn: list[Tensor] = []
    for gan in players.values():
        progress.check()
        with gan.sampling():
            images = gan.model.generator(gan.latents(range(count), asked.seed), labels)
        drawn.append(to_float(to_uint8(images)))  # as real pictures are: of 256 steps
    told = []
    for gan in players.values():
        progress.check()
        with gan.sampling():
            held = gan.model.discriminator(real, labels)
            told.append([told_apart(gan.model.discriminator(images, labels), held) for images in drawn])
    return {"steps": [*players], "told": told}


def told_apart(drawn: Tensor, held: Tensor) -> float:
    """Return in which share of all pairs the held-out picture has the larger logit; equal ones count half."""
    difference = held[:, None] - drawn
    return float(((difference > 0).double() + (difference == 0).double() / 2).mean())
