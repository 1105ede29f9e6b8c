"""Prepared images: what is made of a config, and drawn in batches {"images", "labels", "index"} (see
PreparedImages.batch).
"""

from gengen.config.data import ImageConfig
from gengen.config.model import ModelConfig
from gengen.data.image.decode import decode
from gengen.data.image.prepare import ImageSet, PreparedImages, prepare
from gengen.data.loader import IndexedData as ImageData
from gengen.data.loader import datamodule_for
from gengen.data.sources.files import Say

__all__ = ["ImageData", "ImageSet", "PreparedImages", "datamodule_for", "decode", "prepare"]


def prepare_for(config: ImageConfig, model: ModelConfig, say: Say, tokenizer: str | None) -> PreparedImages:
    """The prepared images, the same for every model; the last two parameters are text's."""
    return prepare(config, say)
