"""What `sample` does for a model of images: write them as single files, a grid, an animation and a JSON."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from torch import nn

from gengen.config.commands import DiffusionSampling, PictureSampling
from gengen.errors import UserError
from gengen.evaluation.best_of import best_drawn, image_reward
from gengen.generation.base import GeneratesImages, Generator
from gengen.generation.image.files import Drawn, PictureGenerator, batches, write_drawn
from gengen.generation.image.mark import marked_batch
from gengen.generation.image.provenance import origin_of
from gengen.generation.secret_key import read_key
from gengen.training.evaluate import images_of

BATCH = 64  # images drawn at once by a generator that says nothing of batches


def sample_images(generator: Generator, config: PictureSampling, say: Callable[[str], None]) -> str:
    """Draw images and write them to the folder `out`, a batch at a time. Returns a line that sums it up."""
    folder = config.folder()
    origin = origin_of(config) if config.provenance else None
    mark = marker(config)
    if isinstance(generator, PictureGenerator):
        for line in generator.remarks(config):
            say(line)
        written = write_drawn(folder, mark(drawn(generator, config, say)), generator.animated(config), origin)
    elif isinstance(generator, GeneratesImages):
        written = write_drawn(folder, mark(generated(generator, config)), None, origin)
    else:
        raise UserError(f"{config.run} draws no images: {type(generator).__name__} has no generate(n, labels, ...)")
    say(f"{folder}/grid.png" + (f" of the first {written.shown}" if written.images > written.shown else ""))
    return f"{written.images} images in {written.seconds:.2f} s, {written.images / written.seconds:.3g} images/s"


def marker(config: PictureSampling) -> Callable[[Iterator[Drawn]], Iterator[Drawn]]:
    """Return what marks the images of batches, if the config names a key, which is read at once."""
    if not config.mark:
        return lambda parts: parts
    key = read_key(Path(config.mark))
    return lambda parts: (part._replace(images=marked_batch(part.images, key)) for part in parts)


def drawn(
    generator: PictureGenerator[nn.Module, PictureSampling], config: PictureSampling, say: Callable[[str], None]
) -> Iterator[Drawn]:
    """Yield the images, each the best of several if the config names a reward."""
    if not (isinstance(config, DiffusionSampling) and config.reward):
        return generator.drawn(config)
    reward = image_reward(config.reward, lambda: images_of(config, say), say)
    candidates = replace(config, n=config.n * config.best_of, animation=False)
    return best_drawn(generator.drawn(candidates), reward, config.best_of)


def generated(generator: GeneratesImages, config: PictureSampling) -> Iterator[Drawn]:
    """Yield the images of a generator that has `generate` and nothing else, a batch at a time."""
    for samples in batches(config.n, BATCH):
        images = generator.generate(len(samples), seed=config.seed, first=samples.start)
        yield Drawn(images.cpu(), [{"index": i, "seed": config.seed} for i in samples])
