"""Prepared images: what is made of a config, and drawn in batches {"images", "labels", "index"} (see PreparedImages.batch)."""

from gengen.config.data import ImageConfig
from gengen.config.model import ModelConfig
from gengen.data.image_files import decode
from gengen.data.image_prepare import ImageSet, PreparedImages, prepare
from gengen.data.sources import Say
from gengen.data.steps import IndexedData as ImageData
from gengen.data.steps import datamodule_for

__all__ = ["ImageData", "ImageSet", "PreparedImages", "datamodule_for", "decode", "prepare"]


def prepare_for(config: ImageConfig, model: ModelConfig, say: Say, tokenizer: str | None) -> PreparedImages:
    """The prepared images, the same for every model; the last two parameters are text's."""
    return prepare(config, say)
