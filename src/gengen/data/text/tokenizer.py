"""Text to token ids and back, exactly: byte-level BPE, or plain bytes; or the BPE of imported weights. Saved as one
JSON string.

Every token is a string of bytes, so decoding is joining them. Of ours, id 0 ends a text and stands for no bytes.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from gengen.config.limits import parse_json
from gengen.errors import UserError

END_OF_TEXT = "<|endoftext|>"
MAX_JSON = 32 * 2**20  # bytes
MAX_SIZE = 2**20  # ids of a foreign vocabulary
NEEDED = {9, 10, 13, *range(32, 127), *range(0x80, 0xC0), *range(0xC2, 0xF1)}
"""The bytes of text, but for control characters and the nearly empty planes of Unicode, which some foreign
vocabularies lack.
"""
BYTE_JSON = json.dumps({"gengen": "byte"})
SETTINGS = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}  # for transformers
ROLES = ("system", "user", "assistant")  # of the messages of a conversation
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""What chat.py does, in the words of transformers."""
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
CUT = re.compile(r"(?<=\S)(?=[ \n])")


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte (Radford et al. 2019): character -> byte.

    Printable Latin-1 bytes stand for themselves; the n-th of the others is written as character 256 + n.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def pieces(text: str, size: int = 2**18) -> Iterator[str]:
    """Cut a text into parts of at least `size` characters such that encoding them one by one equals encoding it whole.

    GPT-2's pre-tokenizer always starts a new word at white space that follows anything else, so cuts are made there.
    """
    start = 0
    while cut := CUT.search(text, start + size):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def encodable(text: str) -> str:
    """The text itself; half a surrogate pair, which no UTF-8 can hold, becomes a question mark."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()


def parsed(text: str) -> Any:
    if (size := len(text.encode())) > MAX_JSON:
        raise ValueError(f"{size:,} bytes, at most {MAX_JSON:,} are allowed")
    return parse_json(text)


@contextmanager
def answered(what: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes a UserError that says `what`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        raise UserError(f"tokenizer: {what} ({type(error).__name__}: {str(error)[:300]})") from None


def types(part: Any) -> set[str]:
    """The types of a part of a tokenizer.json and of what is inside it."""
    inside = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return set().union(*map(types, inside)) | ({part["type"]} if isinstance(part, dict) and "type" in part else set())


@lru_cache(maxsize=2)
def probe(text: str) -> None:
    """Let another process load a tokenizer and encode awkward texts: it may hang, panic or fill its memory. Raises
    ValueError if so.
    """
    command, quiet = [sys.executable, "-P", "-c", PROBE], os.environ | {"RUST_BACKTRACE": "0"}
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=SECONDS, env=quiet)
    except subprocess.TimeoutExpired:
        raise ValueError(f"it takes more than {SECONDS} s to load and to encode some thousand characters") from None
    if done.returncode:
        lines = [
            line for line in done.stderr.decode(errors="replace").splitlines() if line and not line.startswith("note:")
        ]
        raise ValueError((lines or [f"signal {-done.returncode}"])[-1])


class TextTokenizer:
    """Encodes any str; `decode(encode(s)) == s`, also where s spells out the name of the end-of-text token.

    start: the id that a prompt begins with; eot: the id that ends a text. In ours both are 0. ends: all ids that end a
    text when they are drawn, eot first, which imported weights have several of. chat: the ids of a conversation's
    roles and of the "end" of a message, where it has them (`with_chat`).
    """

    chat: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, text: str, token_bytes: list[bytes], bpe: Tokenizer | None, start: int = 0, eot: int = 0):
        """Use `train`, `byte` or `from_json`. text: its JSON; token_bytes: the bytes of each id; bpe: None for plain
        bytes.
        """
        self._json, self._bytes, self._bpe = text, token_bytes, bpe
        self.start, self.eot = start, eot
        self.ends: tuple[int, ...] = (eot,)

    @classmethod
    def byte(cls) -> "TextTokenizer":
        """Ids 1..256 are the bytes."""
        return cls(BYTE_JSON, [b"", *(bytes([b]) for b in range(256))], None)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "TextTokenizer":
        """Byte-level BPE of at most vocab_size tokens; fewer where the texts repeat too little. The same texts give
        the same JSON.
        """
        if vocab_size < 257:
            raise UserError(f"a byte-level vocabulary needs 257 tokens at least, found {vocab_size}")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(byte_alphabet()),
        )
        tokenizer.train_from_iterator(map(encodable, texts), trainer)
        return cls.from_json(tokenizer.to_str())

    @classmethod
    def from_json(cls, text: str) -> "TextTokenizer":
        """Read what `to_json` wrote. Of the tokenizers JSON only vocabulary and merges are taken: all else is fixed
        here.

        The text may come from anywhere: whatever is wrong with it is a UserError.
        """
        with answered("the JSON is not one that gengen wrote"):
            found = parsed(text)
            if found == json.loads(BYTE_JSON):
                return cls.byte()
            if found.get("gengen") == "foreign":
                return ForeignTokenizer(
                    found["tokenizer"], found["start"], found["end"], found["size"], found.get("more", [])
                )
            if found.get("gengen") == "chat":
                return cls.from_json(found["tokenizer"]).with_chat()
            vocabulary, merges = found["model"]["vocab"], [(left, right) for left, right in found["model"]["merges"]]
            if sorted(vocabulary.values()) != list(range(len(vocabulary))) or vocabulary.get(END_OF_TEXT) != 0:
                raise ValueError(f"ids must be 0..{len(vocabulary) - 1}, and {END_OF_TEXT} must be id 0")
            alphabet = byte_alphabet()
            if missing := alphabet.keys() - vocabulary.keys():
                raise ValueError(f"{len(missing)} of the 256 bytes have no token")
            if unknown := next((pair for pair in merges if "".join(pair) not in vocabulary), None):
                raise ValueError(f"{unknown} are merged into no token")
            words = sorted(vocabulary, key=vocabulary.__getitem__)[1:]
            token_bytes = [b"", *(bytes(alphabet[character] for character in word) for word in words)]
            bpe = Tokenizer(models.BPE(vocabulary, merges))
            bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            return cls(text, token_bytes, bpe)

    def to_json(self) -> str:
        return self._json

    def with_chat(self) -> "TextTokenizer":
        """The same with the four ids of a conversation."""
        return self if self.chat else ChatTokenizer(self)

    def encode(self, text: str) -> list[int]:
        if self._bpe is None:
            return [byte + 1 for byte in encodable(text).encode()]
        with answered("it cannot encode this text"):
            return self._bpe.encode(encodable(text), add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each, in threads."""
        if self._bpe is None:
            return [self.encode(text) for text in texts]
        with answered("it cannot encode these texts"):
            encodings = self._bpe.encode_batch_fast([encodable(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def pieces(self, text: str) -> Iterator[str]:
        """Parts of a long text that may be encoded one by one."""
        return pieces(text)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes, which may end inside a character."""
        return b"".join(self._bytes[i] for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace")

    @property
    def vocab_size(self) -> int:
        return len(self._bytes)

    @cached_property
    def hash(self) -> str:
        """sha256 of the JSON."""
        return hashlib.sha256(self._json.encode()).hexdigest()

    def huggingface(self, context: int) -> dict[str, Any]:
        """What transformers reads, by file name. It puts the end of text before a text, as a prompt of ours has it."""
        found = json.loads(self._json)
        bytewise = {END_OF_TEXT: 0} | {character: 1 + byte for character, byte in byte_alphabet().items()}
        model = found.get("model", {"vocab": bytewise, "merges": []})
        bpe = Tokenizer(models.BPE(model["vocab"], [(left, right) for left, right in model["merges"]]))
        bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        bpe.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
        template = {"single": f"{END_OF_TEXT} $A", "pair": f"{END_OF_TEXT} $A {END_OF_TEXT} $B"}
        bpe.post_processor = processors.TemplateProcessing(**template, special_tokens=[(END_OF_TEXT, 0)])
        special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT)
        return {
            "tokenizer.json": json.loads(bpe.to_str()),
            "tokenizer_config.json": SETTINGS | {"model_max_length": context} | special,
        }


class ForeignTokenizer(TextTokenizer):
    """The tokenizer of imported weights: its own tokenizer.json, of which nothing but the encoding of plain text is
    used.

    A byte is spelled as in ours (GPT-2, Llama 3, Qwen), or as <0x0A> among tokens of characters, where a space is
    \u2581 (Llama 2). Special tokens and ids without a token stand for no bytes. A text comes back as it does
    elsewhere: some tokenizers normalise Unicode, Llama 2's puts a space before a text, and what a vocabulary has no
    byte for is left out.
    """

    def __init__(
        self, inner: dict[str, Any], start: int | str, end: int | str, size: int, more: Sequence[int | str] = ()
    ):
        """Use `wrap` or `from_json`. inner: the parsed tokenizer.json; start, end: a token or its id; size: ids that
        the weights know; more: other tokens that end a text."""
        if odd := types([inner.get("normalizer"), inner.get("pre_tokenizer")]) - KINDS:
            raise ValueError(
                f"{' and '.join(sorted(odd))} before encoding is not supported: {', '.join(sorted(KINDS))} are"
            )
        probe(text := json.dumps(inner | dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))))
        bpe = Tokenizer.from_str(text)
        bpe.encode_special_tokens = True  # the names of special tokens are text
        decoder = inner.get("decoder") or {"type": "nothing"}
        kinds = {part["type"] for part in decoder.get("decoders", [decoder])}
        if not isinstance(bpe.model, models.BPE) or not kinds & {"ByteLevel", "ByteFallback"} or bpe.model.dropout:
            name = type(bpe.model).__name__ + (" with dropout" if getattr(bpe.model, "dropout", None) else "")
            allowed = "byte-level BPE (GPT-2, Llama 3, Qwen) and BPE with byte fallback (Llama 2) are"
            raise ValueError(f"{name}, decoded by {' and '.join(sorted(kinds))}, is not supported: {allowed}")
        level = "ByteLevel" in kinds
        spelled = byte_alphabet() if level else {f"<0x{byte:02X}>": byte for byte in range(256)}

        def bytes_of(token: str) -> bytes:
            if level:
                return bytes(spelled[character] for character in token)
            return bytes([spelled[token]]) if token in spelled else token.replace("\u2581", " ").encode()

        vocabulary, added = bpe.get_vocab(), bpe.get_added_tokens_decoder()
        if missing := NEEDED - {byte for token, byte in spelled.items() if token in vocabulary}:
            raise ValueError(f"{len(missing)} of the bytes of text have no token")
        if not (last := max(vocabulary.values())) < size <= MAX_SIZE or len(set(vocabulary.values())) < len(
            vocabulary
        ):
            raise ValueError(f"its {len(vocabulary):,} tokens, up to id {last:,}, do not fit the model's {size:,} ids")
        token_bytes = [b""] * size
        for token, i in vocabulary.items():
            if i not in added or not added[i].special:
                token_bytes[i] = token.encode() if i in added else bytes_of(token)
        ids = [bpe.token_to_id(token) if isinstance(token, str) else token for token in (start, end, *more)]
        known = [i for i in ids if type(i) is int and 0 <= i < size]
        if len(known) < len(ids):
            ended = " or ".join(map(repr, (end, *more)))
            raise ValueError(
                f"texts would begin with {start!r} and end with {ended}, which are not all among its tokens"
            )
        ends = tuple(dict.fromkeys(known[1:]))
        found = {"gengen": "foreign", "start": known[0], "end": ends[0], "size": size, "tokenizer": inner}
        found |= {"more": ends[1:]} if ends[1:] else {}
        super().__init__(json.dumps(found, ensure_ascii=False), token_bytes, bpe, known[0], ends[0])
        self.ends = ends
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
        """The whole: its words may begin elsewhere than ours."""
        yield text

    def huggingface(self, context: int) -> dict[str, Any]:
        """As in TextTokenizer; the tokenizer.json is the one that was imported."""
        assert self._bpe
        special = {"bos_token": self._bpe.id_to_token(self.start), "eos_token": self._bpe.id_to_token(self.eot)}
        config = SETTINGS | {"model_max_length": context} | {key: name for key, name in special.items() if name}
        return {"tokenizer.json": json.loads(self._json)["tokenizer"], "tokenizer_config.json": config}


class ChatTokenizer(TextTokenizer):
    """Another tokenizer and behind its ids four more, which stand for no bytes: <|system|>, <|user|>, <|assistant|>
    and <|end|>, which ends a text. No text is encoded to them."""

    def __init__(self, inner: TextTokenizer):
        self.inner, size = inner, inner.vocab_size
        self.chat = {name: size + i for i, name in enumerate((*ROLES, "end"))}
        text = json.dumps({"gengen": "chat", "tokenizer": inner.to_json()})
        super().__init__(text, [*inner._bytes, *[b""] * 4], inner._bpe, inner.start, self.chat["end"])

    def pieces(self, text: str) -> Iterator[str]:
        return self.inner.pieces(text)

    def huggingface(self, context: int) -> dict[str, Any]:
        """As the inner one's, with the template of conversations. Raises UserError where a token of it has one of the
        four names.
        """
        files = self.inner.huggingface(context)
        with answered("it cannot be given more tokens"):
            bpe = Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
        names = [f"<|{name}|>" for name in self.chat]
        if taken := [name for name in names if bpe.token_to_id(name) is not None]:
            raise UserError(
                f"tokenizer: {', '.join(taken)}: its own tokens; no chat template can be written beside them"
            )
        unused = range(
            max(bpe.get_vocab().values()) + 1, self.inner.vocab_size
        )  # ids that the weights know and the tokenizer does not
        names = [*(f"<|unused {i}|>" for i in unused), *names]
        bpe.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
        config = files["tokenizer_config.json"] | {"eos_token": "<|end|>", "chat_template": CHAT_TEMPLATE}
        return {"tokenizer.json": json.loads(bpe.to_str()), "tokenizer_config.json": config}
