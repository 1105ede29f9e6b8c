import math
import random
import re
from dataclasses import replace
from importlib import import_module
from itertools import chain, product

import pytest

from gengen.config.data import TextConfig
from gengen.data.sources import storygen
from gengen.data.sources.storygen import (
    ANIMALS,
    COUNTS,
    LABEL_SCALE,
    OBJECTS,
    PAIRS,
    PROMPTS,
    documents,
    examples,
    flawed,
    gold,
    label,
    requested,
)
from gengen.data.text.prepare import prepare
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.registry import REWARDS

PROMPT = "write a story about a cat with a hat"
STORY = "Tom had a cat. The cat had a red hat."


@pytest.mark.parametrize(
    "response, ended, worth",
    [
        (f"{STORY} They went home and smiled.", True, 3),
        (f"{STORY} They went home and smiled.", False, 2),
        (f"{STORY} They went home and wept.", True, 1),
        (f"{STORY} Tom was glad but wept.", True, 1),  # both: not happy
        (f"{STORY} Tom was happy. Then it rained.", True, 1),  # the end is what counts
        (f"{STORY} tom was HAPPY", True, 3),
        ("Tom had a cat. Tom was unhappy.", True, 0.5),  # no hat, and unhappy is not happy
        ("Cats and hats. Tom was glad.", True, 2),  # other words than those asked for
        ("A cat. A hat. A cat. a  CAT. Tom smiled.", True, 2),  # twice repeated
        ("Tom smiled. Tom smiled.", True, 1.5),
        ("", True, 0),
        ("", False, -1),
        (" . ! ", False, -1),
    ],
)
def test_gold_by_hand(response, ended, worth):
    assert gold(PROMPT, response, ended) == worth


@pytest.mark.parametrize(
    "response, ended, reward",
    [
        ("A cat in a Hat.", True, 1),
        ("A cat in a hat.", False, 0),
        ("A cat.", True, 0),
        ("A hatter and a cat.", True, 0),
    ],
)
def test_the_reward_of_requested_words(response, ended, reward):
    module, _, name = REWARDS["requested_words"].partition(":")
    assert getattr(import_module(module), name)(PROMPT, response, ended) == reward


def test_what_a_prompt_requests():
    for template, (animal, thing) in product(PROMPTS, [("cat", "hat"), ("turtle", "whistle")]):
        assert requested(template.format(animal=animal, object=thing)) == (animal, thing)
    assert requested("Tell of a Hat, and of a cat and a dog.") == ("cat", "hat")
    with pytest.raises(UserError, match=r"'Hello, cat' asks for no animal and object"):
        requested("Hello, cat")


def test_the_parts_are_disjoint_by_pair():
    assert {name: len(pairs) for name, pairs in PAIRS.items()} == {
        "sft": 512,
        "preference": 358,
        "val": 68,
        "test": 86,
    }
    assert sorted(chain(*PAIRS.values())) == sorted(product(ANIMALS, OBJECTS))
    asked = {
        (kind, part): [told(record)[0] for record in examples(kind, part)]
        for kind in COUNTS
        for part in ("train", "val", "test")
    }
    assert {key: len(prompts) for key, prompts in asked.items()} == {
        (kind, part): count
        for kind, n in COUNTS.items()
        for part, count in {"train": n, "val": 408, "test": 512}.items()
    }
    pairs = {key: {requested(prompt) for prompt in prompts} for key, prompts in asked.items()}
    assert pairs["conversations", "train"] == set(PAIRS["sft"])
    assert pairs["preferences", "train"] == pairs["prompts", "train"] == set(PAIRS["preference"])
    assert all(pairs[kind, part] == set(PAIRS[part]) for kind in COUNTS for part in ("val", "test"))
    distinct = {key: len(set(prompts)) for key, prompts in asked.items()}
    assert distinct["conversations", "train"] == 3000 and distinct["prompts", "train"] == 2000
    assert distinct["preferences", "train"] == 358 * 6 and set(asked["prompts", "train"]) < set(
        asked["preferences", "train"]
    )
    assert set(asked["prompts", "val"]) == set(asked["preferences", "val"]) and distinct["prompts", "val"] == 408
    assert distinct["prompts", "test"] == 512  # of 86 pairs, so no 512 independent prompts: alignment.interval


def told(record):
    messages = record.get("messages") or [{"content": record["prompt"]}]
    return [message["content"] for message in messages]


def test_every_story_is_worth_what_it_was_meant_to_be():
    """Four to six sentences, an end that gold reads as it was meant: happy in half of them; a requested word is
    another in a third.
    """
    happy = missed = 0
    for record in examples("conversations", "train"):
        prompt, answer = told(record)
        covered = storygen.coverage(prompt, answer)
        worth = gold(prompt, answer, True) - covered
        assert worth in (0, 2) and 4 <= answer.count(".") <= 6, answer
        happy, missed = happy + (worth == 2), missed + 1 - covered
    share = storygen.SFT_MISSES * 31 / 32  # one of 32 replacements is the word itself
    assert abs(happy / 3000 - storygen.SFT_HAPPY) < 3 * math.sqrt(0.25 / 3000)
    assert abs(missed / 3000 - share) < 3 * math.sqrt(share * (1 - share) / 6000)


