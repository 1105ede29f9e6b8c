"""Text to token ids and back, exactly: byte-level BPE, or plain bytes. Saved as one JSON string.

Every token is a string of bytes, so decoding is joining them. Id 0 ends a text and stands for no bytes.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from gengen.config.limits import parse_json
from gengen.errors import UserError
from gengen.io import Json
from gengen.registry import imported

END_OF_TEXT = "<|endoftext|>"
MAX_JSON = 32 * 2**20  # bytes
FOREIGN = "gengen.data.text.foreign_tokenizer:read_foreign"
"""What reads a tokenizer that came with imported weights; imported where one is met."""
CAPTIONS = "gengen.data.image.captions:read_captions"
"""What reads a tokenizer of captions, likewise."""
BYTE_JSON = json.dumps({"gengen": "byte"})
SETTINGS = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}  # for transformers
ROLES = ("system", "user", "assistant")  # of the messages of a conversation
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""What dialogue/template.py does, in the words of transformers."""
CUT = re.compile(r"(?<=\S)(?=[ \n])")


def byte_alphabet() -> dict[str, int]:
    """Return GPT-2's printable stand-in for each byte (Radford et al. 2019): character -> byte.

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


def recut(texts: Iterable[str], size: int = 2**12) -> Iterator[str]:
    """Yield the same text in other parts, about as long, of which `pieces` says the same: each but the first begins
    where a word does. size: how far from the end of a part such a place is looked for first."""
    held = ""
    for text in texts:
        far, cuts = size, list[int]()
        while held and not cuts and far < size + 8 * len(held):
            cuts = [cut.start() for cut in CUT.finditer(held, max(0, len(held) - far))]
            far *= 8
        if cuts:
            yield held[: cuts[-1]]
            held = held[cuts[-1] :]
        held += text
    if held:
        yield held


def encodable(text: str) -> str:
    """Return the text; half a surrogate pair, which no UTF-8 can hold, becomes a question mark."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()


def parsed(text: str) -> Json:
    """Parse a JSON text of at most MAX_JSON bytes."""
    if (size := len(text.encode())) > MAX_JSON:
        raise ValueError(f"{size:,} bytes, at most {MAX_JSON:,} are allowed")
    return parse_json(text)


