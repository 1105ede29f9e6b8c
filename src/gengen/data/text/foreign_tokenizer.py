"""The tokenizer of imported weights: a tokenizer.json from anyone, of which nothing but the encoding of plain text is
used.

It is loaded and tried in another process first: it may hang, panic or fill its memory.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer, models

from gengen.data.text.tokenizer import SETTINGS, TextTokenizer, answered, byte_alphabet, parsed
from gengen.io import Json

MAX_SIZE = 2**20  # ids of a foreign vocabulary
NEEDED = {9, 10, 13, *range(32, 127), *range(0x80, 0xC0), *range(0xC2, 0xF1)}
"""The bytes of text, but for control characters and the nearly empty planes of Unicode, which some foreign
vocabularies lack.
"""
KINDS = {"Sequence", "NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace", "ByteLevel", "Digits", "Metaspace", "Split"}
"""What a foreign tokenizer may do to a text before it is encoded."""
SECONDS = 10  # for a foreign tokenizer to be loaded and tried
PROBE = r"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30,) * 2)
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_str(sys.stdin.buffer.read().decode())
for character in "a1 \n!'\u00e9\u65e5":
    tokenizer.encode(1000 * character + "\0")
"""


def types(part: Json) -> set[str]:
    """Return the types of a part of a tokenizer.json and of what is inside it."""
    inside = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return set().union(*map(types, inside)) | ({part["type"]} if isinstance(part, dict) and "type" in part else set())


@lru_cache(maxsize=2)
def probe(text: str) -> None:
    """Let another process load a tokenizer and encode awkward texts; raise ValueError where that hangs, panics or
    fills the memory."""
    command, quiet = [sys.executable, "-P", "-c", PROBE], os.environ | {"RUST_BACKTRACE": "0"}
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=SECONDS, env=quiet)
    except subprocess.TimeoutExpired:
        raise ValueError(f"it takes more than {SECONDS} s to load and to encode some thousand characters") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").splitlines()
        lines = [line for line in said if line and not line.startswith("note:")]
        raise ValueError((lines or [f"signal {-done.returncode}"])[-1])


def read_foreign(found: dict[str, Any]) -> TextTokenizer:
    """Build the tokenizer that `ForeignTokenizer.to_json` wrote. Raises whatever is wrong with it."""
    return ForeignTokenizer(found["tokenizer"], found["start"], found["end"], found["size"], found.get("more", []))


class ForeignTokenizer(TextTokenizer):
    """A byte is spelled as in ours (GPT-2, Llama 3, Qwen), or as <0x0A> among tokens of characters, where a space is
    \u2581 (Llama 2). Special tokens and ids without a token stand for no bytes. A text comes back as it does
    elsewhere: some tokenizers normalise Unicode, Llama 2's puts a space before a text, and what a vocabulary has no
    byte for is left out.
    """

    cuts_words: bool = False

    def __init__(
        self, inner: dict[str, Any], start: int | str, end: int | str, size: int, more: Sequence[int | str] = ()
    ):
        """Use `wrap` or `from_json`. inner: the parsed tokenizer.json; start, end: a token or its id; size: ids that
        the weights know; more: other tokens that end a text."""
        check_kinds(inner)
        probe(text := json.dumps(inner | dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))))
        bpe = Tokenizer.from_str(text)
        bpe.encode_special_tokens = True  # the names of special tokens are text
        token_bytes = bytes_of_tokens(bpe, decoded_by(inner, bpe), size)
        first, *ends = ids_of(bpe, start, (end, *more), size)
        found = {"gengen": "foreign", "start": first, "end": ends[0], "size": size, "tokenizer": inner}
        found |= {"more": ends[1:]} if ends[1:] else {}
        super().__init__(json.dumps(found, ensure_ascii=False), token_bytes, bpe, first, ends[0])
        self.ends = tuple(ends)
        if self.decode(self.encode(sample := "a 1\u65e5")).strip() != sample:
            raise ValueError(f"it does not give {sample!r} back")

    @classmethod
    def wrap(
        cls, text: str, start: int | str, end: int | str, size: int, more: Sequence[int | str] = ()
    ) -> "ForeignTokenizer":
        """From a tokenizer.json that came with weights. Raises UserError for any but the two kinds of BPE above."""
        with answered("this tokenizer.json cannot be used"):
            return cls(parsed(text), start, end, size, more)

    def pieces(self, text: str) -> Iterator[str]:
        """Yield the whole: its words may begin elsewhere than ours."""
        yield text

    def huggingface(self, context: int) -> dict[str, Any]:
        """As in TextTokenizer; the tokenizer.json is the one that was imported."""
        assert self._bpe
        special = {"bos_token": self._bpe.id_to_token(self.start), "eos_token": self._bpe.id_to_token(self.eot)}
        config = SETTINGS | {"model_max_length": context} | {key: name for key, name in special.items() if name}
        return {"tokenizer.json": json.loads(self._json)["tokenizer"], "tokenizer_config.json": config}


