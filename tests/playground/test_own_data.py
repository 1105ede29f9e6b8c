"""Endpoints over what a run was trained on, each against the library and its data."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch

import gengen
from gengen.checkpoints import layout, store
from gengen.cli.serve import own_data
from gengen.data.image.prepare import PreparedImages
from gengen.data.text.prepare import PreparedText
from gengen.data.text.tokenizer import TextTokenizer
from gengen.generation.filters.copies import CopyIndex
from gengen.generation.image.files import to_float
from helpers.served import Test, during, pixels, served_here, write_run
from helpers.trained_on import Tokens, TrainedOn, trained_on


@pytest.fixture
def served(served_runs: Path) -> Callable[[Test], None]:
    """Runs a test of an application with pages over three runs, whose data is opened as the command does it."""

    def run(test: Test) -> None:
        names = ("gan", "story", "chat")
        during(served_here(served_runs, names=names, playground=True, open_data=own_data), test)

    return run


def test_real_pictures_and_what_the_discriminator_says_of_them(
    served: Callable[[Test], None], served_runs: Path, shapes: TrainedOn
) -> None:
    gan: Any = gengen.load(served_runs / "gan")
    assert isinstance(shapes.prepared, PreparedImages)
    val, train = shapes.prepared.val, shapes.prepared.train
    crosses = [i for i, label in enumerate(train.labels.tolist()) if label == 1]

    async def test(post: Any, application: Any) -> None:
        for asked, part, places in (
            ({"n": 3}, val, [0, len(val) // 3, 2 * len(val) // 3]),
            ({"n": 2, "part": "train", "prompt": "dog"}, train, [crosses[0], crosses[len(crosses) // 2]]),
        ):
            found = (await post("/gengen/v1/real", model="gan", **asked)).json()
            assert found["of"] == (len(crosses) if "prompt" in asked else len(val))
            images = part.images[places]
            assert torch.equal(torch.stack([pixels(row["b64_json"]) for row in found["data"]]), images)
            with gan.sampling():
                logits = gan.model.discriminator(to_float(images), part.labels[places])
            assert [row["logit"] for row in found["data"]] == pytest.approx(logits.tolist(), abs=1e-5)
            assert [row["gengen"]["index"] for row in found["data"]] == places
        refused = await post("/gengen/v1/real", model="gan", prompt="zebra")
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "prompt"

    served(test)


def test_saved_checkpoints_of_a_gan_meet(served_runs: Path, tmp_path: Path, shapes: TrainedOn) -> None:
    """Each discriminator judges what each generator draws of the held-out pictures' classes; by hand, pair by pair."""
    shutil.copytree(served_runs / "gan", tmp_path / "gan")
    root = tmp_path / "gan/checkpoints"
    (first,) = root.glob("step-*")
    checkpoint = layout.read(first)
    other = {name: 0.8 * weight for name, weight in checkpoint.model.items()}
    store.save(root, replace(checkpoint, step=9, model=other))
    players: list[Any] = [gengen.load(path) for path in sorted(root.glob("step-*"))]
    assert isinstance(shapes.prepared, PreparedImages)
    val = shapes.prepared.val
    places = [i * len(val) // 8 for i in range(8)]
    labels = val.labels[places]

    def share(judge: Any, draws: Any) -> float:
        images = draws.generate(8, labels, seed=5)
        with judge.sampling():
            real, drawn = (judge.model.discriminator(to_float(x), labels) for x in (val.images[places], images))
        return fmean(1.0 if r > d else 0.5 if r == d else 0.0 for r in real.tolist() for d in drawn.tolist())

    async def test(post: Any, application: Any) -> None:
        found = (await post("/gengen/v1/gan/game", model="gan", n=8, seed=5)).json()
        assert found["steps"] == [7, 9]
        expected = [[share(judge, draws) for draws in players] for judge in players]
        assert found["told"] == expected and len({x for row in expected for x in row}) > 1

    during(served_here(tmp_path, names=("gan",), playground=True, open_data=own_data), test)


def test_the_longest_copy_of_a_text_and_how_long_it_is_in_held_out_text(
    served: Callable[[Test], None], stories: TrainedOn
) -> None:
    data: Any = stories.prepared
    assert isinstance(data, PreparedText)
    passage = data.tokenizer.decode(data.train.read(30, 41).tolist())
    whole = data.train.read(0, len(data.train)).tolist()

    async def test(post: Any, application: Any) -> None:
        async def of(text: str) -> dict[str, Any]:
            found: dict[str, Any] = (await post("/gengen/v1/copied", model="story", text=text)).json()
            return found

        found = await of(f"{passage[:12]}É{passage}É")
        assert found["pieces"] == [f"{passage[:12]}É", passage, "É"] and found["longest"] == 41
        assert found["training_tokens"] == len(whole) and found["tokens"] == 41 + 12 + 4
        starts = [i * len(data.val) // 8 for i in range(8)]
        by_hand = [longest_by_hand(whole, data.val.read(start, 57).tolist()) for start in starts]
        assert found["held_out"] == max(by_hand) > min(by_hand)
        assert (await of("ZZZZZZZZZZ"))["pieces"] == ["", "", "ZZZZZZZZZZ"]
        long = await post("/gengen/v1/copied", model="story", text="x" * 4001)
        assert long.status_code == 400 and long.json()["error"]["param"] == "text"

    served(test)


def test_prompts_of_held_out_documents_are_how_those_begin(
    served: Callable[[Test], None], stories: TrainedOn, texts: Path
) -> None:
    data: Any = stories.prepared
    spelled = data.tokenizer.decode(data.val.read(0, len(data.val)).tolist())
    begin = {" ".join(path.read_text().split()[:8]) for path in texts.iterdir()}

    async def test(post: Any, application: Any) -> None:
        found = (await post("/gengen/v1/prompts", model="story", n=50)).json()
        assert found["prompts"] and set(found["prompts"]) <= begin and found["of"] == len(found["prompts"])
        assert all(prompt in spelled for prompt in found["prompts"])
        second = (await post("/gengen/v1/prompts", model="story", first=1, n=1)).json()
        assert second["prompts"] == found["prompts"][1:2]

    served(test)


def test_prompts_of_conversations_are_what_users_say_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, over several lines too; without those that something else is said before, or that are too long."""
    monkeypatch.setattr("gengen.serving.own_data.MAX_PROMPT", 23)
    said = [f"question {i}\nin two lines" for i in range(8)] * 2 + [f"question {i}, in 24 letters" for i in range(8)]
    rows = [[{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}] for text in said]
    rows += [[{"role": "system", "content": "Be brief"}, *rows[0]]]
    file = tmp_path / "said.jsonl"
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows))
    asked = ["stage=sft", "init_from=base", "data=instructions", f"data.path={file}", "data.validation=0.5"]
    data = trained_on([*asked, f"data.dir={tmp_path}/data", "model.context=256"])
    write_run(tmp_path / "talk", TextTokenizer.byte().with_chat(), data)
    held: Any = data.prepared.val
    firsts = {record["messages"][0]["content"] for record in held.records}
    expected = {first for first in firsts if "lines" in first}
    assert len(expected) < len(firsts - {"Be brief"})

    async def test(post: Any, application: Any) -> None:
        found = (await post("/gengen/v1/prompts", model="talk", n=50)).json()
        assert "prompts" in found, found
        assert len(found["prompts"]) == len(expected) > 0 and set(found["prompts"]) == expected
        assert (await post("/gengen/v1/copied", model="talk", text="yes")).json()["error"]["code"] == "no_data"

    during(served_here(tmp_path, names=("talk",), playground=True, open_data=own_data), test)


def longest_by_hand(text: list[int], tokens: list[int], least: int = 8) -> int:
    """As `CopyIndex.longest`, by all passages of all lengths."""
    n = least
    while n <= len(tokens):
        passages = {tuple(text[j : j + n]) for j in range(len(text) + 1 - n)}
        if not any(tuple(tokens[i : i + n]) in passages for i in range(len(tokens) + 1 - n)):
            break
        n += 1
    return n - 1 if n > least else 0


def test_the_longest_copy_is_that_of_a_search_by_hand() -> None:
    """Of texts of two tokens, where each passage begins in many places; and where the same one is repeated."""
    draw = random.Random(0)
    for alphabet in (1, 2, 2, 2, 2, 3, 3, 3):
        text, tokens = ([draw.randrange(alphabet) for _ in range(n)] for n in (300, 60))
        at, length = CopyIndex(Tokens(text), 8).longest(np.array(tokens))
        assert length == longest_by_hand(text, tokens)
        assert not length or any(text[j : j + length] == tokens[at : at + length] for j in range(300))


def test_where_the_data_is_gone_or_another_that_is_said_and_nothing_is_made(tmp_path: Path, texts: Path) -> None:
    """Of a folder that was moved away, and of a run that records no data."""
    settings = ["data=text", f"data.path={texts}", "data.tokenizer=byte", f"data.dir={tmp_path}/data"]
    data = trained_on(settings)
    write_run(tmp_path / "moved", TextTokenizer.byte(), data)
    write_run(tmp_path / "bare", TextTokenizer.byte())
    (prepared,) = (tmp_path / "data/prepared").glob("text-*")
    prepared.rename(tmp_path / "elsewhere")

    async def test(post: Any, application: Any) -> None:
        for name in ("moved", "bare"):
            answer = await post("/gengen/v1/copied", model=name, text="a text to look up")
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (404, "no_data", "model"), error
            assert f"what {name} was trained on is not" in error["message"]
        assert not list((tmp_path / "data/prepared").glob("text-*"))
        (tmp_path / "elsewhere").rename(prepared)
        found = await post("/gengen/v1/copied", model="moved", text="a text to look up")
        assert found.status_code == 200  # a failure is not remembered

    during(served_here(tmp_path, names=("moved", "bare"), playground=True, open_data=own_data), test)
