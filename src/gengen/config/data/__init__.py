"""Data configs: which set, from which source, cut and batched how. One file a modality."""

from gengen.config.data.base import DataConfig
from gengen.config.data.dialogue import (
    ConversationsConfig,
    ExamplesConfig,
    PreferencesConfig,
    PromptsConfig,
    RatingsConfig,
)
from gengen.config.data.image import EmojiConfig, ImageConfig, ScenesConfig
from gengen.config.data.text import TextConfig

__all__ = [
    "ConversationsConfig",
    "DataConfig",
    "EmojiConfig",
    "ExamplesConfig",
    "ImageConfig",
    "PreferencesConfig",
    "PromptsConfig",
    "RatingsConfig",
    "ScenesConfig",
    "TextConfig",
]
