"""From a diffusion model to images: noise of each sample's own, a sampler, guidance, and the codec back to pixels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from gengen.checkpoints.layout import read_tokenizer
from gengen.config.commands import EDITS, DiffusionSampling, DiffusionSettings, EvaluateConfig, RunConfig
from gengen.config.schema import build
from gengen.data.image.captions import caption_tokens
from gengen.data.text.tokenizer import TextTokenizer
from gengen.diffusion.samplers import Callback
from gengen.errors import UserError
from gengen.generation import diffusion
from gengen.generation.base import ImageSampler, Labels
from gengen.generation.diffusion import Condition
from gengen.generation.image.autoencoder import AutoencoderGenerator
from gengen.generation.image.codec import codec_hash
from gengen.generation.image.editing import ImageEditor, filmed
from gengen.generation.image.files import SHOWN, Animation, Drawn, batches, to_uint8, turn_of
from gengen.generation.image.prompts import Asked, Request, drawn_guidances, drawn_remix, remix, unseen_words
from gengen.generation.image.sentences import FOLDER, SentenceEncoder, unread_words
from gengen.generation.load import load_as
from gengen.models.diffusion_network import DiffusionNetwork
from gengen.models.layers import NO_CLASS

TEXT = ("text", "text_context", "text_encoder")  # what two models must agree on to mean the same by a caption


class ImageGenerator(ImageEditor):
    """Draws images with a diffusion model of any network; what `gengen.load` returns for one.

    Noise of image i comes from (seed, i) alone, so in fp32 neither n nor batch_size changes it by more than rounding.
    """

    animation = Animation("denoising.gif", seconds=3.0)

    def __init__(
        self,
        model: nn.Module,
        codec: AutoencoderGenerator | None = None,
        tokenizer: TextTokenizer | None = None,
        sentences: SentenceEncoder | None = None,
    ):
        """codec: of a model of latents; tokenizer: of a model that reads captions; sentences: instead, of one that
        reads them through a frozen text encoder.
        """
        super().__init__(model)
        self.codec, self.tokenizer, self.sentences = codec, tokenizer, sentences

    @classmethod
    def from_checkpoint(cls, model: nn.Module, directory: Path) -> Self:
        self = cls(model)
        if self.config.needs_codec():
            folder = directory.parent.parent / "codec"
            self.codec = load_as(AutoencoderGenerator, str(folder), device=str(self.device))
        if self.config.text and self.config.text_encoder != "own":
            self.sentences = SentenceEncoder.load(directory.parent.parent / FOLDER)
        elif self.config.text:
            self.tokenizer = TextTokenizer.from_json(read_tokenizer(directory) or "")
        return self

    @property
    def reads_prompts(self) -> bool:
        """Return whether the model was trained on captions."""
        return self.config.text

    def generate(
        self,
        n: int = 16,
        labels: Labels = (),
        *,
        prompts: str | Sequence[str] = (),
        negative: str = "",
        seed: int = 0,
        first: int = 0,
        sampler: str = "heun",
        steps: int = 20,
        guidance: float | None = None,
        guide: "ImageGenerator | None" = None,
        guide_from: float = 0.0,
        guide_to: float = 1.0,
        rescale: float = 0.0,
        precision: str = "fp32",
        batch_size: int = 64,
        frames: list[Tensor] | None = None,
        callback: Callback = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Tensor:
        """Return n images, (n, C, H, W) uint8, samples `first` and the next ones; with prompts, n of each, those of
        one prompt side by side, from the same noise for each prompt.

        labels: names, or numbers as ints or a tensor, in turn; none = all in turn. prompts: what a model that reads
        captions is to show; none = whatever comes, as for "". negative: a text to guide away from, instead of the
        empty one. guide: a smaller or earlier model to guide away from, instead of this one without its condition.
        frames: a list that receives the estimates of all images after each step. callback: is called in each step of
        each batch, as `gengen.diffusion.samplers` says, in the model's own space; what it raises ends the draw. Once
        `interrupted` answers true, the rest is left undrawn. The other settings are explained in DiffusionSettings.
        """
        asked = self.asked(n, labels, [prompts] if isinstance(prompts, str) else prompts, negative, first)
        settings: DiffusionSampling = build(DiffusionSampling, {
            "n": n, "seed": seed, "sampler": sampler, "steps": steps, "guidance": guidance, "guide_from": guide_from,
            "guide_to": guide_to, "rescale": rescale, "precision": precision, "batch_size": batch_size,
        })  # fmt: skip
        self.check_guide(guide, negative)
        images, movies = [], []
        for rows in batches(len(asked), batch_size):
            if interrupted():
                break
            movie: list[Tensor] | None = None if frames is None else []
            images.append(self.painted(asked.rows(rows), settings, guide, movie, callback))
            movies.append(movie)
        if frames is not None:
            frames += [torch.cat(parts) for parts in zip(*(movie or [] for movie in movies), strict=True)]
        return torch.cat(images) if images else torch.empty(0, dtype=torch.uint8)

    def remix(
        self,
        a: str,
        b: str,
        n: int = 16,
        *,
        pictures: int = 8,
        negative: str = "",
        seed: int = 0,
        first: int = 0,
        sampler: str = "heun",
        steps: int = 20,
        guidance: float | None = None,
        guide: "ImageGenerator | None" = None,
        guide_from: float = 0.0,
        guide_to: float = 1.0,
        rescale: float = 0.0,
        precision: str = "fp32",
        batch_size: int = 64,
        callback: Callback = None,
    ) -> Tensor:
        """Return n ways from one prompt to another, (n, pictures, C, H, W) uint8, along the great arc between what the
        model reads in them: way j from the noise of sample first + j, its ends the images of the prompts themselves.

        The settings are those of `generate`.
        """
        asked = self.asked(n, (), [a, b], negative, first)
        settings: DiffusionSampling = build(DiffusionSampling, {
            "n": n, "seed": seed, "sampler": sampler, "steps": steps, "guidance": guidance, "guide_from": guide_from,
            "guide_to": guide_to, "rescale": rescale, "precision": precision, "batch_size": batch_size,
            "what": "remix", "prompt": [a, b], "pictures": pictures,
        })  # fmt: skip
        self.check_guide(guide, negative)
        paint = partial(self.painted, guide=guide, callback=callback)
        return torch.cat([remix(paint, asked, rows, pictures, settings) for rows in batches(n, batch_size)])

    def asked(self, n: int, labels: Labels, prompts: Sequence[str], negative: str, first: int = 0) -> Asked:
        """Return all that is to be drawn. Raises UserError for texts to a model that reads none, and for classes to
        one that reads texts.
        """
        asked = partial(Asked, n, first, classes=self.classes, device=self.device)
        if not self.config.text:
            if prompts or negative:
                given = f"prompt={prompts[0]!r}" if prompts else f"negative={negative!r}"
                known = f"{len(self.classes)} classes" if self.classes else "no conditions"
                example = f"labels={self.classes[0]}" if self.classes else "leave it out"
                raise UserError(
                    f"{given}: this run knows {known} and no texts: {example}; "
                    "model.text=true trains one that reads captions"
                )
            return asked(turn_of(labels, self.classes))
        if len(labels):
            raise UserError(f'labels={labels[0]}: this run knows texts and no classes: prompt="a {labels[0]}"')
        tokens, away = self.tokens(prompts or [""]), self.tokens([negative]) if negative else None
        return asked(turn_of((), ()), prompts=prompts, tokens=tokens, negative=negative, negative_tokens=away)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts, (N, L), or what a frozen text encoder says of them, (N, L, D').

        Raises UserError for one that is too long.
        """
        if self.sentences:
            return self.sentences.features(texts, self.config.text_context).to(self.device)
        assert self.tokenizer, "a model that reads captions comes with its tokenizer"
        return caption_tokens(self.tokenizer, texts, self.config.text_context, "a prompt").to(self.device)

    def check_guide(self, guide: ImageEditor | None, negative: str) -> None:
        """Raise UserError unless both models mean the same by x_t, by a label and by a token."""
        if guide is None:
            return
        if negative:
            raise UserError(f"negative={negative!r} and guide: guidance leads away from one of them; leave out one")
        for key in ("path", "time_shift", "resolution", "channels", "classes", "inpaint", *TEXT):
            ours, theirs = getattr(self.config, key), getattr(guide.config, key)
            if ours != theirs:
                name = key.removeprefix("time_")
                raise UserError(f"guide: its model.{name} is {theirs}, this model's is {ours}; they must be the same")
        ours, theirs = (generator.codec and codec_hash(generator.codec.model) for generator in (self, guide))
        if ours != theirs:
            raise UserError("guide: its latents are another codec's than this model's")
        if (self.tokenizer and self.tokenizer.hash) != (guide.tokenizer and guide.tokenizer.hash):
            raise UserError("guide: its captions are another tokenizer's than this model's")
        if (self.sentences and self.sentences.hash) != (guide.sentences and guide.sentences.hash):
            raise UserError("guide: its captions are another text encoder's than this model's")

    def painted(
        self,
        request: Request,
        settings: DiffusionSampling,
        guide: "ImageGenerator | None" = None,
        movie: list[Tensor] | None = None,
        callback: Callback = None,
    ) -> Tensor:
        """Return images, (B, C, H, W) uint8; `movie` receives the pixels of each estimate."""
        with self.sampling():
            return self.pixels(self.draw(request, settings.seed, settings, guide, movie, callback))

    def draw(
        self,
        request: Request,
        seed: int,
        settings: DiffusionSettings,
        guide: "ImageGenerator | None" = None,
        movie: list[Tensor] | None = None,
        callback: Callback = None,
    ) -> Tensor:
        """Return samples in the model's own space, (B, C, R, R) fp32; `movie` receives the pixels of each estimate."""
        model, worse = cast(DiffusionNetwork, self.model), cast(DiffusionNetwork, guide.model) if guide else None
        watched = filmed(movie, self.pixels, callback)
        return diffusion.draw(model, request.condition, request.samples, seed, settings, worse=worse, callback=watched)

    def pixels(self, x: Tensor) -> Tensor:
        """Return what the model draws, (B, C, R, R), as pixels, (B, C, H, W) uint8."""
        return to_uint8(self.codec.decode(self.codec.model.unwhitened(x.float())) if self.codec else x).cpu()

    def settings(
        self, how: DiffusionSettings, where: RunConfig, negative: str = ""
    ) -> tuple["ImageGenerator | None", dict[str, Any]]:
        """Return the model to guide away from, loaded, and the other settings by name, with the guidance that will be
        used.
        """
        guide_ = None
        if how.guide:
            guide_ = load_as(ImageGenerator, how.guide, Path(where.runs_dir), device=where.device)
            self.check_guide(guide_, negative)
        settings = {f.name: getattr(how, f.name) for f in fields(DiffusionSettings) if f.name != "guide"}
        scale = diffusion.guidance_scale(self.config, how.guidance, guide_ is not None or bool(negative))
        return guide_, settings | {"guidance": scale}

    def image_sampler(self, config: EvaluateConfig) -> ImageSampler:
        """Return what `evaluate` draws by: an image for each label, or for each caption of a model of text."""
        guide_, settings = self.settings(config, config)
        asked = {f.name: getattr(config, f.name) for f in fields(DiffusionSettings)}
        if self.config.text:
            return ImageSampler(lambda texts: self.captioned(cast(Sequence[str], texts), config, guide_), True, asked)
        return ImageSampler(
            lambda labels: self.generate(len(labels), labels, seed=config.seed, guide=guide_, **settings), False, asked
        )

    def captioned(self, captions: Sequence[str], how: EvaluateConfig, guide: "ImageGenerator | None") -> Tensor:
        """Return an image of each caption, (N, C, H, W) uint8, image i from the noise of sample i."""
        tokens, images = self.tokens(captions), []
        with self.sampling():
            for rows in batches(len(captions), how.batch_size):
                none = torch.full((len(rows),), NO_CLASS, device=self.device)
                request = Request(Condition(none, tokens[rows.start : rows.stop]), rows)
                images.append(self.pixels(self.draw(request, how.seed, how, guide)))
        return torch.cat(images)

    def animated(self, config: DiffusionSampling) -> Animation | None:
        return Animation("remix.gif", seconds=3.0) if config.what == "remix" else self.animation

    def remarks(self, config: DiffusionSampling) -> list[str]:
        asked = self.asked(config.n, config.labels, config.prompt, config.negative)  # what cannot be drawn comes first
        texts = [*asked.prompts, asked.negative]
        return unseen_words(self.tokenizer, texts) + unread_words(self.sentences, texts) + self.edit_remarks(config)

    def drawn(self, config: DiffusionSampling) -> Iterator[Drawn]:
        if config.what in EDITS:
            return self.edited(config)
        asked = self.asked(config.n, config.labels, config.prompt, config.negative)
        guide_, settings = self.settings(config, config, config.negative)
        paint, how = partial(self.painted, guide=guide_), {"seed": config.seed} | settings
        if config.what == "remix":
            return drawn_remix(paint, asked, config, how)
        if config.what == "guidance":
            return drawn_guidances(paint, asked, config, how)
        return self.drawn_images(asked, config, guide_, how)

    def drawn_images(
        self, asked: Asked, config: DiffusionSampling, guide: "ImageGenerator | None", how: dict[str, Any]
    ) -> Iterator[Drawn]:
        """Yield images, and the estimates of the first ones after each step."""
        for rows in batches(len(asked), config.batch_size):
            frames: list[Tensor] | None = [] if config.animation and rows.start < SHOWN else None
            images = self.painted(asked.rows(rows), config, guide, frames)
            yield Drawn(images, [fact | how for fact in asked.facts(rows)], asked.columns(), frames or ())
