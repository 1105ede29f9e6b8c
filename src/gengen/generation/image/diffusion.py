"""From a diffusion model to images: noise of each sample's own, a sampler, guidance, and the codec back to pixels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from gengen.checkpoints.layout import read_tokenizer
from gengen.config.commands import DiffusionSampling, DiffusionSettings, EvaluateConfig, RunConfig
from gengen.config.model import DiffusionConfig
from gengen.config.schema import build
from gengen.data.image.captions import caption_tokens
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation import diffusion
from gengen.generation.base import Labels, LabelSampler
from gengen.generation.diffusion import Condition
from gengen.generation.image.autoencoder import AutoencoderGenerator
from gengen.generation.image.codec import codec_hash
from gengen.generation.image.files import (
    SHOWN,
    Animation,
    Drawn,
    PictureGenerator,
    batches,
    labels_at,
    labels_of,
    named,
    to_uint8,
    turn_of,
)
from gengen.generation.load import load_as
from gengen.models.diffusion_network import DiffusionNetwork
from gengen.models.layers import NO_CLASS


@dataclass(frozen=True)
class Request:
    """What is to be drawn: a condition, and the number of each sample, which its noise is a function of."""

    condition: Condition
    samples: Sequence[int]

    def rows(self, rows: range) -> "Request":
        """Return some rows of it."""
        return Request(self.condition.rows(rows), self.samples[rows.start : rows.stop])


class ImageGenerator(PictureGenerator[nn.Module, DiffusionSampling]):
    """Draws images with a diffusion model of any network; what `gengen.load` returns for one.

    Noise of image i comes from (seed, i) alone, so in fp32 neither n nor batch_size changes it by more than rounding.
    """

    animation = Animation("denoising.gif", seconds=3.0)
    config: DiffusionConfig

    def __init__(
        self,
        model: nn.Module,
        codec: AutoencoderGenerator | None = None,
        tokenizer: TextTokenizer | None = None,
    ):
        """codec: of a model of latents; tokenizer: of a model that reads captions."""
        super().__init__(model)
        self.codec, self.tokenizer = codec, tokenizer

    @classmethod
    def from_checkpoint(cls, model: nn.Module, directory: Path) -> Self:
        self = cls(model)
        if self.config.needs_codec():
            folder = directory.parent.parent / "codec"
            self.codec = load_as(AutoencoderGenerator, str(folder), device=str(self.device))
        if self.config.text:
            self.tokenizer = TextTokenizer.from_json(read_tokenizer(directory) or "")
        return self

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
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Tensor:
        """Return n images, (n, C, H, W) uint8, samples `first` and the next ones; with prompts, n of each, those of
        one prompt side by side, from the same noise for each prompt.

        labels: names, or numbers as ints or a tensor, in turn; none = all in turn. prompts: what a model that reads
        captions is to show; none = whatever comes, as for "". negative: a text to guide away from, instead of the
        empty one. guide: a smaller or earlier model to guide away from, instead of this one without its condition.
        frames: a list that receives the estimates of all images after each step. Once `interrupted` answers true, the
        rest is left undrawn. The other settings are explained in DiffusionSettings.
        """
        settings: DiffusionSampling = build(DiffusionSampling, {
            "n": n, "seed": seed, "sampler": sampler, "steps": steps, "guidance": guidance, "guide_from": guide_from,
            "guide_to": guide_to, "rescale": rescale, "precision": precision, "batch_size": batch_size,
        })  # fmt: skip
        if guide:
            self.check_guide(guide)
        request = self.request(n, labels, [prompts] if isinstance(prompts, str) else prompts, negative, first)
        images, movies = [], []
        with self.sampling():
            for rows in batches(len(request.samples), batch_size):
                if interrupted():
                    break
                movie: list[Tensor] | None = None if frames is None else []
                images.append(self.pixels(self.draw(request.rows(rows), seed, settings, guide, movie)))
                movies.append(movie)
        if frames is not None:
            frames += [torch.cat(parts) for parts in zip(*(movie or [] for movie in movies), strict=True)]
        return torch.cat(images) if images else torch.empty(0, dtype=torch.uint8)

    def request(self, n: int, labels: Labels, prompts: Sequence[str], negative: str, first: int) -> "Request":
        """Return what is to be drawn: n samples, or n of each prompt. Raises UserError for words to a model that reads
        none, and for classes to one that does.
        """
        if not self.config.text:
            if prompts or negative:
                example = f"labels={self.classes[0]}" if self.classes else "neither prompts nor labels"
                known = f"{len(self.classes)} classes" if self.classes else "no conditions"
                raise UserError(
                    f"prompt={(prompts or [negative])[0]!r}: this run knows {known} and no texts: {example}; "
                    "model.text=true trains one that reads captions"
                )
            return Request(Condition(labels_of(labels, self.classes, n).to(self.device)), range(first, first + n))
        if len(labels):
            raise UserError('labels: this run knows texts and no classes: prompt="..." says what to show')
        count = n * max(1, len(prompts))
        each = self.tokens(prompts or [""]).repeat_interleave(n, 0)
        away = self.tokens([negative]).expand(count, -1) if negative else None
        none = torch.full((count,), NO_CLASS, device=self.device)
        return Request(Condition(none, each, negative=away), [*range(first, first + n)] * max(1, len(prompts)))

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts, (N, L). Raises UserError for one that is too long."""
        assert self.tokenizer, "a model that reads captions comes with its tokenizer"
        return caption_tokens(self.tokenizer, texts, self.config.text_context, "a prompt").to(self.device)

    def check_guide(self, guide: "ImageGenerator") -> None:
        """Raise UserError unless both models mean the same by x_t, by a label and by a token."""
        for key in ("path", "shift", "resolution", "channels", "classes", "text", "text_context"):
            ours, theirs = getattr(self.config, key), getattr(guide.config, key)
            if ours != theirs:
                raise UserError(f"guide: its model.{key} is {theirs}, this model's is {ours}; they must be the same")
        ours, theirs = (generator.codec and codec_hash(generator.codec.model) for generator in (self, guide))
        if ours != theirs:
            raise UserError("guide: its latents are another codec's than this model's")
        if (self.tokenizer and self.tokenizer.hash) != (guide.tokenizer and guide.tokenizer.hash):
            raise UserError("guide: its captions are another tokenizer's than this model's")

    def draw(
        self,
        request: "Request",
        seed: int,
        settings: DiffusionSettings,
        guide: "ImageGenerator | None" = None,
        movie: list[Tensor] | None = None,
    ) -> Tensor:
        """Return samples in the model's own space, (B, C, R, R) fp32; `movie` receives the pixels of each estimate."""
        model, worse = cast(DiffusionNetwork, self.model), cast(DiffusionNetwork, guide.model) if guide else None
        callback = None if movie is None else lambda i, t, x, x0: movie.append(self.pixels(x0))
        return diffusion.draw(
            model, request.condition, request.samples, seed, settings, worse=worse, callback=callback
        )

    def pixels(self, x: Tensor) -> Tensor:
        """Return what the model draws, (B, C, R, R), as pixels, (B, C, H, W) uint8."""
        return to_uint8(self.codec.decode(self.codec.model.unwhitened(x.float())) if self.codec else x).cpu()

    def settings(self, how: DiffusionSettings, where: RunConfig) -> tuple["ImageGenerator | None", dict[str, Any]]:
        """Return the model to guide away from, loaded, and the other settings by name, with the guidance that will be
        used.
        """
        guide_ = None
        if how.guide:
            guide_ = load_as(ImageGenerator, how.guide, Path(where.runs_dir), device=where.device)
        settings = {f.name: getattr(how, f.name) for f in fields(DiffusionSettings) if f.name != "guide"}
        scale = diffusion.guidance_scale(self.config, how.guidance, guide_ is not None)
        return guide_, settings | {"guidance": scale}

    def label_sampler(self, config: EvaluateConfig) -> LabelSampler:
        """Return what `evaluate` draws by: an image for each label."""
        guide_, settings = self.settings(config, config)
        asked = {f.name: getattr(config, f.name) for f in fields(DiffusionSettings)}
        return LabelSampler(
            lambda labels: self.generate(len(labels), labels, seed=config.seed, guide=guide_, **settings), asked
        )

    def drawn(self, config: DiffusionSampling) -> Iterator[Drawn]:
        guide_, settings = self.settings(config, config)
        turn, seed = turn_of(config.labels, self.classes), config.seed
        for samples in batches(config.n, config.batch_size):
            frames: list[Tensor] | None = [] if config.animation and samples.start < SHOWN else None
            labels = labels_at(turn, samples)
            images = self.generate(
                len(samples), labels, seed=seed, first=samples.start, frames=frames, guide=guide_, **settings
            )
            each = zip(samples, labels.tolist(), strict=True)
            facts = [{"index": i, "seed": seed} | settings | named(label, self.classes) for i, label in each]
            yield Drawn(images, facts, frames=frames or ())
