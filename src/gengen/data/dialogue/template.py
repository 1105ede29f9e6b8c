"""The chat template: messages -> tokens, and which of them are trained on.

    start  <|user|> Hello <|end|>  <|assistant|> Hi <|end|>  <|user|> ...  <|assistant|>     here the model answers

Each message stands between a token of its role and <|end|>. These are ids of their own, which no text spells: a
message that has "<|end|>" in it is plain text.
"""

import sys

from gengen.data.text.tokenizer import ROLES, TextTokenizer
from gengen.io import Json

Messages = list[dict[str, str]]
"""[{"role": one of ROLES, "content": text}, ...]"""


def read_messages(value: Json, key: str, speaker: str = "user") -> Messages:
    """Return the messages that a record's key holds: a list of them, or a string, which is the speaker's. A ValueError
    says what is wrong."""
    value = [{"role": speaker, "content": value}] if isinstance(value, str) else value
    if not isinstance(value, list) or not value:
        raise ValueError(f"{key!r} holds {type(value).__name__ if value else 'nothing'}, not messages")
    found = []
    for i, message in enumerate(value):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            raise ValueError(
                f"{key}[{i}] is {str(message)[:60]}, not {{role, content}}, a role being one of {', '.join(ROLES)}"
            )
        content.encode()  # half a surrogate pair is a UnicodeEncodeError
        found.append({"role": role, "content": content})
    return found


def conversation_tokens(
    tokenizer: TextTokenizer, messages: Messages, train_on: str = "assistant"
) -> tuple[list[int], list[int]]:
    """Return (tokens, mask): mask is 1 on content and <|end|> of every message of the "assistant", of its "last" one
    only, or on "all" but start."""
    chat = tokenizer.chat
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    trained = answers[-1:] if train_on == "last" else answers
    tokens, mask = [tokenizer.start], [0]
    for i, message in enumerate(messages):
        said = [*tokenizer.encode(message["content"]), chat["end"]]
        tokens += [chat[message["role"]], *said]
        mask += [int(train_on == "all"), *[int(train_on == "all" or i in trained)] * len(said)]
    return tokens, mask


def prompt_tokens(tokenizer: TextTokenizer, messages: Messages) -> list[int]:
    """Return the tokens of messages up to where the assistant speaks."""
    return [*conversation_tokens(tokenizer, messages)[0], tokenizer.chat["assistant"]]


def coloured(tokenizer: TextTokenizer, tokens: list[int], mask: list[int]) -> str:
    """Return one line that shows each token between bars: on a terminal green if it is trained on and grey if not;
    else in brackets if it is."""
    names = {i: f"<|{name}|>" for name, i in tokenizer.chat.items()} | {tokenizer.start: "<|start|>"}
    shown = [names.get(token) or repr(tokenizer.decode([token]))[1:-1] for token in tokens]
    colours = {0: "\x1b[90m{}\x1b[0m", 1: "\x1b[32m{}\x1b[0m"} if sys.stdout.isatty() else {0: "{}", 1: "[{}]"}
    return "|".join(colours[trained].format(text) for text, trained in zip(shown, mask, strict=True))
