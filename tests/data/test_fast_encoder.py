"""tiktoken gives the tokens that tokenizers gives, or is not taken."""

import builtins
import json
import random
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gengen.data.text.fast_encoder import LONGEST, encoder_for
from gengen.data.text.tokenizer import TextTokenizer

WORDS = [
    "the",
    "it's",
    "they'll",
    " ",
    "  ",
    "\n",
    "\n\n  ",
    "\t",
    "12",
    "3.14",
    "日本語",
    "größe",
    "🙂👍🏽",
    "…",
    "\u00a0",
]
MIXED = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=8)), max_size=40).map("".join)


@pytest.fixture(scope="module")
def tokenizer(prose):
    odd = " ".join(random.Random(1).choices(["größe", "日本", "3.14", "\n\n  ", "they'll", "🙂👍🏽"], k=3000))
    return TextTokenizer.train([prose(60_000), odd], 900)


@pytest.fixture(scope="module")
def encode(tokenizer):
    encode, name = encoder_for(tokenizer, ["one", "two"])
    assert name == "tiktoken"
    return encode


@settings(max_examples=300, deadline=None)
@given(text=MIXED)
def test_any_text_has_the_same_tokens(tokenizer, encode, text):
    text = text.encode(errors="replace").decode()
    assert list(encode([text])[0]) == tokenizer.encode(text)


def test_each_kind_of_character_is_cut_the_same(tokenizer, encode):
    """Letters, digits, marks, spaces, controls, whatever is unassigned: up to forty of each category, in three
    places. (All 1,112,064 were compared once, with tiktoken 0.14 and tokenizers 0.23: no difference.)"""
    kinds: dict[str, list[str]] = {}
    for code in random.Random(0).sample(range(0x110000), 0x20000) + list(range(0x3000)):
        kinds.setdefault(unicodedata.category(chr(code)), []).append(chr(code))
    kinds.pop("Cs", None)
    assert len(kinds) == 29
    texts = [f"a{c}a {c}1{c} \n{c}" for found in kinds.values() for c in found[:40]]
    for text, ids in zip(texts, encode(texts), strict=True):
        assert list(ids) == tokenizer.encode(text), text


@pytest.mark.parametrize(
    "text", ["<|endoftext|>", " " * 300, "\n " * 200, "a" * 5000, "ab " * (LONGEST // 3), "\0\r\n"]
)
def test_odd_texts_have_the_same_tokens(tokenizer, encode, text):
    assert list(encode([text])[0]) == tokenizer.encode(text)


def test_a_million_spaces_are_left_to_tokenizers(tokenizer, encode, capfd):
    """tiktoken's regex panics on them."""
    text = "a" + " " * 1_000_000 + "b"
    assert list(encode([text])[0]) == tokenizer.encode(text) and not capfd.readouterr().err


def test_every_piece_that_is_encoded_is_short_enough(tokenizer, prose):
    assert max(map(len, tokenizer.pieces(prose(400_000)))) < LONGEST


def changed(tokenizer, change):
    found = json.loads(tokenizer.to_json())
    change(found["model"])
    return TextTokenizer.from_json(json.dumps(found))


def swapped(model):
    """Two ids of a vocabulary change places; merges keep their order."""
    one, two = (key for key, i in model["vocab"].items() if i in (300, 301))
    model["vocab"][one], model["vocab"][two] = model["vocab"][two], model["vocab"][one]


def another_way(model):
    """A token that its merges never make of its own bytes: "ab" is joined before "bc", so "abc" is ab + c."""
    words = sorted(model["vocab"], key=model["vocab"].get)[:257]
    merges = [["a", "b"], ["b", "c"], ["a", "bc"]]
    model["vocab"] = {word: i for i, word in enumerate([*words, "ab", "bc", "abc"])}
    model["merges"] = merges


@pytest.mark.parametrize("change", [swapped, another_way])
def test_a_vocabulary_of_another_order_is_left_to_tokenizers(tokenizer, change):
    """Each of these has texts that tiktoken would encode otherwise."""
    other = changed(tokenizer, change)
    assert tokenizer.ranks() and other.ranks() is None
    encode, name = encoder_for(other, ["one"])
    assert name == "tokenizers (tiktoken knows no such vocabulary)"
    assert encode(["abc the"]) == other.encode_batch(["abc the"])


def test_the_check_of_texts_would_notice(tokenizer, monkeypatch):
    """Ranks that are not what they should be, past the check of the vocabulary."""
    ranks = tokenizer.ranks()
    wrong = ranks | {b" the": 1000}
    monkeypatch.setattr(TextTokenizer, "ranks", lambda self: wrong)
    encode, name = encoder_for(tokenizer, ["xyz", "over the hill"])
    assert name.startswith("tokenizers (tiktoken encodes 'over the hill' otherwise)")
    assert encode([" the"]) == tokenizer.encode_batch([" the"])


def test_without_tiktoken_tokenizers_is_taken_and_that_is_said(tokenizer, monkeypatch):
    imported = builtins.__import__

    def without(name, *rest):
        if name == "tiktoken":
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    encode, name = encoder_for(tokenizer, ["one"])
    assert "gengen[fast]" in name and encode(["one two"]) == tokenizer.encode_batch(["one two"])


def test_bytes_and_conversations(tokenizer):
    assert TextTokenizer.byte().ranks() is None
    assert tokenizer.with_chat().ranks() == tokenizer.ranks()
