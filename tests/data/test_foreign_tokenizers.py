"""Tokenizers that come with imported weights: the same ids as there, exact bytes, and nothing but text in a text."""

import json

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from gengen.data.text.foreign_tokenizer import ForeignTokenizer
from gengen.data.text.tokenizer import TextTokenizer, byte_alphabet
from gengen.errors import UserError

LLAMA3 = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def trained(prose, pre_tokenizer, size=400):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=sorted(byte_alphabet()))
    tokenizer.train_from_iterator([prose(20_000)], trainer)
    return tokenizer


def gpt2(prose):
    """And all that a file may ask for beside: cut long texts, fill up short ones, put a token before."""
    tokenizer = trained(prose, pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    end = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(pad_id=end, pad_token="<|endoftext|>", length=8)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", end)]
    )
    return tokenizer


def llama3(prose):
    split = [
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer = trained(prose, pre_tokenizers.Sequence(split))
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    return tokenizer


def qwen(prose):
    tokenizer = llama3(prose)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return tokenizer


def llama2(prose):
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        *"abdeforhtu",
        "he",
        "\u2581t",
        "\u2581the",
    ]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [("h", "e"), ("\u2581", "t"), ("\u2581t", "he")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


UNIGRAM = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0)).to_str()
ENDS = {
    gpt2: ("<|endoftext|>", "<|endoftext|>"),
    llama3: ("<|begin_of_text|>", "<|end_of_text|>"),
    qwen: ("<|end_of_text|>", "<|end_of_text|>"),
    llama2: ("<s>", "</s>"),
}
TEXTS = [
    "",
    "the fox sat",
    " two  spaces\n\n\tof\r\n",
    "naïve 日本 🙂 e\u0301!\n\n",
    "a<|endoftext|>b</s><s><|begin_of_text|>",
    "\0\u00a0\u2028 \x85",
]


@pytest.fixture(scope="module", params=ENDS, ids=lambda kind: kind.__name__)
def pair(request, prose):
    """A tokenizer of another project, and the same one wrapped for weights of 512 ids."""
    theirs = request.param(prose)
    wrapped = ForeignTokenizer.wrap(theirs.to_str(), *ENDS[request.param], 512)
    theirs.no_truncation()
    theirs.no_padding()
    return theirs, wrapped


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_has_the_ids_it_has_there_and_comes_back(pair, text):
    theirs, ours = pair
    theirs.encode_special_tokens = True
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False).ids == ours.encode_batch(["x", text])[1]
    assert not {ours.start, ours.eot} & set(ids)
    normal = theirs.normalizer.normalize_str(text) if isinstance(theirs.normalizer, normalizers.NFC) else text
    before = " " if text and "ByteFallback" in theirs.to_str().split('"decoder"')[1] else ""  # as SentencePiece has it
    assert ours.decode_bytes(ids) == (before + normal).encode()
    assert ours.decode(ids).removeprefix(before) == theirs.decode(ids, skip_special_tokens=False)


def test_the_ends_and_the_size(pair):
    theirs, ours = pair
    kind = next(
        kind
        for kind, (start, end) in ENDS.items()
        if theirs.id_to_token(ours.start) == start and theirs.id_to_token(ours.eot) == end
    )
    assert ENDS[kind] == (theirs.id_to_token(ours.start), theirs.id_to_token(ours.eot))
    assert ours.vocab_size == 512 and ours.decode_bytes([ours.start, ours.eot, 511]) == b""  # special, or no token


def test_json_is_the_whole_tokenizer_and_holds_the_original(pair):
    theirs, ours = pair
    again = TextTokenizer.from_json(ours.to_json())
    assert (again.to_json(), again.hash, again.start, again.eot, again.vocab_size) == (
        ours.to_json(), ours.hash, ours.start, ours.eot, ours.vocab_size
    )  # fmt: skip
    assert again.encode("the old fox said") == ours.encode("the old fox said")
    found = json.loads(ours.to_json())
    assert (found["gengen"], found["start"], found["end"], found["size"]) == ("foreign", ours.start, ours.eot, 512)
    files = ours.huggingface(64)
    assert files["tokenizer.json"] == found["tokenizer"]
    there = Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    assert there.get_vocab() == theirs.get_vocab() and str(there.pre_tokenizer) == str(theirs.pre_tokenizer)
    names = (theirs.id_to_token(ours.start), theirs.id_to_token(ours.eot))
    assert (files["tokenizer_config.json"]["bos_token"], files["tokenizer_config.json"]["eos_token"]) == names


def test_added_tokens_that_are_not_special_are_text(prose):
    ours = ForeignTokenizer.wrap(qwen(prose).to_str(), *ENDS[qwen], 512)
    ids = ours.encode("a<tool_call>b")
    assert len(ids) == 3 and ours.decode(ids) == "a<tool_call>b" and ours.decode_bytes(ids[1:2]) == b"<tool_call>"


