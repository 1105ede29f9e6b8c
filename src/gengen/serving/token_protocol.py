"""What may be asked of the endpoints of tokens: a dataclass each, as in protocol.py. Pure."""

from dataclasses import dataclass

from gengen.config.fields import option
from gengen.serving.protocol import MISSING, check_model, invalid, parameter, read_messages, read_token_ids


@dataclass
class TokenizeRequest:
    """The body of POST /v1/tokenize: a text as it stands, or a conversation with its markers."""

    model: str = option("", "the run, by its name")
    prompt: str | None = option(None, "the text")
    messages: list[dict[str, str]] = parameter(read_messages, "or a conversation", [])

    def check(self) -> None:
        check_model(self.model)
        if (self.prompt is None) == (not self.messages):
            raise invalid("prompt", "give prompt, a text, or messages, a conversation", MISSING)


@dataclass
class DetokenizeRequest:
    """The body of POST /v1/detokenize."""

    model: str = option("", "the run, by its name")
    tokens: list[int] = parameter(read_token_ids, "token ids", [])

    def check(self) -> None:
        check_model(self.model)


@dataclass
class DetectRequest:
    """The body of POST /gengen/v1/watermark/detect: a text, or its tokens, and what it went on from."""

    model: str = option("", "the run whose tokens are counted, by its name")
    text: str | None = option(None, "the text")
    tokens: list[int] = parameter(read_token_ids, "or its token ids", [])
    prompt: str = option("", "what it went on from, which is not counted")

    def check(self) -> None:
        check_model(self.model)
        if (self.text is None) == (not self.tokens):
            raise invalid("text", "give text, or tokens", MISSING)