@contextmanager
def answered(what: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into a UserError that says `what`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        raise UserError(f"tokenizer: {what} ({type(error).__name__}: {str(error)[:300]})") from None


class TextTokenizer:
    """Encodes any str; `decode(encode(s)) == s`, also where s spells out the name of the end-of-text token.

    start: the id that a prompt begins with; eot: the id that ends a text. In ours both are 0. ends: all ids that end a
    text when they are drawn, eot first, which imported weights have several of. chat: the ids of a conversation's
    roles and of the "end" of a message, where it has them (`with_chat`).
    """

    chat: dict[str, int] = {}  # noqa: RUF012
    cuts_words: bool = True
    """Whether `pieces` cuts a long text; where it does not, a text must be encoded whole."""

    def __init__(self, text: str, token_bytes: list[bytes], bpe: Tokenizer | None, start: int = 0, eot: int = 0):
        """Use `train`, `byte` or `from_json`. text: its JSON; token_bytes: the bytes of each id; bpe: None for plain
        bytes.
        """
        self._json, self._bytes, self._bpe = text, token_bytes, bpe
        self.start, self.eot = start, eot
        self.ends: tuple[int, ...] = (eot,)

    @classmethod
    def byte(cls) -> "TextTokenizer":
        """Return the tokenizer whose ids 1..256 are the bytes."""
        return cls(BYTE_JSON, [b"", *(bytes([b]) for b in range(256))], None)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "TextTokenizer":
        """Train byte-level BPE of at most vocab_size tokens; fewer where the texts repeat too little. The same texts
        give the same JSON."""
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
                foreign: TextTokenizer = imported(FOREIGN)(found)
                return foreign
            if found.get("gengen") == "captions":
                captions: TextTokenizer = imported(CAPTIONS)(found)
                return captions
            if found.get("gengen") == "chat":
                return cls.from_json(found["tokenizer"]).with_chat()
            return cls.from_bpe(text, found["model"])

    @classmethod
    def from_bpe(cls, text: str, model: dict[str, Any]) -> "TextTokenizer":
        """Build byte-level BPE from the vocabulary and merges in a parsed JSON `text`. Raises ValueError where they
        are not as `train` makes them."""
        vocabulary, merges = model["vocab"], [(left, right) for left, right in model["merges"]]
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
        """Return the same tokenizer with the four ids of a conversation."""
        return self if self.chat else ChatTokenizer(self)

    def encode(self, text: str) -> list[int]:
        if self._bpe is None:
            return [byte + 1 for byte in encodable(text).encode()]
        with answered("it cannot encode this text"):
            return self._bpe.encode(encodable(text), add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` each, in threads."""
        if self._bpe is None:
            return [self.encode(text) for text in texts]
        with answered("it cannot encode these texts"):
            encodings = self._bpe.encode_batch_fast([encodable(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def pieces(self, text: str) -> Iterator[str]:
        """Yield parts of a long text that may be encoded one by one."""
        return pieces(text, 2**16)

    def ranks(self) -> dict[bytes, int] | None:
        """Return the bytes of each token -> its id, where these alone say how a word is encoded: of all neighbours
        whose bytes together are a token, those of the lowest id are joined first. None where that is not so.

        It is so where each merge makes the next id out of lower ones, and each token, encoded by itself, is one:
        merges come in the order of their ids, and within bytes that no merge has crossed they are those of these bytes
        alone; so other neighbours that spell a token are never met when it is its turn.
        """
        if type(self) is not TextTokenizer or self._bpe is None:
            return None
        model = json.loads(self._json)["model"]
        ids: dict[str, int] = model["vocab"]
        made = [(max(ids[left], ids[right]), ids[left + right]) for left, right in model["merges"]]
        if [new for _, new in made] != list(range(257, len(ids))) or any(part >= new for part, new in made):
            return None
        encode = self._bpe.model.tokenize
        if any([token.id for token in encode(word)] != [i] for word, i in ids.items() if i >= 257):
            return None
        return {token: i for i, token in enumerate(self._bytes) if i}

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the exact bytes, which may end inside a character."""
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

    @property
    def text_hash(self) -> str:
        """sha256 of the JSON without the ids of a conversation: equal where texts are the same tokens."""
        return self.hash

    def huggingface(self, context: int) -> dict[str, Any]:
        """Return what transformers reads, by file name. It puts the end of text before a text, as a prompt of ours has
        it."""
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


class ChatTokenizer(TextTokenizer):
    """Another tokenizer and behind its ids four more, which stand for no bytes: <|system|>, <|user|>, <|assistant|>
    and <|end|>, which ends a text. No text is encoded to them."""

    def __init__(self, inner: TextTokenizer):
        self.inner, size = inner, inner.vocab_size
        self.chat = {name: size + i for i, name in enumerate((*ROLES, "end"))}
        text = json.dumps({"gengen": "chat", "tokenizer": inner.to_json()})
        super().__init__(text, [*inner._bytes, *[b""] * 4], inner._bpe, inner.start, self.chat["end"])
        self.cuts_words = inner.cuts_words

    @property
    def text_hash(self) -> str:
        return self.inner.hash

    def pieces(self, text: str) -> Iterator[str]:
        return self.inner.pieces(text)

    def ranks(self) -> dict[bytes, int] | None:
        return self.inner.ranks()

    def huggingface(self, context: int) -> dict[str, Any]:
        """Return the inner one's files, with the template of conversations. Raises UserError where a token of it has
        one of the four names."""
        files = self.inner.huggingface(context)
        with answered("it cannot be given more tokens"):
            bpe = Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
        names = [f"<|{name}|>" for name in self.chat]
        if taken := [name for name in names if bpe.token_to_id(name) is not None]:
            raise UserError(
                f"tokenizer: {', '.join(taken)}: its own tokens; no chat template can be written beside them"
            )
        last = max(bpe.get_vocab().values())
        unused = range(last + 1, self.inner.vocab_size)  # ids that the weights know and the tokenizer does not
        names = [*(f"<|unused {i}|>" for i in unused), *names]
        bpe.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
        config = files["tokenizer_config.json"] | {"eos_token": "<|end|>", "chat_template": CHAT_TEMPLATE}
        return {"tokenizer.json": json.loads(bpe.to_str()), "tokenizer_config.json": config}