def test_the_language():
    texts = list(documents(5000))
    assert len(set(texts)) == 5000
    words = {
        word
        for text in [*texts, *(p.format(animal="cat", object="hat") for p in PROMPTS)]
        for word in re.findall("[a-z]+", text.lower())
    }
    assert 300 <= len(words) <= 330
    ends = [gold(PROMPT, text, True) >= 2 for text in texts]
    assert abs(sum(ends) / 5000 - storygen.PRETRAIN_HAPPY) < 0.02
    tokenizer = TextTokenizer.train(texts, 1024)
    assert max(len(tokenizer.encode(text)) for text in texts) <= 55  # and the end: stage.max_tokens
    assert not set(storygen.HAPPY) & set(storygen.SAD) and len(set(ANIMALS)) == len(set(OBJECTS)) == 32


def test_the_same_index_is_the_same_story_for_ever():
    """Of one FORMAT: prepared data is found by that number."""
    assert (storygen.FORMAT, storygen.EXAMPLES_FORMAT) == (2, 3)
    assert next(documents(1)) == (
        "Once there was a kind dog named Tilly. Tilly had a green flag at home. Tilly sat to write a story about it. "
        "Then a friend washed it for Tilly. They went home and giggled."
    )
    assert list(documents(3)) == list(documents(5))[:3]
    assert next(examples("preferences", "val")) == next(examples("preferences", "val"))


def test_stories_are_a_source_of_text(tmp_path):
    said = []
    config = TextConfig(
        "storygen", dir=str(tmp_path), source="storygen", tokenizer="byte", validation=0.1, max_documents=40
    )
    opened = prepare(config, 257, said.append)
    assert (
        opened.meta["documents"] == 40
        and opened.meta["source"] == storygen.NAME
        and "Apache-2.0" in opened.describe()[1]
    )
    read = opened.tokenizer.decode(opened.train.read(0, len(opened.train)))
    held_out = opened.tokenizer.decode(opened.val.read(0, len(opened.val)))
    apart = [text in held_out for text in documents(40)]
    assert sum(apart) == 4 and read == "".join(
        text for text, held in zip(documents(40), apart, strict=True) if not held
    )
    assert prepare(replace(config, max_documents=41), 257, said.append).fingerprint != opened.fingerprint


def test_flaws_are_as_often_as_stated():
    draw = random.Random(0)
    drawn = [flawed(draw, "cat", "hat") for _ in range(4000)]
    whole = [text for text, ended in drawn if ended]
    assert abs(len(whole) / 4000 - (1 - storygen.BREAKS_OFF)) < 0.02
    assert all(text.endswith(".") for text in whole) and not all(
        text.endswith(".") for text, ended in drawn if not ended
    )
    repeated = sum(
        len(set(sentences)) < len(sentences) for sentences in (text[:-1].split(". ") for text in whole)
    ) / len(whole)
    assert abs(repeated - storygen.REPEATS) < 0.03
    missing = sum(storygen.coverage(PROMPT, text) < 1 for text in whole) / len(whole)
    other = storygen.PAIR_MISSES * 31 / 32
    assert abs(missing - (1 - (1 - other) ** 2)) < 0.03


def test_preferences_are_bradley_terry():
    records = list(examples("preferences", "train"))
    gaps = [
        LABEL_SCALE
        * (gold(r["prompt"], r["chosen"], r["chosen_ended"]) - gold(r["prompt"], r["rejected"], r["rejected_ended"]))
        for r in records
    ]
    assert abs(math.sqrt(sum(gap * gap for gap in gaps) / len(gaps)) - 2) < 0.1
    told_apart = [gap for gap in gaps if gap]
    right = sum(gap > 0 for gap in told_apart) / len(told_apart)
    ceiling = sum(1 / (1 + math.exp(-abs(gap))) for gap in told_apart) / len(told_apart)
    assert abs(right - ceiling) < 0.02 and 0.75 < ceiling < 0.9
    small = [gap > 0 for gap in told_apart if abs(gap) < 0.6]  # a gap of half a point of gold
    assert abs(sum(small) / len(small) - 1 / (1 + math.exp(-LABEL_SCALE / 2))) < 0.05


def test_a_label_is_a_coin_of_sigmoid():
    assert label(0, 0.499) and not label(0, 0.5)
    assert label(math.log(3), 0.749) and not label(math.log(3), 0.751)
    assert label(-math.log(3), 0.249) and not label(-math.log(3), 0.251)
