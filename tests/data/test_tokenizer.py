import json
import random

import pytest

from gengen.data.text.tokenizer import TextTokenizer, byte_alphabet, pieces
from gengen.errors import UserError

AWKWARD = [
    "",
    " ",
    "a<|endoftext|>b",
    "<|endoftext|>",
    "naïve 日本 🙂 e\u0301",
    "\0\r\n\t\u00a0\u2028 \x85",
    "'ll  \n\n  x " * 9,
    "\ufeff",
]


@pytest.fixture(scope="module", params=["byte", "bpe"])
def tokenizer(request, prose):
    return TextTokenizer.byte() if request.param == "byte" else TextTokenizer.train([prose(20_000)], 400)


@pytest.mark.parametrize("text", AWKWARD)
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.eot not in ids
    assert tokenizer.encode_batch([text, "x"]) == [ids, tokenizer.encode("x")]


def test_half_a_surrogate_pair_becomes_a_question_mark(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


def test_bytes_of_a_cut_character_can_be_held_back():
    tokenizer = TextTokenizer.byte()
    assert tokenizer.encode("a日") == [98, 0xE6 + 1, 0x97 + 1, 0xA5 + 1]
    assert (
        tokenizer.decode_bytes([98, 0xE6 + 1, 0x97 + 1]) == b"a\xe6\x97"
        and tokenizer.decode([98, 0xE6 + 1]) == "a\ufffd"
    )
    assert tokenizer.decode([98, tokenizer.eot, 99]) == "ab"


def test_every_byte_has_a_token_of_its_own():
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert alphabet["A"] == 65 and alphabet["Ġ"] == 32 and alphabet["Ċ"] == 10  # as in GPT-2's vocab.bpe


def test_json_is_the_whole_tokenizer(tokenizer):
    again = TextTokenizer.from_json(tokenizer.to_json())
    assert (again.to_json(), again.hash, again.vocab_size) == (
        tokenizer.to_json(),
        tokenizer.hash,
        tokenizer.vocab_size,
    )
    assert again.encode("the old fox said") == tokenizer.encode("the old fox said")


def test_training_is_deterministic_and_compresses(prose):
    text = prose(20_000)
    one, two = TextTokenizer.train([text], 300), TextTokenizer.train([text], 300)
    assert one.hash == two.hash and one.vocab_size == 300
    assert len(one.encode(text)) < len(text.encode()) / 2
    assert TextTokenizer.train(["abcdef"], 400).vocab_size == 257


def test_pieces_are_encoded_as_the_whole(prose):
    tokenizer = TextTokenizer.train([prose(20_000)], 500)
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(
            draw.choice(["the", "a", "'s", " ", " ", "\n", "\u00a0", "\x1c", "!", "1", "日"]) for _ in range(40)
        )
        parts = list(pieces(text, draw.randrange(1, 9)))
        assert "".join(parts) == text
        assert [i for ids in tokenizer.encode_batch(parts) for i in ids] == tokenizer.encode(text)


def damaged(change):
    found = json.loads(TextTokenizer.train(["hello hello"], 300).to_json())
    change(found)
    return json.dumps(found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"gengen": "char"}',
        '{"model": {"vocab": 3, "merges": []}}',
        "[" * 100_000,
        '"\ud800"',
        " " * (2**25 + 1),
        damaged(lambda j: j["model"]["vocab"].update({"hello!": 9999})),
        damaged(lambda j: j["model"]["vocab"].update({"\u4e00": len(j["model"]["vocab"])})),
        damaged(lambda j: j["model"]["vocab"].pop("a")),
        damaged(lambda j: j["model"]["merges"].append(["zz", "qq"])),
        damaged(lambda j: j["model"]["merges"].append("a b")),
    ],
)
def test_foreign_json_is_refused(text):
    with pytest.raises(UserError, match="tokenizer: the JSON is not one that gengen wrote"):
        TextTokenizer.from_json(text)


def test_a_vocabulary_must_hold_all_bytes():
    with pytest.raises(UserError, match="257 tokens at least, found 256"):
        TextTokenizer.train(["x"], 256)
