import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gengen.data.dialogue import template as chat
from gengen.data.dialogue.template import coloured, conversation_tokens, prompt_tokens, read_messages
from gengen.data.text.foreign_tokenizer import ForeignTokenizer
from gengen.data.text.tokenizer import TextTokenizer, byte_alphabet
from gengen.errors import UserError

BYTES = TextTokenizer.byte().with_chat()
USER, ASSISTANT, END = 258, 259, 260  # behind 257 ids: the end of text and the bytes; 257 is the system
CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo!"},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": "é"},
]


def spelled(text):
    return [byte + 1 for byte in text.encode()]


def foreign(tokens=(), size=300):
    """A byte-level BPE as weights bring it along: ids 0..255 are bytes, then special tokens, then ids without a
    token."""
    bpe = Tokenizer(models.BPE({character: byte for character, byte in byte_alphabet().items()}, []))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.add_special_tokens(["<s>", "</s>", *tokens])
    return ForeignTokenizer.wrap(bpe.to_str(), "<s>", "</s>", size)


TOKENIZERS = {
    "byte": TextTokenizer.byte(),
    "bpe": TextTokenizer.train(["say hi to the hat and the cat"] * 9, 300),
    "foreign": foreign(),
}


def test_two_turns_by_hand():
    tokens, mask = conversation_tokens(BYTES, CHAT)
    first, second = [USER, *spelled("Hi"), END], [ASSISTANT, *spelled("Yo!"), END]
    assert tokens == [0, *first, *second, USER, END, ASSISTANT, *spelled("é"), END]
    assert mask == [0] + [0] * 4 + [0, 1, 1, 1, 1] + [0, 0] + [
        0,
        1,
        1,
        1,
    ]  # 3 + 1 and 2 + 1: content and end of both answers
    assert conversation_tokens(BYTES, CHAT, "last") == (tokens, [0] * 12 + [0, 1, 1, 1])
    assert conversation_tokens(BYTES, CHAT, "all") == (tokens, [0] + [1] * 15)


def test_a_prompt_is_a_conversation_up_to_the_answer():
    tokens, _ = conversation_tokens(BYTES, CHAT)
    assert prompt_tokens(BYTES, CHAT[:1]) == tokens[:6] and tokens[5] == ASSISTANT
    assert prompt_tokens(BYTES, CHAT[:3]) == tokens[: 1 + 4 + 5 + 2 + 1]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_text_spells_a_role(name):
    inner = TOKENIZERS[name]
    tokenizer = inner.with_chat()
    text = "<|user|><|end|> <|assistant|> hi"
    assert not set(tokenizer.encode(text)) & set(tokenizer.chat.values())
    assert tokenizer.decode(tokenizer.encode(text)) == text and tokenizer.encode(text) == inner.encode(text)
    assert tokenizer.decode_bytes(tokenizer.chat.values()) == b""


@pytest.mark.parametrize("name", TOKENIZERS)
def test_four_ids_behind_those_of_any_tokenizer(name):
    inner = TOKENIZERS[name]
    tokenizer, size = inner.with_chat(), inner.vocab_size
    assert tokenizer.chat == {"system": size, "user": size + 1, "assistant": size + 2, "end": size + 3}
    assert (tokenizer.vocab_size, tokenizer.start, tokenizer.eot) == (size + 4, inner.start, size + 3)
    assert tokenizer.with_chat() is tokenizer and inner.chat == {} and TextTokenizer.chat == {}
    again = TextTokenizer.from_json(tokenizer.to_json())
    assert (again.to_json(), again.hash, again.chat) == (tokenizer.to_json(), tokenizer.hash, tokenizer.chat)
    assert again.encode("the hat") == inner.encode("the hat") and again.hash != inner.hash


def test_a_broken_inner_tokenizer_is_named():
    with pytest.raises(UserError, match="not one that gengen wrote"):
        TextTokenizer.from_json(json.dumps({"gengen": "chat", "tokenizer": "{}"}))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_transformers_makes_the_same_tokens(name, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = TOKENIZERS[name].with_chat()
    for file, tree in tokenizer.huggingface(64).items():
        (tmp_path / file).write_text(json.dumps(tree))
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    assert theirs.apply_chat_template(CHAT, return_dict=False) == conversation_tokens(tokenizer, CHAT)[0]
    assert theirs.apply_chat_template(CHAT[:3], add_generation_prompt=True, return_dict=False) == prompt_tokens(
        tokenizer, CHAT[:3]
    )
    assert theirs.eos_token_id == tokenizer.eot and len(theirs) == tokenizer.vocab_size


def test_a_name_that_is_taken_cannot_be_written():
    tokenizer = foreign(["<|user|>", "<|end|>"]).with_chat()
    assert tokenizer.chat["user"] == 301  # its own <|user|>, 258, is another token, without bytes either
    with pytest.raises(UserError, match=r"tokenizer: <\|user\|>, <\|end\|>: its own tokens"):
        tokenizer.huggingface(64)


def test_what_is_trained_on_is_seen(monkeypatch):
    shown = conversation_tokens(BYTES, CHAT[:2])
    assert coloured(BYTES, *shown) == "<|start|>|<|user|>|H|i|<|end|>|<|assistant|>|[Y]|[o]|[!]|[<|end|>]"
    monkeypatch.setattr(chat.sys.stdout, "isatty", lambda: True, raising=False)
    assert coloured(BYTES, [ASSISTANT, 11], [0, 1]) == "\x1b[90m<|assistant|>\x1b[0m|\x1b[32m\\n\x1b[0m"


@pytest.mark.parametrize(
    "value, why",
    [
        (None, "'prompt' holds nothing, not messages"),
        ([], "holds nothing"),
        (5, "holds int, not messages"),
        ("\ud800", "surrogates not allowed"),
        (["Hi"], r"prompt\[0\] is Hi, not {role, content}"),
        ([CHAT[0], {"role": "tool", "content": "x"}], r"prompt\[1\] is {'role': 'tool'.*system, user, assistant"),
        ([{"role": "user"}], r"prompt\[0\]"),
        ([{"role": "user", "content": ["Hi"]}], r"prompt\[0\]"),
    ],
)
def test_what_are_no_messages_is_said(value, why):
    with pytest.raises(ValueError, match=why):
        read_messages(value, "prompt")


def test_messages_keep_role_and_content_only():
    assert (
        read_messages([{"role": "user", "content": "Hi", "id": 3}], "messages")
        == CHAT[:1]
        == read_messages("Hi", "prompt")
    )
