"""Captions as a network reads them: their tokenizer, their tokens, and what is wrong with them in one line."""

from typing import Any

import pytest
import torch

from gengen.config.data import ImageConfig
from gengen.config.model import UNetConfig
from gengen.config.model.diffusion import PADDING, START
from gengen.data.image.captions import CaptionTokenizer, CaptionTokens, Description, caption_tokens
from gengen.data.image.prepare import prepare_for
from gengen.data.image.sources.base import Thing
from gengen.data.prepared import PrepareRequest
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from helpers.image_stand_ins import png

CAPTIONS = ["red heart", "a red heart", "a blue heart", "waving hand, dark skin tone", "man's shoe", "corazón rojo"]


@pytest.fixture
def tokenizer() -> CaptionTokenizer:
    return CaptionTokenizer.of(CAPTIONS, 300)


def rows(*captions: tuple[str, ...]) -> list[Description]:
    return [Description(each) for each in captions]


def tokens(tokenizer: TextTokenizer | None, train: list[Description], slots: int = 12, **config: Any) -> CaptionTokens:
    parts = {"train": train, "val": rows(("a red heart",))}
    return CaptionTokens.of(parts, tokenizer, slots, ImageConfig("imagefolder", **config))


# ----------------------------------------------------------------------------------------------------------- tokenizer


def test_a_tokenizer_of_captions_comes_back_from_its_json(tokenizer: CaptionTokenizer) -> None:
    again = TextTokenizer.from_json(tokenizer.to_json())
    assert isinstance(again, CaptionTokenizer) and again.words == tokenizer.words
    assert again.to_json() == tokenizer.to_json() and again.hash == tokenizer.hash
    assert again.encode_batch(CAPTIONS) == tokenizer.encode_batch(CAPTIONS) == [again.encode(c) for c in CAPTIONS]
    assert [again.decode(ids) for ids in again.encode_batch(CAPTIONS)] == CAPTIONS
    assert CaptionTokenizer.of(CAPTIONS, 300).to_json() == tokenizer.to_json()  # the same captions, the same JSON


@pytest.mark.parametrize(
    "damaged",
    [
        '{"gengen": "captions"}',
        '{"gengen": "captions", "words": [], "tokenizer": "{}"}',
        '{"gengen": "captions", "words": 3}',
    ],
)  # fmt: skip
def test_a_damaged_tokenizer_is_one_error(damaged: str) -> None:
    with pytest.raises(UserError, match="tokenizer: the JSON is not one that gengen wrote"):
        TextTokenizer.from_json(damaged)


def test_capitals_and_forms_of_a_letter_change_no_token(tokenizer: CaptionTokenizer) -> None:
    assert tokenizer.encode("RED Heart") == tokenizer.encode("red heart")
    assert tokenizer.encode("corazo\u0301n Rojo") == tokenizer.encode("corazón rojo")
    assert tokenizer.encode("Man\u2019s shoe") == tokenizer.encode("man's shoe")
    assert tokenizer.inner.encode("RED Heart") != tokenizer.encode("red heart")  # the bug put back: read as written


def test_words_that_no_caption_had_are_named_with_the_nearest(tokenizer: CaptionTokenizer) -> None:
    assert tokenizer.unseen("A Red heart") == {}
    assert tokenizer.unseen("a crimson hart, waiving") == {"crimson": "", "hart": "heart", "waiving": "waving"}
    assert tokenizer.decode(tokenizer.encode("crimson 🙂")) == "crimson 🙂"  # they fall to bytes, and nothing is lost


# -------------------------------------------------------------------------------------------------------------- tokens


def test_a_row_is_start_the_words_and_padding(tokenizer: CaptionTokenizer) -> None:
    found = caption_tokens(tokenizer, ["", "red heart", "a red heart"], 8, "a prompt")
    ids = [tokenizer.encode(text) for text in ("", "red heart", "a red heart")]
    assert found.tolist() == [[START, *each] + [PADDING] * (7 - len(each)) for each in ids]
    assert found[0].tolist() == [START] + [PADDING] * 7 and found.dtype == torch.int64


def test_a_caption_that_does_not_fit_is_named(tokenizer: CaptionTokenizer) -> None:
    length = len(tokenizer.encode("a blue heart"))
    assert caption_tokens(tokenizer, ["a blue heart"], length + 1, "a prompt")[0, -1] != PADDING  # just so
    with pytest.raises(UserError) as error:
        tokens(tokenizer, rows(("red heart",), ("a blue heart",)), length)
    assert str(error.value) == (
        f"a caption (train) is too long: {length} tokens, the model reads model.text_context - 1 = {length - 1}"
        "\n  'a blue heart'"
    )


def test_rows_hold_all_captions_of_their_pictures(tokenizer: CaptionTokenizer) -> None:
    train = rows(("red heart", "a red heart"), (), ("a blue heart",))
    found = tokens(tokenizer, train, max_uncaptioned=0.5)
    batch = found.rows("train", torch.tensor([2, 0, 1]))
    longest = 1 + max(
        len(tokenizer.encode(text)) for row in train for text in row.captions
    )  # of 12 slots that are read
    assert longest < 12  # the slots that are read
    assert batch["captions"].shape == (3, 2, longest) and batch["captions"].dtype == torch.int64
    assert batch["caption_count"].tolist() == [1, 2, 1]
    expected = caption_tokens(tokenizer, ["a blue heart", "red heart", "a red heart", ""], longest, "")
    assert torch.equal(batch["captions"][[0, 1, 1, 2], [0, 0, 1, 0]], expected)
    assert (batch["captions"][[0, 2], 1] == PADDING).all()
    assert found.rows("val", torch.tensor([0]))["captions"].shape == (1, 1, longest)