def test_bytes_of_a_cut_character_can_be_held_back(prose):
    ours = ForeignTokenizer.wrap(llama2(prose).to_str(), "<s>", "</s>", 300)
    assert (
        ours.decode_bytes(ours.encode("a日")) == " a日".encode()
        and ours.decode_bytes(ours.encode("a日")[:-1]) == b" a\xe6\x97"
    )


def test_a_long_text_is_encoded_as_the_whole(pair):
    _, ours = pair
    text = "the fox!\n\n the  fox\n" * 14_000
    assert [i for piece in ours.pieces(text) for i in ours.encode(piece)] == ours.encode(text)
    assert len(list(TextTokenizer.byte().pieces(text))) > 1


def spelled_out(model):
    """A vocabulary of single bytes."""
    model["merges"] = []
    return model["vocab"]


WORD_PIECE = {
    "type": "WordPiece",
    "vocab": {"a": 0},
    "unk_token": "a",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 9,
}
OTHER_WORDS = {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}
REFUSED = {
    "another model": (
        lambda found: found.update(model=WORD_PIECE),
        "WordPiece, decoded by ByteLevel, is not supported: byte-level BPE",
    ),
    "dropout": (lambda found: found["model"].update(dropout=0.1), "BPE with dropout, decoded by ByteLevel"),
    "no decoder": (lambda found: found.update(decoder=None), "BPE, decoded by nothing, is not supported"),
    "a byte less": (lambda found: spelled_out(found["model"]).pop("a"), "1 of the bytes of text have no token"),
    "other words": (lambda found: found.update(normalizer=OTHER_WORDS), "does not give 'a 1日' back"),
    "no stand-in": (lambda found: found["model"]["vocab"].update({"日": 450}), "KeyError"),
    "one too many": (
        lambda found: found["model"]["vocab"].update({"the fox sat": 512}),
        "up to id 512, do not fit the model's 512 ids",
    ),
    "far away": (
        lambda found: found["model"]["vocab"].update({"the fox sat": 2**31}),
        "do not fit the model's 512 ids",
    ),
    "one id twice": (
        lambda found: found["model"]["vocab"].update({"the fox sat": 300}),
        "do not fit the model's 512 ids",
    ),
    "no end": (
        lambda found: found.update(added_tokens=[]),
        "texts would begin with '<|endoftext|>' and end with '<|endoftext|>'",
    ),
    "odd merges": (
        lambda found: found["model"].update(merges=[["zz", "qq"]]),
        "tokenizer: this tokenizer.json cannot be used",
    ),
}


@pytest.mark.parametrize("how", REFUSED)
def test_other_tokenizers_are_refused(how, prose):
    change, words = REFUSED[how]
    found = json.loads(gpt2(prose).to_str())
    change(found)
    with pytest.raises(UserError) as error:
        ForeignTokenizer.wrap(json.dumps(found), *ENDS[gpt2], 512)
    assert words in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", "[" * 100_000, '"\ud800"', " " * (2**25 + 1), UNIGRAM])
def test_other_files_are_refused(text):
    with pytest.raises(UserError, match=r"tokenizer: this tokenizer.json cannot be used \("):
        ForeignTokenizer.wrap(text, 0, 0, 512)


def test_a_unigram_model_is_named():
    with pytest.raises(UserError, match="Unigram, decoded by nothing, is not supported"):
        ForeignTokenizer.wrap(UNIGRAM, 0, 0, 512)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 10}, {"size": 2**40}, {"size": 10**30}, {"size": "512"}, {"size": None},
        {"start": -1}, {"start": 512}, {"start": 1.0},
        {"end": True}, {"end": "</s>"}, {"end": None}, {"tokenizer": {}}, {"tokenizer": 3},
    ],
)  # fmt: skip
def test_a_wrapping_that_gengen_did_not_write_is_refused(change, prose):
    found = json.loads(ForeignTokenizer.wrap(gpt2(prose).to_str(), *ENDS[gpt2], 512).to_json())
    with pytest.raises(UserError, match="tokenizer: the JSON is not one that gengen wrote"):
        TextTokenizer.from_json(json.dumps(found | change))


def test_ours_begins_and_ends_with_id_0():
    assert (TextTokenizer.byte().start, TextTokenizer.byte().eot) == (0, 0)
    files = TextTokenizer.byte().huggingface(64)
    there = Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    assert there.encode("a日").ids == [0, 98, 0xE6 + 1, 0x97 + 1, 0xA5 + 1] and there.decode([0, 98, 99]) == "ab"
    assert (
        files["tokenizer_config.json"]["model_max_length"] == 64
        and files["tokenizer_config.json"]["bos_token"] == "<|endoftext|>"
    )
