"""Config fields of what is sampled: marks that a key finds again, and filters of texts."""

from dataclasses import dataclass

from gengen.config.fields import choice, option


@dataclass
class WatermarkSettings:
    """Whether a text is marked as drawn by a model, so that the owner of a key can tell."""

    watermark: str | None = option(None, "key file: mark the texts, so that detect finds them by this key")
    watermark_delta: float = option(
        2.0, "added to the logits of the half of all tokens that the mark prefers: the more, the easier it is found",
        above=0, high=20,
    )  # fmt: skip


@dataclass
class MarkSettings:
    """What the files of pictures say of where they come from, and a mark in the pictures themselves."""

    provenance: bool = option(True, "write into each PNG how it was drawn, and that a model drew it")
    mark: str | None = option(None, "key file: mark the pictures invisibly, so that detect finds them by this key")


@dataclass
class FilterSettings:
    """What may not be in prompts and texts."""

    filter: list[str] = option(
        [],
        "patterns (personal data, keys), words:FILE, copies:TOKENS (of the training text), your own, or a reward run; "
        "repeat for several",
    )
    filter_action: str = choice(
        "redact", ["redact", "refuse"], "replace what is found by [its kind], or end the text before it"
    )
    filter_threshold: float = option(0.0, "a reward run: texts that it scores below this are found")
