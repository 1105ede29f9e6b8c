"""What `sample` does for a model of images: write them as single files, a grid, an animation and a JSON."""

from collections.abc import Callable, Iterator

from gengen.config.commands import PictureSampling
from gengen.errors import UserError
from gengen.generation.base import GeneratesImages, Generator
from gengen.generation.image.files import Drawn, PictureGenerator, batches, write_drawn

BATCH = 64  # images drawn at once by a generator that says nothing of batches


def sample_images(generator: Generator, config: PictureSampling, say: Callable[[str], None]) -> str:
    """Draw images and write them to the folder `out`, a batch at a time. Returns a line that sums it up."""
    folder = config.folder()
    if isinstance(generator, PictureGenerator):
        for line in generator.remarks(config):
            say(line)
        written = write_drawn(folder, generator.drawn(config), generator.animated(config))
    elif isinstance(generator, GeneratesImages):
        written = write_drawn(folder, generated(generator, config))
    else:
        raise UserError(f"{config.run} draws no images: {type(generator).__name__} has no generate(n, labels, ...)")
    say(f"{folder}/grid.png" + (f" of the first {written.shown}" if written.images > written.shown else ""))
    return f"{written.images} images in {written.seconds:.2f} s, {written.images / written.seconds:.3g} images/s"


def generated(generator: GeneratesImages, config: PictureSampling) -> Iterator[Drawn]:
    """Yield the images of a generator that has `generate` and nothing else, a batch at a time."""
    for samples in batches(config.n, BATCH):
        images = generator.generate(len(samples), seed=config.seed, first=samples.start)
        yield Drawn(images.cpu(), [{"index": i, "seed": config.seed} for i in samples])
