"""Configs of what later stages are trained on: conversations, preferences, ratings, prompts."""

from dataclasses import dataclass
from typing import ClassVar

from gengen.config.data.base import DataConfig
from gengen.config.fields import choice, option, positive
from gengen.registry import SOURCES, SourceNames, register_data

EVERYWHERE = {
    "files": "gengen.data.dialogue.sources.files:DialogueFiles",
    "hub": "gengen.data.dialogue.sources.hub:HubDialogues",
}
STORYGEN = {"storygen": "gengen.data.dialogue.sources.storygen:StorygenDialogues"}
SOURCES["conversations"] = {**EVERYWHERE, "wheel": "gengen.data.dialogue.sources.corpora:Corpora", **STORYGEN}
SOURCES["preferences"] = {**EVERYWHERE, **STORYGEN}
SOURCES["ratings"] = {**EVERYWHERE, **STORYGEN}
SOURCES["prompts"] = {**EVERYWHERE, **STORYGEN}
FROM = "where records come from; data.path and data.hub go before it"


@dataclass
class ExamplesConfig(DataConfig):
    """What the data of post-training has: records of messages, from a built-in source, your own .jsonl or the hub."""

    kind: ClassVar[str]

    source: str = choice("files", SourceNames("prompts"), FROM)
    hub: str | None = option(None, "data set id on the hub")
    path: str | None = option(None, "your own .jsonl or .jsonl.gz, or a folder of them")
    licence: str = option("unknown", "terms that your own data comes under, shown and recorded")
    validation: float = option(
        0.05, "share of the prompts held out for validation, where the source holds out none", above=0, below=1
    )
    max_examples: int | None = positive(
        None, "records to read at most, besides those the source holds out; null = all"
    )


@register_data(
    "instructions",
    "stories",
    kind="conversations",
    prepare="gengen.data.dialogue.prepare:prepare_for",
    datamodule="gengen.data.loader:datamodule_for",
)
@dataclass
class ConversationsConfig(ExamplesConfig):
    """Conversations: messages -> tokens, of which the assistant's are trained on, packed into rows of the model's
    context.
    """

    kind = "conversations"
    source: str = choice("files", SourceNames("conversations"), FROM)
    train_on: str = choice(
        "assistant",
        ["assistant", "last", "all"],
        "what is learnt: all the assistant says, its last message, or everything",
    )


@register_data(
    "preferences",
    kind="preferences",
    prepare="gengen.data.dialogue.prepare:prepare_for",
    datamodule="gengen.data.loader:datamodule_for",
)
@dataclass
class PreferencesConfig(ExamplesConfig):
    """Preferences: a prompt and two responses, of which the first is chosen."""

    kind = "preferences"
    source: str = choice("files", SourceNames("preferences"), FROM)


@register_data(
    "ratings",
    kind="ratings",
    prepare="gengen.data.dialogue.prepare:prepare_for",
    datamodule="gengen.data.loader:datamodule_for",
)
@dataclass
class RatingsConfig(ExamplesConfig):
    """Ratings: a prompt, an answer, and whether that is good. Preferences are read too, each as two of them."""

    kind = "ratings"
    source: str = choice("files", SourceNames("ratings"), FROM)


@register_data(
    "prompts",
    kind="prompts",
    prepare="gengen.data.dialogue.prepare:prepare_for",
    datamodule="gengen.data.loader:datamodule_for",
)
@dataclass
class PromptsConfig(ExamplesConfig):
    """Prompts, which the model itself answers."""

    kind = "prompts"
    source: str = choice("files", SourceNames("prompts"), FROM)
    eval_batch_size = 256  # drawing an answer holds nothing for a backward pass
