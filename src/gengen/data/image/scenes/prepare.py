"""Scenes are prepared as all images are, once it is settled which objects they are made of."""

from dataclasses import replace
from pathlib import Path

from gengen.config.data import ScenesConfig
from gengen.data.image.prepare import PreparedImages
from gengen.data.image.prepare import prepare_for as prepare_images
from gengen.data.image.sources.scenes import PACKAGE
from gengen.data.prepared import PrepareRequest
from gengen.data.sources.wheels import wheel
from gengen.errors import UserError
from gengen.io import Say


def prepare_for(request: PrepareRequest[ScenesConfig]) -> PreparedImages:
    """Prepare scenes; the config of what is returned says which objects they have."""
    return prepare_images(replace(request, config=settle_sprites(request.config, request.say)))


def settle_sprites(config: ScenesConfig, say: Say) -> ScenesConfig:
    """Return the config with `sprites: auto` settled: Twemoji where their archive can be had, else drawn shapes, with
    one line that says so."""
    if config.sprites != "auto":
        return config
    try:
        wheel(PACKAGE, Path(config.dir) / "wheels", say)
        return replace(config, sprites="twemoji")
    except UserError as error:
        why = str(error).splitlines()[0].removeprefix("data: ")
        say(f"data: {why}; drawn shapes are used instead (data.sprites=shapes)")
        return replace(config, sprites="shapes")
