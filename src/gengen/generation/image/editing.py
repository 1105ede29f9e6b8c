"""Pictures changed by a diffusion model: drawn anew in part, carried on beyond their edges, varied."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gengen.config.commands import DiffusionSampling, DiffusionSettings, EditSettings, RunConfig
from gengen.config.model import DiffusionConfig
from gengen.config.schema import build
from gengen.data.text.tokenizer import TextTokenizer
from gengen.diffusion.editing import outpaint
from gengen.diffusion.masks import known_part
from gengen.diffusion.samplers import Callback
from gengen.errors import UserError
from gengen.generation.base import Labels
from gengen.generation.editing import Edit, redraw
from gengen.generation.image.autoencoder import AutoencoderGenerator
from gengen.generation.image.files import SHOWN, Drawn, PictureGenerator, batches, to_float
from gengen.generation.image.masks import (
    MaskLike,
    Picture,
    PictureLike,
    open_cells,
    read_mask,
    read_picture,
)
from gengen.generation.image.prompts import Asked
from gengen.generation.image.sentences import SentenceEncoder
from gengen.models.diffusion_network import DiffusionNetwork
from gengen.models.layers import NO_CLASS

STRENGTH = 0.7  # of an edit of a whole picture
RESAMPLES = 10  # of a model that is not trained for inpainting


Painter = Callable[[range, list[Tensor] | None], Tensor]
"""Draws some of what is asked, uint8 (B, C, H, W); a list that is given receives the estimates after each step."""


class Sampling(TypedDict, total=False):
    """Settings of the sampler, by name, as DiffusionSettings explains them."""

    sampler: str
    steps: int
    guidance: float | None
    guide_from: float
    guide_to: float
    rescale: float
    precision: str
    batch_size: int


@dataclass(frozen=True)
class Order:
    """How pictures are to be changed, whichever they are. strength, resamples: None = what suits the edit."""

    asked: Asked
    seed: int
    settings: DiffusionSettings
    strength: float | None
    resamples: int | None
    guide: "ImageEditor | None"

    def batches(self) -> Iterator[range]:
        """Yield which of the pictures are drawn at once."""
        return batches(len(self.asked), self.settings.batch_size)


class ImageEditor(PictureGenerator[nn.Module, DiffusionSampling]):
    """The part of `ImageGenerator` that changes pictures.

    Everywhere: image: a file, or uint8 (C, H, W), of which the centre square is scaled to the model's size. n: how
    many pictures to make of it, of each prompt where there are prompts; number i is a function of (seed, i). labels,
    prompts, negative, guide, frames, callback: as of `generate`, but that no class is wanted where none is given.
    strength, resamples: see `EditSettings`.
    """

    config: DiffusionConfig
    codec: AutoencoderGenerator | None
    tokenizer: TextTokenizer | None
    sentences: SentenceEncoder | None

    def asked(self, n: int, labels: Labels, prompts: Sequence[str], negative: str, first: int = 0) -> Asked:
        raise NotImplementedError

    def check_guide(self, guide: "ImageEditor | None", negative: str) -> None:
        raise NotImplementedError

    def pixels(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def settings(
        self, how: DiffusionSettings, where: RunConfig, negative: str = ""
    ) -> tuple["ImageEditor | None", dict[str, Any]]:
        raise NotImplementedError

    # --- what a user calls

    def edit(
        self,
        image: PictureLike,
        mask: MaskLike | None = None,
        *,
        n: int = 4,
        labels: Labels = (),
        prompts: str | Sequence[str] = (),
        negative: str = "",
        strength: float | None = None,
        resamples: int | None = None,
        seed: int = 0,
        first: int = 0,
        guide: "ImageEditor | None" = None,
        frames: list[Tensor] | None = None,
        callback: Callback = None,
        **sampling: Unpack[Sampling],
    ) -> Tensor:
        """Draw what is open of a picture anew (`MaskLike`), or all of it, from part of the way to noise (SDEdit).

        Returns uint8 (N, C, R, R), the picture itself where it is not open.
        """
        picture = self.picture(image)
        is_open = None if mask is None else read_mask(mask, picture.size, self.side)
        asked = self.wanted(n, labels, prompts, negative, first)
        order = self.order(asked, seed, strength, resamples, guide, sampling)
        parts, movies = [], []
        for rows in order.batches():
            movie: list[Tensor] | None = None if frames is None else []
            parts.append(self.changed(order, rows, picture.pixels[None], is_open, movie=movie, callback=callback))
            movies.append(movie or [])
        if frames is not None:
            frames += [torch.cat(parts) for parts in zip(*movies, strict=True)]
        return torch.cat(parts)

    def variations(
        self,
        image: PictureLike,
        *,
        n: int = 4,
        labels: Labels = (),
        prompts: str | Sequence[str] = (),
        negative: str = "",
        strength: float = STRENGTH,
        seed: int = 0,
        first: int = 0,
        **sampling: Unpack[Sampling],
    ) -> Tensor:
        """Draw pictures like one, a sample of the model's own, say: the more strength, the less like it. Returns
        uint8 (N, C, R, R).
        """
        return self.edit(
            image, n=n, labels=labels, prompts=prompts, negative=negative, strength=strength, seed=seed, first=first,
            **sampling,
        )  # fmt: skip

    def outpaint(
        self,
        image: PictureLike,
        *,
        left: int = 0,
        right: int = 0,
        top: int = 0,
        bottom: int = 0,
        n: int = 4,
        labels: Labels = (),
        prompts: str | Sequence[str] = (),
        negative: str = "",
        strength: float | None = None,
        resamples: int | None = None,
        seed: int = 0,
        first: int = 0,
        guide: "ImageEditor | None" = None,
        callback: Callback = None,
        **sampling: Unpack[Sampling],
    ) -> Tensor:
        """Carry a picture on beyond its edges by so many pixels, in squares of the model's size that overlap by half,
        each inpainted given the last. Returns uint8 (N, C, top + R + bottom, left + R + right).
        """
        canvas, is_open = extended(self.picture(image).pixels, left, right, top, bottom)
        asked = self.wanted(n, labels, prompts, negative, first)
        order = self.order(asked, seed, strength, resamples, guide, sampling)
        return torch.cat([self.carried_on(order, rows, canvas, is_open, callback) for rows in order.batches()])

    # --- what these share

    @property
    def side(self) -> int:
        """Return the pixels a side of the pictures that the model draws."""
        return cast(int, (self.codec or self).config.resolution)

    def picture(self, image: PictureLike) -> Picture:
        """Return a picture as the model sees it."""
        return read_picture(image, self.side, cast(int, (self.codec or self).config.channels))

    def wanted(self, n: int, labels: Labels, prompts: str | Sequence[str], negative: str, first: int = 0) -> Asked:
        """Return what is wanted of n pictures, or of n of each prompt; no class where none is given.

        Raises UserError for a model that cannot do without.
        """
        if not (len(labels) or self.config.text):
            if self.classes and not self.config.drop_condition:
                raise UserError(
                    "labels: the model always saw its class (model.drop_condition=0), so an edit needs one: "
                    f"labels={self.classes[0]}"
                )
            labels = [NO_CLASS]
        return self.asked(n, labels, [prompts] if isinstance(prompts, str) else prompts, negative, first)

    def order(
        self,
        asked: Asked,
        seed: int,
        strength: float | None,
        resamples: int | None,
        guide: "ImageEditor | None",
        sampling: Mapping[str, Any],
    ) -> Order:
        """Return an order whose every setting is checked. Raises UserError.

        Where nothing is asked for, by class, text or another model, nothing is guided: it would cost half the calls.
        """
        build(EditSettings, {"strength": strength, "resamples": resamples})
        self.check_guide(guide, asked.negative)
        settings = build(DiffusionSettings, dict(sampling))
        if not (guide or asked.prompts or asked.negative or set(asked.turn) != {NO_CLASS}):
            settings = replace(settings, guidance=1.0)
        return Order(asked, seed, settings, strength, resamples, guide)

    def changed(
        self,
        order: Order,
        rows: range,
        pictures: Tensor,
        is_open: Tensor | None,
        *,
        purpose: str = "",
        movie: list[Tensor] | None = None,
        callback: Callback = None,
    ) -> Tensor:
        """Return some of what is asked as changes of pictures, uint8 (B or 1, C, R, R) -> uint8 (B, C, R, R).

        is_open: bool (R, R), None = all of them. What is not open stays as it is, to the bit. movie: receives the
        estimate after each step, likewise.
        """
        x0, request = self.own(pictures), order.asked.rows(rows)
        condition, cells = request.condition, None
        if is_open is not None:
            cells = open_cells(is_open, x0.shape[-1])[None].to(x0.device)
            if self.config.inpaint:
                condition = replace(condition, known=known_part(x0, cells).expand(len(rows), -1, -1, -1))
        edit = Edit(
            x0,
            cells,
            strength=order.strength or (STRENGTH if is_open is None else 1.0),
            resamples=order.resamples or (0 if self.config.inpaint else RESAMPLES),
            purpose=purpose,
        )

        def shown(x: Tensor) -> Tensor:
            return self.pixels(x) if is_open is None else torch.where(is_open, self.pixels(x), pictures)

        watched = filmed(movie, shown, callback)
        worse = cast(DiffusionNetwork, order.guide.model) if order.guide else None
        model = cast(DiffusionNetwork, self.model)
        with self.sampling():
            return shown(
                redraw(model, condition, request.samples, order.seed, order.settings, edit, worse=worse,
                       callback=watched)
            )  # fmt: skip

    def carried_on(
        self, order: Order, rows: range, canvas: Tensor, is_open: Tensor, callback: Callback = None
    ) -> Tensor:
        """Return a canvas (1, C, H, W) uint8 as often as asked, what is open of it (H, W) drawn window by window, each
        from noise of its own. callback: is called in each step of each window.
        """

        def redraw_window(number: int, part: Tensor, still_open: Tensor) -> Tensor:
            return self.changed(order, rows, part, still_open, purpose=f"/window {number}", callback=callback)

        start, stride = canvas.expand(len(rows), -1, -1, -1), max(1, self.side // 2)
        return outpaint(start, is_open, self.side, stride, redraw_window)

    def own(self, pictures: Tensor) -> Tensor:
        """Return pictures uint8 (B, C, R, R) as the model has them: pixels in [-1, 1], or whitened latents."""
        x = to_float(pictures).to(self.device)
        return self.codec.model.whitened(self.codec.encode(x)[0]) if self.codec else x

    # --- what `sample` writes

    def edit_remarks(self, config: DiffusionSampling) -> list[str]:
        """Return what was done to the picture before it is changed."""
        note = self.picture(config.image).note if config.image else ""
        return [note] if note else []

    def edited(self, config: DiffusionSampling) -> Iterator[Drawn]:
        """Yield what `sample` asks for with what=edit, outpaint or variations; the grid shows the picture, and what is
        open of it, before the rest.
        """
        guide, settings = self.settings(config, config, config.negative)
        asked = self.wanted(config.n, config.labels, config.prompt, config.negative)
        order = self.order(asked, config.seed, config.strength, config.resamples, guide, settings)
        said = facts_of(config) | settings | {"guidance": order.settings.guidance}
        paint, beside = self.painter(config, order)
        for rows in order.batches():
            frames: list[Tensor] = []
            images = paint(rows, frames if config.animation and rows.start < SHOWN else None)
            facts = [fact | said for fact in asked.facts(rows)]
            yield Drawn(images, facts, frames=frames, beside=() if rows.start else beside)

    def painter(self, config: DiffusionSampling, order: Order) -> tuple[Painter, list[Tensor]]:
        """Return what draws some of the pictures of an order, and what is shown beside them, (C, H, W) uint8 each."""
        picture = self.picture(config.image or "")
        if config.what == "outpaint":
            canvas, added = extended(picture.pixels, config.left, config.right, config.top, config.bottom)
            return lambda rows, movie: self.carried_on(order, rows, canvas, added), [
                torch.where(added, 128, canvas[0])
            ]
        is_open = read_mask(config.mask, picture.size, self.side) if config.mask else None
        mask = [] if is_open is None else [255 * is_open.expand_as(picture.pixels).byte()]
        pixels = picture.pixels[None]
        return lambda rows, movie: self.changed(order, rows, pixels, is_open, movie=movie), [picture.pixels, *mask]


def filmed(movie: list[Tensor] | None, shown: Callable[[Tensor], Tensor], callback: Callback) -> Callback:
    """Return a callback of a sampler that does what `callback` does, and adds to `movie`, where there is one, what is
    shown of each estimate."""
    if movie is None:
        return callback

    def watched(i: int, t: float, x: Tensor, x0: Tensor) -> None:
        if callback:
            callback(i, t, x, x0)
        movie.append(shown(x0))

    return watched


def extended(picture: Tensor, left: int, right: int, top: int, bottom: int) -> tuple[Tensor, Tensor]:
    """Return a canvas (1, C, H, W) with a picture (C, R, R) in it, its edges repeated beyond them, and what is open of
    it, bool (H, W). Raises UserError where nothing is added.
    """
    if min(left, right, top, bottom) < 0 or not left + right + top + bottom:
        raise UserError("outpaint: left=, right=, top=, bottom= say how many pixels to add, none of them below 0")
    edges = left, right, top, bottom
    canvas = F.pad(picture[None].float(), edges, mode="replicate").to(picture.dtype)  # latents meet no black edge
    return canvas, F.pad(torch.zeros(picture.shape[1:], dtype=torch.bool), edges, value=True)


def facts_of(config: DiffusionSampling) -> dict[str, Any]:
    """Return what samples.json says of every picture of an edit."""
    names = ("what", *(f.name for f in fields(EditSettings)))
    return {"seed": config.seed} | {name: getattr(config, name) for name in names if getattr(config, name)}
