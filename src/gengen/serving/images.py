"""The endpoints of images: new ones and edits, whole or as server-sent events with estimates on the way."""

import base64
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from torch import Tensor

from gengen.config.commands import DiffusionSettings
from gengen.generation.image.diffusion import ImageGenerator
from gengen.serving.answering import EventStream, Patience, called, read_body
from gengen.serving.answers import encoded, named_event
from gengen.serving.calls import Progress
from gengen.serving.image_protocol import EditRequest, ImageRequest, enlargement
from gengen.serving.image_runs import ServedImages, encoded_png
from gengen.serving.runs import Served, picked
from gengen.serving.text import new_seed

Tree = dict[str, Any]
STEPS = DiffusionSettings().steps


class ImageApi:
    """The endpoints, over the runs that are served."""

    def __init__(self, runs: Mapping[str, Served], patience: Patience):
        self.runs, self.patience = dict(runs), patience

    async def generations(self, http: HttpRequest) -> "Response | EventStream[bytes]":
        asked = await read_body(ImageRequest, http)
        run = picked(self.runs, asked.model, ServedImages)
        drawing = Drawing(
            run, asked, "image_generation", lambda seed, watch: run.generate(asked, asked.n, seed, watch)
        )
        return await self.answer(http, run, asked, drawing)

    async def edits(self, http: HttpRequest) -> "Response | EventStream[bytes]":
        asked = await read_body(EditRequest, http)
        run = picked(self.runs, asked.model, ServedImages)
        drawing = Drawing(run, asked, "image_edit", lambda seed, watch: run.edit(asked, asked.n, seed, watch))
        return await self.answer(http, run, asked, drawing)

    async def answer(
        self, http: HttpRequest, run: ServedImages, asked: ImageRequest, drawing: "Drawing"
    ) -> "Response | EventStream[bytes]":
        cost = asked.n * (asked.steps or STEPS)
        work = drawing.streamed if asked.stream else drawing.whole
        return await called(http, run.worker, self.patience, work, cost, asked.stream)


Make = Callable[[int, Callable[[int, float, Tensor, Tensor], None]], tuple[Tensor, list[Tree]]]


class Drawing:
    """A request for images, as calls that an engine's thread makes. Raises ApiError where its size cannot be had.

    event: how its events are called. make: draws, given a seed and what is called in each step.
    """

    def __init__(self, run: ServedImages, asked: ImageRequest, event: str, make: Make):
        self.run, self.asked, self.event, self.make = run, asked, event, make
        self.times = enlargement(asked.size, run.side)
        self.seed = new_seed() if asked.seed is None else asked.seed
        self.created = int(time.time())

    def whole(self, progress: Progress) -> bytes:
        """Return the answer: JSON with all images."""
        images, said = self.make(self.seed, lambda i, t, x, x0: progress.check())
        data = [{"b64_json": self.png(image, fact), "gengen": fact} for image, fact in zip(images, said, strict=True)]
        return encoded({"created": self.created, "data": data} | self.form(images))

    def streamed(self, progress: Progress) -> bytes:
        """Send estimates on the way; return the events of the images."""
        shown = partial_steps(self.asked.steps or STEPS, self.asked.partial_images)

        def watch(i: int, t: float, x: Tensor, x0: Tensor) -> None:
            progress.check()
            if i in shown and isinstance(self.run.generator, ImageGenerator):
                images = self.run.generator.pixels(x0)
                progress.tell(b"".join(self.partials(images, i, shown.index(i))))

        images, said = self.make(self.seed, watch)
        return b"".join(
            self.told("completed", image, images, fact, {}) for image, fact in zip(images, said, strict=True)
        )

    def partials(self, images: Tensor, step: int, number: int) -> Iterator[bytes]:
        for j, image in enumerate(images):
            fact = {"index": self.asked.first + j, "seed": self.seed, "step": step}
            yield self.told("partial_image", image, images, fact, {"partial_image_index": number})

    def told(self, kind: str, image: Tensor, images: Tensor, fact: Tree, more: Tree) -> bytes:
        """Return an event with an image, of these images."""
        name = f"{self.event}.{kind}"
        tree = {"b64_json": self.png(image, fact), "created_at": self.created} | more | self.form(images)
        return named_event(name, tree | {"gengen": fact})

    def png(self, image: Tensor, fact: Tree) -> str:
        return base64.b64encode(encoded_png(self.run, image, fact, self.times)).decode()

    def form(self, images: Tensor) -> Tree:
        """Return what an answer says of the form of its images, in OpenAI's words."""
        height, width = (self.times * pixels for pixels in images.shape[-2:])
        return {"size": f"{width}x{height}", "output_format": "png", "background": "opaque", "quality": "auto"}


def partial_steps(steps: int, partials: int) -> list[int]:
    """Return the numbers of the steps whose estimates are shown: evenly between the first one and the image itself."""
    return sorted({(k + 1) * steps // (partials + 1) for k in range(partials)} & set(range(steps)))