def test_a_description_comes_back_from_its_json() -> None:
    things = (Thing({"shape": "heart", "colour": "red"}, (0.25, 0.5)), Thing({"tone": "dark"}))
    whole = Description(("red heart", "a red heart"), things, "colour")
    assert Description.from_json(whole.to_json()) == whole
    assert Description().to_json() == {} and Description.from_json({}) == Description()


# ----------------------------------------------------------------------------------------------------------- bad input


def test_pictures_without_captions_are_counted(tokenizer: CaptionTokenizer) -> None:
    train = rows(*[()] * 812, *[("red heart",)] * 187)
    with pytest.raises(UserError) as error:
        tokens(tokenizer, train)
    assert str(error.value) == (
        "model.text=true: 812 of 1,000 images have no caption: name them in metadata.jsonl, or raise "
        "data.max_uncaptioned (now 0): they then train as unconditional"
    )
    with pytest.raises(UserError, match=r"data.max_uncaptioned \(now 0.8\)"):
        tokens(tokenizer, train, max_uncaptioned=0.8)
    assert tokens(tokenizer, train, max_uncaptioned=0.812).counts["train"].tolist() == [1] * 999


SIDED = [
    "a cat left of a dog", "Facing RIGHT", "rightwards hand", "left-facing fist", "flecha hacia la izquierda",
    "nach links weisender zeigefinger", "flèche droite", "pugno a sinistra", "seta para a direita", "sağ ok",
    "tanda panah kiri", "стрелка влево", "右矢印", "向左箭头", "왼쪽을 가리키는 손등",
    "좌향 화살표", "سهم لليمين", "پیکان چپ",
]  # fmt: skip


@pytest.mark.parametrize("caption", SIDED)
def test_mirrored_pictures_may_not_be_told_left_from_right(tokenizer: CaptionTokenizer, caption: str) -> None:
    with pytest.raises(UserError, match=r"data\.flip=true mirrors pictures, and a caption would no longer") as error:
        tokens(tokenizer, rows(("red heart", caption)), 400, flip=True)
    assert caption in str(error.value)
    assert tokens(tokenizer, rows(("red heart", caption)), 400).counts["train"].tolist() == [2]  # without flips, it is


@pytest.mark.parametrize("caption", ["a bright light", "leftover soup", "copyright", "a linkage", "rechtschaffen"])
def test_other_words_may_be_mirrored(tokenizer: CaptionTokenizer, caption: str) -> None:
    assert tokens(tokenizer, rows((caption,)), 400, flip=True).counts["train"].tolist() == [1]


# ------------------------------------------------------------------------------------------------------ a whole folder


@pytest.fixture
def request_for(tmp_path: Any, image_config: Any) -> Any:
    """request_for(rows, text=True, ...): of forty pictures, whose captions metadata.jsonl has."""

    def write(lines: list[str], text: bool = True, **config: Any) -> PrepareRequest[ImageConfig]:
        root = tmp_path / "album"
        root.mkdir(exist_ok=True)
        for i in range(40):
            (root / f"{i}.png").write_bytes(png([[5 * i] * 4] * 4))
        (root / "metadata.jsonl").write_text("\n".join(lines))
        model = UNetConfig("unet", text=text)
        return PrepareRequest(image_config("imagefolder", root, **config), model, print)

    return write


def captioned(n: int) -> list[str]:
    return [f'{{"file_name": "{i}.png", "text": ["shade {i}", "{i} on the left"]}}' for i in range(n)]


def test_a_folder_is_read_with_its_captions_by_a_model_of_text_only(request_for: Any) -> None:
    data = prepare_for(request_for(captioned(40)))
    assert data.words and data.tokenizer is data.words.tokenizer and data.model_facts["classes"] == []
    assert data.model_facts["text_vocab_size"] == data.words.tokenizer.vocab_size
    batch = data.batch("train", torch.tensor([3]))
    shade = int((batch["images"][0, 0, 0, 0] + 1) * 127.5 + 0.5) // 5
    first = data.words.tokenizer.decode([int(i) for i in batch["captions"][0, 0] if i > START])
    assert first == f"shade {shade}" and batch["caption_count"].tolist() == [2]
    plain = prepare_for(request_for(captioned(40), text=False, flip=True))  # which mirrors what no one reads
    assert (
        plain.words is None and plain.tokenizer is None and "captions" not in plain.batch("train", torch.tensor([3]))
    )


def test_a_folder_that_does_not_fit_a_model_of_text_is_refused(request_for: Any) -> None:
    with pytest.raises(UserError, match=r"model\.text=true: 8 of 40 images have no caption"):
        prepare_for(request_for(captioned(32)))
    with pytest.raises(UserError, match=r"model\.text=true: no image of data=imagefolder has a caption"):
        prepare_for(request_for([]))
    with pytest.raises(UserError, match=r"data\.flip=true mirrors pictures"):
        prepare_for(request_for(captioned(40), flip=True))
