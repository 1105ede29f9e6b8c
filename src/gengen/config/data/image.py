"""Configs of images."""

from dataclasses import dataclass
from typing import Any

from gengen.config.data.base import DataConfig
from gengen.config.fields import choice, option, positive
from gengen.errors import UserError
from gengen.registry import SOURCES, SourceNames, register_data

VOCABULARY = 1024
LANGUAGES = ("en", "ar", "de", "es", "fa", "fr", "id", "it", "ja", "ko", "pt", "ru", "tr", "zh")
"""Of the names that CLDR gives emoji; English first."""

SOURCES["image"] = {
    "animals": "gengen.data.image.sources.animals:Animals",
    "mnist": "gengen.data.image.sources.digits:Digits",
    "emoji": "gengen.data.image.sources.emoji:Emoji",
    "hub": "gengen.data.image.sources.hub:HubPictures",
    "files": "gengen.data.image.sources.folder:ImageFolder",
    "scenes": "gengen.data.image.sources.scenes:Scenes",
}


BUILDS = {
    "prepare": "gengen.data.image.prepare:prepare_for",
    "datamodule": "gengen.data.loader:datamodule_for",
}


@register_data("animals", "mnist", "cifar10", "imagefolder", kind="image", **BUILDS)
@dataclass
class ImageConfig(DataConfig):
    """Images: files -> squares of one size in uint8, with a class and a caption where the source has them."""

    source: str = choice("files", SourceNames("image"), "where images come from")
    hub: str | None = option(None, "data set id on the hub")
    path: str | None = option(
        None, "your own folder of .png, .jpg and .webp: a folder a class; captions from its metadata.jsonl"
    )
    licence: str = option("unknown", "terms the data comes under, shown and recorded")
    resolution: int = positive(32, "pixels a side")
    channels: int = option(3, "1 = grey, 3 = RGB", low=1, high=3)
    flip: bool = option(
        False, "mirror half of the training images, drawn anew each epoch; only where a mirrored image keeps its class"
    )
    validation: float = option(0.1, "share held out for validation", above=0, below=1)
    holdout: str = choice(
        "groups",
        ["groups", "combinations"],
        "validation is a share of the groups of each class, or of the combinations of what captions ask for "
        "(colour x shape), each part of which stays in training",
    )
    vocab_size: int = option(VOCABULARY, "tokens that BPE of the captions is trained to at most", low=257)
    max_uncaptioned: float = option(
        0.0, "share of images without a caption that a model of text is trained on, as unconditional", low=0, high=1
    )

    def facts(self) -> dict[str, Any]:
        return {"resolution": self.resolution, "channels": self.channels}

    def check(self) -> None:
        super().check()
        if self.channels == 2:
            raise UserError("data.channels=2: images are grey (1) or RGB (3)")


@register_data("emoji", kind="image", **BUILDS)
@dataclass
class EmojiConfig(ImageConfig):
    """Emoji, with captions in several languages."""

    language: str = choice(
        "en", [*LANGUAGES, "all"], "of the captions; all = each picture has captions in every language"
    )


@register_data("scenes", kind="image", **BUILDS | {"prepare": "gengen.data.image.scenes.prepare:prepare_for"})
@dataclass
class ScenesConfig(ImageConfig):
    """Scenes: one to four coloured objects on white, drawn as they are prepared, with captions that are true."""

    resolution: int = option(48, "pixels a side", low=32, high=64)
    channels: int = option(3, "3 = RGB: captions name colours", low=3, high=3)
    scenes: int = positive(20_000, "how many are drawn")
    scene_seed: int = option(0, "what they are drawn from; others are other scenes", low=0)
    sprites: str = choice(
        "auto",
        ["auto", "twemoji", "shapes"],
        "objects: recoloured Twemoji, or drawn shapes (circle, square, ...); auto = Twemoji where they can be had",
    )

    def check(self) -> None:
        super().check()
        if self.flip:
            raise UserError("data.flip=true: of a mirrored scene captions with left and right are not true")
