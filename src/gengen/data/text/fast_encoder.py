"""The same tokens sooner: tiktoken, where it is installed and a tokenizer's ids say all that it needs to know."""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import numpy as np

from gengen.data.text.tokenizer import END_OF_TEXT, TextTokenizer, answered

Encode = Callable[[list[str]], Sequence[Sequence[int] | np.ndarray]]
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How GPT-2 cuts a text to words, which is how tokenizers' ByteLevel does."""
LONGEST = 100_000  # characters; tiktoken's regex gives up on a million spaces
CHECKED = 200  # texts that both encode before one is trusted
INSTALL = "pip install 'gengen[fast]' gives the same tokens some times faster"


def encoder_for(tokenizer: TextTokenizer, texts: Iterable[str]) -> tuple[Encode, str]:
    """Return what encodes a list of texts as `tokenizer.encode_batch` does, and in words what that is.

    texts: some of those that are to be encoded, which decide: one difference, and tokenizers is kept.
    """
    ranks = tokenizer.ranks()
    if ranks is None:
        return tokenizer.encode_batch, "tokenizers (tiktoken knows no such vocabulary)"
    try:
        encode = tiktoken_encoder(tokenizer, ranks)
    except ImportError:
        return tokenizer.encode_batch, f"tokenizers ({INSTALL})"
    for text in islice(texts, CHECKED):
        if list(encode([text])[0]) != tokenizer.encode(text):
            return tokenizer.encode_batch, f"tokenizers (tiktoken encodes {text[:40]!r} otherwise)"
    return encode, "tiktoken"


def tiktoken_encoder(tokenizer: TextTokenizer, ranks: dict[bytes, int]) -> Encode:
    """Return tiktoken with this vocabulary; raises ImportError where it is not installed."""
    import tiktoken

    special = {END_OF_TEXT: tokenizer.start}  # never allowed below, so its name is text; without any, search is slow
    encoding = tiktoken.Encoding("gengen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)

    def one(text: str) -> Sequence[int] | np.ndarray:
        if len(text) > LONGEST:
            return tokenizer.encode(text)
        return encoding.encode_to_numpy(text, disallowed_special=())

    def encode(texts: list[str]) -> list[Sequence[int] | np.ndarray]:
        with answered("it cannot encode these texts"):
            return [one(text) for text in texts]

    return encode
