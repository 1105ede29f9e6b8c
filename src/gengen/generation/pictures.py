"""Images as files, and what generators of images share: a grid, the single files, an animation, a JSON that says how each was drawn."""

import io
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import index
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from PIL import Image
from torch import Tensor

from gengen.checkpoints.files import replace_bytes, replace_text, to_json
from gengen.config.errors import UserError, did_you_mean
from gengen.config.sample import PictureSampling
from gengen.models.unet import NULL


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1] -> the nearest of 0 .. 255: x = v / 127.5 - 1 comes back as v. Out of range is clipped.

    Every image that is written or measured goes through here: a network's output that was never rounded is another image.
    """
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """0 .. 255 -> [-1, 1], fp32."""
    return images.float() / 127.5 - 1


def grid(images: Tensor, columns: int | None = None, gap: int = 2) -> Tensor:
    """(N, C, H, W) uint8 -> (C, H', W'), row by row, on a mid-grey ground. columns: null = about square."""
    n, c, h, w = images.shape
    columns = columns or max(1, round(n**0.5))
    rows = -(-n // columns)
    sheet = torch.full((c, rows * (h + gap) + gap, columns * (w + gap) + gap), 128, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        sheet[:, top : top + h, left : left + w] = image
    return sheet


def enlarged(image: Tensor, least: int = 64) -> Tensor:
    """(..., H, W) with each pixel repeated until the shorter side has `least`: what is tiny can be looked at."""
    times = max(1, -(-least // min(image.shape[-2:])))
    return image.repeat_interleave(times, -1).repeat_interleave(times, -2)


def picture(image: Tensor) -> Image.Image:
    """(C, H, W) uint8, C = 1 or 3, as a PIL image."""
    array = image.cpu().numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))


def write_png(path: Path, image: Tensor) -> None:
    """(C, H, W) uint8 to a file, in one step."""
    data = io.BytesIO()
    picture(image).save(data, "png")
    replace_bytes(path, data.getvalue())


def write_gif(path: Path, frames: Sequence[Tensor], seconds: float) -> None:
    """Frames (C, H, W) uint8 as an endless animation that stays on its last frame for a while."""
    first, *rest = [picture(frame) for frame in frames]
    each = round(1000 * seconds / len(frames))
    data = io.BytesIO()
    first.save(data, "gif", save_all=True, append_images=rest, duration=[each] * len(rest) + [1500], loop=0)
    replace_bytes(path, data.getvalue())


NO_CLASSES = "; this model was trained without classes"
Wanted = Tensor | Sequence[str | int]
"""Classes to draw. A number, in a tensor or a sequence, is a class's number, NULL for none; a text is its name."""


def labels_of(wanted: Wanted, classes: Sequence[str], n: int) -> Tensor:
    """n labels, (n,) int64 on the CPU: the wanted classes in turn; by default all, NULL where there are none."""
    names = Names(classes)
    turn: list[int] = []
    for label in wanted.tolist() if isinstance(wanted, Tensor) else wanted:
        turn += names.of(label) if isinstance(label, str) else [names.checked(label)]
    turn = turn or list(range(len(classes))) or [NULL]
    return torch.tensor([turn[i % len(turn)] for i in range(n)])


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
        """The number of the class of this name. Digits are a class's number too, where no class is named by digits."""
        if text.strip().isdecimal() and not self.numbered and int(text) < len(self.classes):
            return int(text)
        return self.exact.get(text, self.folded.get(folded(text)))

    def of(self, text: str) -> list[int]:
        """The numbers of one name, or of several with commas between them."""
        found = []
        for part in [text] if self.find(text) is not None else text.split(","):
            if (number := self.find(part)) is None:
                known = did_you_mean(part.strip(), self.exact) if self.classes else NO_CLASSES
                raise UserError(f"labels={part}: no such class{known}")
            found.append(number)
        return found

    def checked(self, number: Any) -> int:
        """A number that a class has, or NULL."""
        try:
            label = index(number)
        except TypeError:
            raise UserError(f"labels={number!r}: neither a name nor a whole number") from None
        if not NULL <= label < len(self.classes):
            numbers = f"; they are numbered 0 to {len(self.classes) - 1}, and {NULL} is none"
            raise UserError(f"labels={label}: no such class{numbers if self.classes else NO_CLASSES}")
        return label


def folded(name: str) -> str:
    """A name without what keyboards and file systems write in different ways."""
    return unicodedata.normalize("NFC", name.strip()).casefold()


def named(label: int, classes: Sequence[str]) -> dict[str, Any]:
    """What samples.json says of an image's class: nothing, where it has none."""
    return {"label": label, "class": classes[label]} if label >= 0 else {}


class Drawn(NamedTuple):
    """What `sample` writes."""

    images: Tensor  # uint8 (N, C, H, W)
    facts: list[dict[str, Any]]  # what there is to say of each
    columns: int | None = None  # how many make a row
    frames: Iterable[Tensor] = ()  # of an animation, each as `images`


class PictureGenerator:
    """What `gengen.load` returns for a model of images: a family says how to draw."""

    command_hint = "to sample: python scripts/sample.py {run} n=16"
    animation = ("", 0.0)  # file and length in seconds of what `Drawn.frames` become
    model: Any

    def __init__(self, model: Any):
        self.model, self.config, self.classes = model, model.config, model.config.classes

    @property
    def device(self) -> torch.device:
        """Where the model is by now."""
        return next(self.model.parameters()).device

    @classmethod
    def from_checkpoint(cls, model: Any, directory: Path) -> Self:
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

    def drawn(self, config: Any) -> Drawn:
        """What a `sample` command asks for."""
        raise NotImplementedError

    def command(self, config: PictureSampling, say: Callable[[str], None]) -> str:
        """What `sample` does: draw, and write grid.png, 00000.png ..., samples.json with a dict an image, and an animation to the
        folder `out`. Returns a line that sums it up."""
        start, folder = time.perf_counter(), config.folder()
        drawn = self.drawn(config)
        spent, count = time.perf_counter() - start, len(drawn.images)
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(drawn.images):
            write_png(folder / f"{i:05}.png", image)
        write_png(folder / "grid.png", grid(enlarged(drawn.images), drawn.columns))
        if frames := [grid(enlarged(frame)) for frame in drawn.frames]:
            name, seconds = self.animation
            write_gif(folder / name, frames, seconds)
        replace_text(folder / "samples.json", to_json([{"file": f"{i:05}.png"} | fact for i, fact in enumerate(drawn.facts)]))
        say(f"{folder}/grid.png")
        return f"{count} images in {spent:.2f} s, {count / spent:.3g} images/s"
