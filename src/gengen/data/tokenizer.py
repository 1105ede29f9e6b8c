"""Text to token ids and back, exactly: byte-level BPE, or plain bytes. Saved as one JSON string.

Id 0 ends a text and stands for no bytes. Every other token is a string of bytes, so decoding is joining them.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gengen.config.errors import UserError

END_OF_TEXT = "<|endoftext|>"
MAX_JSON = 32 * 2**20  # bytes
BYTE_JSON = json.dumps({"gengen": "byte"})
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


class TextTokenizer:
    """Encodes any str; `decode(encode(s)) == s`, also where s spells out the name of the end-of-text token."""

    eot = 0

    def __init__(self, text: str, token_bytes: list[bytes], bpe: Tokenizer | None):
        """Use `train`, `byte` or `from_json`. text: its JSON; token_bytes: the bytes of each id; bpe: None for plain bytes."""
        self._json, self._bytes, self._bpe = text, token_bytes, bpe

    @classmethod
    def byte(cls) -> "TextTokenizer":
        """Ids 1..256 are the bytes."""
        return cls(BYTE_JSON, [b"", *(bytes([b]) for b in range(256))], None)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "TextTokenizer":
        """Byte-level BPE of at most vocab_size tokens; fewer where the texts repeat too little. The same texts give the same JSON."""
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
        """Read what `to_json` wrote. Of the tokenizers JSON only vocabulary and merges are taken: all else is fixed here.

        The text may come from anywhere: whatever is wrong with it is a UserError.
        """
        try:
            if (size := len(text.encode())) > MAX_JSON:
                raise ValueError(f"{size:,} bytes, at most {MAX_JSON:,} are allowed")
            found = json.loads(text)
            if found == json.loads(BYTE_JSON):
                return cls.byte()
            vocabulary, merges = found["model"]["vocab"], [(left, right) for left, right in found["model"]["merges"]]
            if sorted(vocabulary.values()) != list(range(len(vocabulary))) or vocabulary.get(END_OF_TEXT) != cls.eot:
                raise ValueError(f"ids must be 0..{len(vocabulary) - 1}, and {END_OF_TEXT} must be id {cls.eot}")
            alphabet = byte_alphabet()
            if missing := alphabet.keys() - vocabulary.keys():
                raise ValueError(f"{len(missing)} of the 256 bytes have no token")
            words = sorted(vocabulary, key=vocabulary.__getitem__)[1:]
            token_bytes = [b"", *(bytes(alphabet[character] for character in word) for word in words)]
            bpe = Tokenizer(models.BPE(vocabulary, merges))
            bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic of the Rust library is no Exception
            raise UserError(f"tokenizer: the JSON is not one that gengen wrote ({type(error).__name__}: {str(error)[:200]})") from None
        return cls(text, token_bytes, bpe)

    def to_json(self) -> str:
        return self._json

    def encode(self, text: str) -> list[int]:
        if self._bpe is None:
            return [byte + 1 for byte in encodable(text).encode()]
        return self._bpe.encode(encodable(text)).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each, in threads."""
        if self._bpe is None:
            return [self.encode(text) for text in texts]
        return [encoding.ids for encoding in self._bpe.encode_batch_fast([encodable(text) for text in texts])]

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
