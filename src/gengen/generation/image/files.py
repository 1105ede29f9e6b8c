"""Images as files, and what generators of images share: a grid, the single files, an animation, a JSON that says how
each image was drawn.
"""

import io
import os
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import index
from pathlib import Path
from textwrap import indent
from typing import IO, Any, Generic, NamedTuple, Self, SupportsIndex, TypeVar

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

from gengen.checkpoints.files import replace_bytes, to_json
from gengen.config.commands import EvaluateConfig, PictureSampling
from gengen.config.model import ImageModelConfig
from gengen.errors import UserError, did_you_mean
from gengen.generation.base import ImageSampler, Labels
from gengen.generation.image.provenance import Origin, chunks
from gengen.io import fsync
from gengen.models.layers import NO_CLASS


def to_uint8(x: Tensor) -> Tensor:
    """Round images in [-1, 1] to the nearest of 0 .. 255: x = v / 127.5 - 1 comes back as v. Out of range is clipped.

    Every image that is written or measured goes through here: a network's output that was never rounded is another
    image.
    """
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """Scale 0 .. 255 to [-1, 1], fp32."""
    return images.float() / 127.5 - 1


def grid(images: Tensor, columns: int | None = None, gap: int = 2) -> Tensor:
    """Lay out images (N, C, H, W) uint8 as one, (C, H', W'), row by row, on a mid-grey ground.

    columns: None = about square.
    """
    n, c, h, w = images.shape
    columns = columns or max(1, round(n**0.5))
    rows = -(-n // columns)
    sheet = torch.full((c, rows * (h + gap) + gap, columns * (w + gap) + gap), 128, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        sheet[:, top : top + h, left : left + w] = image
    return sheet


def enlarged(image: Tensor, least: int = 64) -> Tensor:
    """Repeat each pixel of (..., H, W) until the shorter side has `least`: what is tiny can be looked at."""
    times = max(1, -(-least // min(image.shape[-2:])))
    return image.repeat_interleave(times, -1).repeat_interleave(times, -2)


def picture(image: Tensor) -> Image.Image:
    """Return (C, H, W) uint8, C = 1 or 3, as a PIL image."""
    array = image.cpu().numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))


def png_bytes(image: Tensor, info: PngInfo | None = None) -> bytes:
    """Return (C, H, W) uint8 as a PNG. info: text chunks of the file (provenance.py)."""
    data = io.BytesIO()
    picture(image).save(data, "png", pnginfo=info)
    return data.getvalue()


def write_png(path: Path, image: Tensor, info: PngInfo | None = None) -> None:
    """Write (C, H, W) uint8 to a file, in one step. info: as above."""
    replace_bytes(path, png_bytes(image, info))


def write_gif(path: Path, frames: Sequence[Tensor], seconds: float) -> None:
    """Write frames (C, H, W) uint8 as an endless animation that stays on its last frame for a while."""
    first, *rest = [picture(frame) for frame in frames]
    each = round(1000 * seconds / len(frames))
    data = io.BytesIO()
    first.save(data, "gif", save_all=True, append_images=rest, duration=[each] * len(rest) + [1500], loop=0)
    replace_bytes(path, data.getvalue())


NO_CLASSES = "; this model was trained without classes"


def labels_of(wanted: Labels, classes: Sequence[str], n: int) -> Tensor:
    """Return n labels, (n,) int64 on the CPU: the wanted classes in turn; by default all, NO_CLASS without classes."""
    return labels_at(turn_of(wanted, classes), range(n))


def labels_at(turn: Sequence[int], samples: range) -> Tensor:
    """Return the labels of samples of these numbers."""
    return torch.tensor([turn[i % len(turn)] for i in samples])


def turn_of(wanted: Labels, classes: Sequence[str]) -> list[int]:
    """Return the labels that samples have in turn: the wanted classes; by default all, NO_CLASS without any."""
    names = Names(classes)
    turn: list[int] = []
    for label in wanted.tolist() if isinstance(wanted, Tensor) else wanted:
        turn += names.of(label) if isinstance(label, str) else [names.checked(label)]
    return turn or list(range(len(classes))) or [NO_CLASS]


class Names:
    """Finds classes by what a person types: as they are written, or else whatever the case and the Unicode form."""

    def __init__(self, classes: Sequence[str]):
        self.classes = classes
        alike: dict[str, list[int]] = {}
        for number, name in enumerate(classes):
            alike.setdefault(folded(name), []).append(number)
        self.folded = {name: numbers[0] for name, numbers in alike.items() if len(numbers) == 1}
        self.exact = {name: number for number, name in enumerate(classes)}
        self.numbered = any(name.strip().isdecimal() for name in classes)

    def find(self, text: str) -> int | None:
        """Return the number of the class of this name. Digits are a class's number too, if no class is named by
        digits."""
        if text.strip().isdecimal() and not self.numbered and int(text) < len(self.classes):
            return int(text)
        return self.exact.get(text, self.folded.get(folded(text)))

    def of(self, text: str) -> list[int]:
        """Return the numbers of one name, or of several with commas between them."""
        found = []
        for part in [text] if self.find(text) is not None else text.split(","):
            if (number := self.find(part)) is None:
                known = did_you_mean(part.strip(), self.exact) if self.classes else NO_CLASSES
                raise UserError(f"labels={part}: no such class{known}")
            found.append(number)
        return found

    def checked(self, number: SupportsIndex) -> int:
        """Return a number that a class has, or NO_CLASS. Raises UserError for any other."""
        try:
            label = index(number)
        except TypeError:
            raise UserError(f"labels={number!r}: neither a name nor a whole number") from None
        if not NO_CLASS <= label < len(self.classes):
            numbers = f"; they are numbered 0 to {len(self.classes) - 1}, and {NO_CLASS} is none"
            raise UserError(f"labels={label}: no such class{numbers if self.classes else NO_CLASSES}")
        return label


def folded(name: str) -> str:
    """Return a name without what keyboards and file systems write in different ways."""
    return unicodedata.normalize("NFC", name.strip()).casefold()


def named(label: int, classes: Sequence[str]) -> dict[str, Any]:
    """Return what samples.json says of an image's class: nothing, where it has none."""
    return {"label": label, "class": classes[label]} if label >= 0 else {}


def batches(n: int, size: int) -> Iterator[range]:
    """Yield the numbers 0 to n - 1, at most `size` at once."""
    return (range(start, min(n, start + size)) for start in range(0, n, size))


SHOWN = 400  # images that grid.png and an animation show at most


class Drawn(NamedTuple):
    """A batch of images as `sample` writes them."""

    images: Tensor  # uint8 (N, C, H, W)
    facts: list[dict[str, Any]]  # of each image, what samples.json says of it
    columns: int | None = None  # images in a row of the grid; None = about square
    frames: Iterable[Tensor] = ()  # of an animation, each as `images`
    beside: Sequence[Tensor] = ()  # (C, H, W) each, that the grid shows before them and no file holds


@dataclass(frozen=True)
class Animation:
    """What the frames of `Drawn` become: a file of this name, which plays for so many seconds."""

    name: str
    seconds: float


@dataclass
class Written:
    """What `write_drawn` wrote. images: single files; shown: how many of them grid.png shows; seconds: spent on
    drawing them, not on writing."""

    images: int = 0
    shown: int = 0
    seconds: float = 0.0


def write_drawn(
    folder: Path, parts: Iterable[Drawn], animation: Animation | None = None, origin: Origin | None = None
) -> Written:
    """Write 00000.png ..., samples.json with a dict an image, grid.png and an animation; the single files as soon as
    their batch is drawn. What there is by an interruption is written whole. origin: what each PNG says of where it
    comes from."""
    written = Written()
    shown: list[Drawn] = []
    try:
        with listed(folder / "samples.json") as note:
            for part, seconds in timed(parts):
                folder.mkdir(parents=True, exist_ok=True)
                if written.images < SHOWN:
                    shown.append(part)
                for image, fact in zip(part.images, part.facts, strict=True):
                    name = f"{written.images:05}.png"
                    write_png(folder / name, image, chunks(origin, fact))
                    note({"file": name} | fact)
                    written.images += 1
                written.seconds += seconds
    finally:
        if shown:
            written.shown = write_overview(folder, shown, animation, origin)
    return written


def write_overview(
    folder: Path, parts: Sequence[Drawn], animation: Animation | None, origin: Origin | None = None
) -> int:
    """Write grid.png and the animation. Returns how many images they show."""
    columns = parts[0].columns
    most = max(SHOWN // (columns or 1), 1) * (columns or 1)  # whole rows
    beside = [picture[None] for part in parts for picture in part.beside]
    images = torch.cat([*beside, *(part.images for part in parts)])[: len(beside) + most]
    write_png(folder / "grid.png", grid(enlarged(images), columns), chunks(origin, {}))
    movies = [torch.cat(movie)[:most] for movie in zip(*(part.frames for part in parts), strict=True)]
    if animation and movies:
        as_grid = columns if len(movies[0]) == len(images) - len(beside) else None  # else a frame shows something else
        frames = [grid(enlarged(movie), as_grid) for movie in movies]
        write_gif(folder / animation.name, frames, animation.seconds)
    return len(images) - len(beside)


def timed(parts: Iterable[Drawn]) -> Iterator[tuple[Drawn, float]]:
    """Yield each part with the seconds that it took to come."""
    start = time.perf_counter()
    for part in parts:
        yield part, time.perf_counter() - start
        start = time.perf_counter()


@contextmanager
def listed(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that adds an item to a JSON list in a file, which is there, and whole, however this ends."""
    with ExitStack() as stack:
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        file: IO[str] | None = None

        def note(item: dict[str, Any]) -> None:
            nonlocal file
            between = ",\n"
            if file is None:
                file, between = stack.enter_context(beside.open("w", encoding="utf8")), "[\n"
            file.write(between + indent(to_json(item).rstrip(), " "))

        try:
            yield note
        finally:
            if file is not None:
                file.write("\n]\n")
                file.close()
                fsync(beside)
                os.replace(beside, path)


M = TypeVar("M", bound=nn.Module)
S = TypeVar("S", bound=PictureSampling)


class PictureGenerator(Generic[M, S]):
    """What generators of images share. M: the model, which has a `config`; S: the config of the `sample` command."""

    command_hint = "to sample: python scripts/sample.py {run} n=16"
    animation: Animation | None = None
    config: ImageModelConfig

    def __init__(self, model: M):
        self.model = model
        self.config = getattr(model, "config")
        self.classes = self.config.classes

    @property
    def device(self) -> torch.device:
        """Where the model is by now."""
        return next(self.model.parameters()).device

    @classmethod
    def from_checkpoint(cls, model: M, directory: Path) -> Self:
        return cls(model)

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """The model in evaluation mode, without gradients, in fp32; afterwards as it was."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            self.model.train(training)

    def generate(self, n: int = 16, labels: Labels = (), *, seed: int = 0, first: int = 0) -> Tensor:
        """Return samples number `first` to `first + n - 1`, uint8 (n, C, H, W); see `GeneratesImages`."""
        raise NotImplementedError

    def drawn(self, config: S) -> Iterator[Drawn]:
        """Yield what a `sample` command asks for, each batch drawn when it is asked for."""
        raise NotImplementedError

    def animated(self, config: S) -> Animation | None:
        """Return what the frames of `drawn` become."""
        return self.animation

    def remarks(self, config: S) -> list[str]:
        """Return lines that a person should read before what a `sample` command asks for is drawn."""
        return []

    def image_sampler(self, config: EvaluateConfig) -> ImageSampler | None:
        """Return what `evaluate` draws by: an image for each label."""
        return ImageSampler(lambda asked: self.generate(len(asked), asked, seed=config.seed))