def check_kinds(inner: dict[str, Any]) -> None:
    """Raise ValueError where a tokenizer.json does anything unknown to a text before it is encoded."""
    if odd := types([inner.get("normalizer"), inner.get("pre_tokenizer")]) - KINDS:
        named = " and ".join(sorted(odd))
        raise ValueError(f"{named} before encoding is not supported: {', '.join(sorted(KINDS))} are")


def decoded_by(inner: dict[str, Any], bpe: Tokenizer) -> str:
    """Return which of the two kinds of BPE a tokenizer is: ByteLevel or ByteFallback. Raises ValueError for any
    other."""
    decoder = inner.get("decoder") or {"type": "nothing"}
    kinds = {part["type"] for part in decoder.get("decoders", [decoder])}
    if not isinstance(bpe.model, models.BPE) or not kinds & {"ByteLevel", "ByteFallback"} or bpe.model.dropout:
        name = type(bpe.model).__name__ + (" with dropout" if getattr(bpe.model, "dropout", None) else "")
        allowed = "byte-level BPE (GPT-2, Llama 3, Qwen) and BPE with byte fallback (Llama 2) are"
        raise ValueError(f"{name}, decoded by {' and '.join(sorted(kinds))}, is not supported: {allowed}")
    return "ByteLevel" if "ByteLevel" in kinds else "ByteFallback"


def bytes_of_tokens(bpe: Tokenizer, kind: str, size: int) -> list[bytes]:
    """Return the bytes of each of `size` ids; none where an id has no token, or a special one. Raises ValueError where
    the vocabulary lacks bytes of text, or does not fit."""
    spelled = byte_alphabet() if kind == "ByteLevel" else {f"<0x{byte:02X}>": byte for byte in range(256)}

    def bytes_of(token: str) -> bytes:
        if kind == "ByteLevel":
            return bytes(spelled[character] for character in token)
        return bytes([spelled[token]]) if token in spelled else token.replace("\u2581", " ").encode()

    vocabulary, added = bpe.get_vocab(), bpe.get_added_tokens_decoder()
    if missing := NEEDED - {byte for token, byte in spelled.items() if token in vocabulary}:
        raise ValueError(f"{len(missing)} of the bytes of text have no token")
    last, ids = max(vocabulary.values()), set(vocabulary.values())
    if not last < size <= MAX_SIZE or len(ids) < len(vocabulary):
        raise ValueError(f"its {len(vocabulary):,} tokens, up to id {last:,}, do not fit the model's {size:,} ids")
    token_bytes = [b""] * size
    for token, i in vocabulary.items():
        if i not in added or not added[i].special:
            token_bytes[i] = token.encode() if i in added else bytes_of(token)
    return token_bytes


def ids_of(bpe: Tokenizer, start: int | str, ends: Sequence[int | str], size: int) -> list[int]:
    """Return the ids of the token that begins a text and, each once, of those that end one. Raises ValueError where
    one is not among the tokens."""
    ids = [bpe.token_to_id(token) if isinstance(token, str) else token for token in (start, *ends)]
    known = [i for i in ids if type(i) is int and 0 <= i < size]
    if len(known) < len(ids):
        ended = " or ".join(map(repr, ends))
        raise ValueError(f"texts would begin with {start!r} and end with {ended}, which are not all among its tokens")
    return [known[0], *dict.fromkeys(known[1:])]
