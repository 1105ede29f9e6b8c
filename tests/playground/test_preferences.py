"""Votes in a file: none is lost, none is there twice, and what they say of the annotator is right."""

import asyncio
import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from gengen.cli import main
from gengen.config.compose import compose_train, read_command_line
from gengen.data.dialogue.records import records
from gengen.data.dialogue.template import prompt_tokens
from gengen.data.sources.skips import Skips
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.filters.base import judge
from gengen.generation.filters.patterns import PatternFilter
from gengen.generation.filters.words import WordFilter
from gengen.generation.load import load_as
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.watermark import Watermark
from gengen.serving import preferences
from gengen.serving.preferences import Pair, Preferences, Text, Vote, figures, repeated, swapped, vote_of
from helpers.processes import waited
from helpers.served import Process, in_process, process, served_here, write_run

PROMPT = [{"role": "user", "content": "Once"}]


def text(words: str, run: str = "a", index: int = 0, ended: bool = True) -> Text:
    return Text(words, ended, {"name": run, "step": 7, "sha256": "00"}, index)


def vote(number: int, outcome: str = "left", again: str = "", swap: bool = False, annotator: str = "me") -> Vote:
    """A vote on pair `number`, whose texts are "one" by run a and "two" by run b."""
    sides = [text("one", "a", 0), text("two", "b", 1, ended=False)]
    left, right = sides[::-1] if swap else sides
    id = preferences.pair_id(annotator, number, 0)
    return Vote(Pair(id, annotator, number, PROMPT, left, right, 3, {"temperature": 1.0}, again), outcome, 1.5, "now")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def talkers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `story` and `chat`."""
    folder = tmp_path_factory.mktemp("talkers")
    write_run(folder / "story", TextTokenizer.byte())
    write_run(folder / "chat", TextTokenizer.byte().with_chat())
    return folder


def silent(line: str) -> None: ...


# --- the file


def test_a_vote_is_the_line_that_data_preferences_reads(tmp_path: Path) -> None:
    file = Preferences(tmp_path / "p.jsonl", silent)
    file.add(vote(1, "right"))
    file.add(vote(2, "left", swap=True))
    file.add(vote(3, "tie"))
    assert lines(tmp_path / "p.jsonl")[0] == {
        "prompt": PROMPT, "chosen": "two", "rejected": "one", "chosen_ended": False, "rejected_ended": True,
        "gengen": {
            "format": 1, "id": preferences.pair_id("me", 1, 0), "annotator": "me", "number": 1, "again": "", "seed": 3,
            "settings": {"temperature": 1.0}, "seconds": 1.5, "time": "now",
            "runs": {"chosen": text("two", "b").run, "rejected": text("one", "a").run},
            "index": {"chosen": 1, "rejected": 0}, "side": "right",
        },
    }  # fmt: skip
    read = read_back(tmp_path / "p.jsonl")
    assert [(row["chosen"], row["chosen_ended"], row["rejected"]) for row in read] == [("two", False, "one")] * 2
    assert [line["outcome"] for line in lines(tmp_path / "p-other.jsonl")] == ["tie"]


def read_back(path: Path) -> list[dict[str, Any]]:
    settings = ["stage=reward", "init_from=a", "data=preferences", "data.source=files", f"data.path={path}"]
    config = compose_train(read_command_line(settings))
    skips = Skips(0.0)
    return list(records(config.data, skips, silent))  # type: ignore[arg-type]


@pytest.mark.parametrize("outcome", preferences.OUTCOMES)
def test_a_line_tells_the_whole_vote(outcome: str) -> None:
    for given in (vote(5, outcome), vote(5, outcome, again="0"), vote(5, outcome, swap=True)):
        assert vote_of(json.loads(json.dumps(given.line()))) == given


def test_a_vote_that_was_taken_back_is_read_by_nobody(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    file = Preferences(path, silent)
    first, second = vote(1, "left"), vote(2, "left")
    file.add(first)
    file.add(second)
    assert file.retract(first.pair.id) and file.retract(first.pair.id)  # a second time changes nothing
    assert not file.retract("unknown")
    anew = replace(first, pair=replace(first.pair, id=file.id_of("me", 1)), outcome="right")
    assert anew.pair.id not in (first.pair.id, second.pair.id)
    file.add(anew)
    assert len(lines(path)) == 4 and [row["chosen"] for row in read_back(path)] == ["one", "two"]
    file.close()
    again = Preferences(path, silent)
    assert set(again.votes) == {second.pair.id, anew.pair.id} and again.vote_on("me", 1) == anew


def test_the_same_vote_twice_is_one(tmp_path: Path) -> None:
    file = Preferences(tmp_path / "p.jsonl", silent)
    assert file.add(vote(1, "left")) == file.add(vote(1, "right")) == vote(1, "left")
    assert len(lines(tmp_path / "p.jsonl")) == 1


@pytest.mark.parametrize("cut", [1, 2, 50, 300])
def test_half_a_line_at_the_end_was_never_answered_and_is_removed(tmp_path: Path, cut: int) -> None:
    path, told = tmp_path / "p.jsonl", list[str]()
    file = Preferences(path, silent)
    file.add(vote(1))
    file.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole.replace(b'"number": 1', b'"number": 2')[:-cut])
    file = Preferences(path, told.append)
    complete = cut == 1  # all but the line's end: it is kept, and ended
    assert len(told) == 1 - complete and len(lines(path)) == 1 + complete
    file.add(vote(3))
    assert len(lines(path)) == 2 + complete and len(file.votes) == 2  # the copied line has the id of the first


def test_lines_of_others_stay_and_count_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    strange = [
        '{"prompt": "a", "chosen": "b", "rejected": "c"}',
        "[1]",
        '{"chosen": 1, "gengen": {"side": "up"}}',
        "no JSON",
    ]
    number = json.dumps(vote(1).line()).replace('"number": 1', '"number": "x"')
    path.write_text("\n".join([*strange, number]))
    told: list[str] = []
    assert (
        not Preferences(path, told.append).votes and not told and path.read_text().splitlines() == [*strange, number]
    )


def test_the_file_has_a_size_and_a_full_disk_leaves_it_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Preferences(tmp_path / "p.jsonl", silent)
    file.add(vote(1))
    before = (tmp_path / "p.jsonl").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("gengen.serving.preferences.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            file.add(vote(2))
    monkeypatch.setattr(preferences, "MAX_FILE", len(before) + 10)
    with pytest.raises(OSError, match="would grow"):
        file.add(vote(2))
    assert (tmp_path / "p.jsonl").read_bytes() == before and len(file.votes) == 1


def test_a_second_writer_is_turned_away(tmp_path: Path) -> None:
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        kept = Preferences(tmp_path / "p.jsonl", silent)
        os.write(told, b"x" if kept else b"")
        signal.pause()
    try:
        os.read(ready, 1)
        with pytest.raises(UserError, match="written by another process"):
            Preferences(tmp_path / "p.jsonl", silent)
    finally:
        waited(child, 0)
    Preferences(tmp_path / "p.jsonl", silent)
    with pytest.raises(UserError, match="cannot be written"):
        Preferences(tmp_path / "none/p.jsonl", silent)


# --- sides, repeats, figures


def test_sides_are_drawn_evenly_and_for_each_annotator_anew() -> None:
    mine, yours = ([swapped(name, i) for i in range(1, 2001)] for name in ("me", "you"))
    assert abs(sum(mine) - 1000) < 100 and abs(sum(a == b for a, b in zip(mine, yours, strict=True)) - 1000) < 100


def test_one_pair_in_ten_is_an_earlier_one_again_and_each_once() -> None:
    votes: list[Vote] = []
    for number in range(1, 501):
        before = repeated("me", number, votes)
        assert before is None or before.pair.number < number - preferences.APART
        votes.append(vote(number, again=before.pair.id if before else ""))
    again = [v.pair.again for v in votes if v.pair.again]
    assert 30 <= len(again) <= 70 and len(set(again)) == len(again)
    assert not {v.pair.id for v in votes if v.pair.again} & set(again)
    assert all(repeated("you", number, votes) is None for number in range(1, 501))


def test_figures_of_votes_by_hand() -> None:
    """Four pairs, the first two again: the same text chosen once, the other one once."""
    first, second = vote(1, "left"), vote(2, "right")
    votes = [first, second, vote(3, "tie"), vote(4, "skip"), vote(5, "left", swap=True)]
    votes += [vote(6, "right", first.pair.id, swap=True), vote(7, "right", second.pair.id, swap=True)]
    found = figures(votes)
    assert (found["pairs"], found["tie"], found["bad"], found["skip"]) == (3, 1, 0, 1)
    assert found["agreement"] == {
        "count": 1,
        "of": 2,
        "low": pytest.approx(0.0945, abs=1e-4),
        "high": pytest.approx(0.9055, abs=1e-4),
    }
    assert (found["left"]["count"], found["left"]["of"]) == (2, 5)
    assert [(w["run"], w["over"], w["count"], w["of"]) for w in found["wins"]] == [("a", "b", 1, 3)]
    assert figures([]) == {"pairs": 0, "tie": 0, "bad": 0, "skip": 0, "agreement": None, "left": None, "wins": []}


# --- over HTTP


def voting(runs: Path, path: Path | None, test: Callable[[httpx.AsyncClient], Any], **settings: Any) -> None:
    """Run a test with a client of the application over `story` and `chat`, which takes votes in a file."""

    async def inside() -> None:
        kept = Preferences(path, silent) if path else None
        application = served_here(runs, playground=True, preferences_file=kept, **settings)
        application.start()
        try:
            async with in_process(application) as client, asyncio.timeout(60):
                await test(client)
        finally:
            application.stop()

    asyncio.run(inside())


ASKED = {"annotator": "me", "model": "story", "other": "chat", "prompt": "Once", "max_tokens": 6}
API = "/gengen/v1/preference"


def test_a_pair_is_what_generate_draws_and_tells_its_runs_after_the_vote_alone(talkers: Path, tmp_path: Path) -> None:
    story, chat = (load_as(TextGenerator, str(talkers / name), device="cpu") for name in ("story", "chat"))
    asked = prompt_tokens(chat.tokenizer, PROMPT)
    how: Any = {"n": 2, "temperature": 1.0, "max_tokens": 6, "overflow": "end"}

    async def test(client: httpx.AsyncClient) -> None:
        for number in (1, 2, 3, 4):
            pair = (await client.post(f"{API}/pair", json=ASKED | {"number": number})).json()
            assert set(pair) == {"id", "number", "prompt", "left", "right", "voted"} and pair["voted"] is None
            texts = [
                story.generate("Once", seed=number, **how)[0].text,
                chat.generate([asked], seed=number, **how)[1].text,
            ]
            assert [pair["left"], pair["right"]] == (texts[::-1] if swapped("me", number) else texts)
            told = (await client.post(API, json={"id": pair["id"], "vote": "left", "seconds": 2})).json()
            assert told["left"]["name"] == ("chat" if swapped("me", number) else "story") and told["seed"] == number
            seen = (await client.post(f"{API}/pair", json=ASKED | {"number": number, "prompt": "other"})).json()
            assert seen == pair | {"voted": told}  # once it is voted on, it is what it was
        rows = read_back(tmp_path / "p.jsonl")
        assert len(rows) == 4 and {row["prompt"][0]["content"] for row in rows} == {"Once"}

    voting(talkers, tmp_path / "p.jsonl", test)


def test_texts_of_pairs_are_filtered_and_marked_like_any_others(talkers: Path, tmp_path: Path) -> None:
    """And the file has the prompt that the texts went on from."""
    story, mark = load_as(TextGenerator, str(talkers / "story"), device="cpu"), Watermark(bytes(32))
    how: Any = {"n": 2, "temperature": 1.0, "max_tokens": 100, "overflow": "end", "seed": 1}
    drawn = story.generate("write to [e-mail]", **how, processor=mark)
    listed = [word for sample in drawn for word in re.findall(r"\b[a-zA-Z]+\b", sample.text)]
    (tmp_path / "list").write_text("\n".join(listed))
    wanted = [judge([PatternFilter(), WordFilter(listed)], sample.text, "redact").text for sample in drawn]
    assert wanted != [sample.text for sample in drawn]

    async def test(client: httpx.AsyncClient) -> None:
        asked = ASKED | {"other": "story", "prompt": "write to a.b@c.org", "max_tokens": 100}
        pair = (await client.post(f"{API}/pair", json=asked)).json()
        assert pair["prompt"] == "write to [e-mail]"
        assert [pair["left"], pair["right"]] == (wanted[::-1] if swapped("me", 1) else wanted)
        assert (await client.post(f"{API}/pair", json=asked)).json() == pair, "it is drawn once"

    settings = {"filter": ["patterns", f"words:{tmp_path / 'list'}"], "watermark": mark}
    voting(talkers, tmp_path / "p.jsonl", test, **settings)


def test_a_vote_is_one_however_often_it_is_sent_and_undone_it_can_be_given_anew(talkers: Path, tmp_path: Path) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        pair = (await client.post(f"{API}/pair", json=ASKED)).json()
        sent = {"id": pair["id"], "vote": "left"}
        first = await client.post(API, json=sent)
        assert (await client.post(API, json=sent)).json() == first.json()
        other = await client.post(API, json=sent | {"vote": "tie"})
        assert other.status_code == 409 and "undo it first" in other.json()["error"]["message"]
        for _ in range(2):
            assert (await client.post(f"{API}/undo", json={"id": pair["id"]})).status_code == 200
        assert (await client.post(API, json=sent)).status_code == 404
        anew = (await client.post(f"{API}/pair", json=ASKED)).json()
        assert anew["id"] != pair["id"] and (anew["left"], anew["right"]) == (pair["left"], pair["right"])
        assert (await client.post(API, json={"id": anew["id"], "vote": "tie"})).status_code == 200
        assert not read_back(tmp_path / "p.jsonl")
        found = (await client.get(API, params={"annotator": "me"})).json()
        assert (found["pairs"], found["tie"], found["next"]) == (0, 1, 2)
        assert found["train"] == (
            "python scripts/train.py run=reward stage=reward init_from=runs/chat data=preferences "
            f"data.path={tmp_path}/p.jsonl"
        )

    voting(talkers, tmp_path / "p.jsonl", test)


def test_what_is_no_vote_is_refused_by_name(talkers: Path, tmp_path: Path) -> None:
    bad: list[tuple[str, dict[str, Any], str]] = [
        ("/pair", ASKED | {"annotator": ""}, "annotator"),
        ("/pair", ASKED | {"annotator": "a\nb"}, "annotator"),
        ("/pair", ASKED | {"annotator": "x" * 41}, "annotator"),
        ("/pair", ASKED | {"model": "none"}, "model"),
        ("/pair", ASKED | {"number": 0}, "number"),
        ("/pair", ASKED | {"max_tokens": 513}, "max_tokens"),
        ("/pair", ASKED | {"prompt": "x" * 8001}, "prompt"),
        ("/pair", ASKED | {"path": "/etc/passwd"}, "path"),
        ("", {"id": "x", "vote": "up"}, "vote"),
        ("", {"id": "x", "vote": ""}, "vote"),
        ("", {"id": "x", "vote": "tie", "seconds": -1}, "seconds"),
        ("/undo", {"id": ""}, "id"),
    ]

    async def test(client: httpx.AsyncClient) -> None:
        for path, body, param in bad:
            answer = await client.post(API + path, json=body)
            assert answer.status_code in (400, 404) and answer.json()["error"]["param"] == param, (body, answer.text)
        for path, body in (("", {"id": "x", "vote": "tie"}), ("/undo", {"id": "x"})):
            assert (await client.post(API + path, json=body)).status_code == 404
        same = await client.post(f"{API}/pair", json=ASKED | {"other": "", "temperature": 0})
        assert same.status_code == 409 and "the same text" in same.json()["error"]["message"]
        assert not (tmp_path / "p.jsonl").read_text()

    voting(talkers, tmp_path / "p.jsonl", test)


def test_without_a_file_no_vote_is_taken(talkers: Path) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        answer = await client.get(API, params={"annotator": "me"})
        assert answer.status_code == 404 and "preferences=FILE" in answer.json()["error"]["message"]

    voting(talkers, None, test)


# --- 200 votes, and ten kills in between


@dataclass
class Annotator:
    """Prefers the text whose letters sum to more, chooses the left one of every fifth pair without looking, and calls
    every seventeenth a tie. seen: number -> the texts by their sides, and the vote."""

    seen: dict[int, tuple[str, str, str]] = field(default_factory=dict)

    def choose(self, number: int, left: str, right: str) -> str:
        better = "left" if sum(map(ord, left)) > sum(map(ord, right)) else "right"
        outcome = "tie" if number % 17 == 0 else "left" if number % 5 == 0 else better
        self.seen[number] = (left, right, outcome)
        return outcome

    def chosen(self, number: int) -> str:
        left, right, outcome = self.seen[number]
        return {"left": left, "right": right}.get(outcome, outcome)

    def again(self) -> list[tuple[int, int]]:
        """The pairs that were there before, sides swapped."""
        first: dict[tuple[str, str], int] = {}
        found = []
        for number, (left, right, _) in self.seen.items():
            if (right, left) in first:
                found.append((first[right, left], number))
            else:
                first[left, right] = number
        return found


@pytest.mark.slow
def test_of_200_votes_none_is_lost_and_none_is_there_twice_whatever_is_killed(
    talkers: Path, base: Path, tiny_alignment: list[str], tmp_path: Path
) -> None:
    path, annotator, draw = tmp_path / "p.jsonl", Annotator(), random.Random(0)
    fatal = set(draw.sample(range(1, 201), 10))
    settings = [str(talkers / "story"), str(talkers / "chat"), "playground=true", f"preferences={path}"]
    number = 1
    while number <= 200:
        with process(settings, tmp_path / f"said-{len(fatal)}.txt") as server:
            number = vote_until_killed(server, annotator, number, fatal, draw)
    told = lines(path)
    others = lines(tmp_path / "p-other.jsonl")
    numbers = [line["gengen"]["number"] for line in [*told, *others]]
    assert sorted(numbers) == list(range(1, 201))
    for line in told:
        left, right, outcome = annotator.seen[line["gengen"]["number"]]
        assert {"left": left, "right": right}[outcome] == line["chosen"] and line["rejected"] in (left, right)
    check_figures(path, annotator)
    steps = ["data.batch_size=8", "trainer.max_steps=4", f"runs_dir={tmp_path}/runs", "run=rm", *tiny_alignment]
    argv = ["train", "stage=reward", f"init_from={base}", "data=preferences", f"data.path={path}", *steps]
    assert main(argv) == 0


def vote_until_killed(server: Process, annotator: Annotator, number: int, fatal: set[int], draw: random.Random) -> int:
    """Vote on pairs from a number on, until the server was killed or 200 are done; returns the number to go on from,
    which is the last one again where nothing was answered."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        while number <= 200:
            pair = client.post(
                f"{API}/pair", json=ASKED | {"number": number, "prompt": f"Once {number % 40}", "max_tokens": 3}
            ).json()
            if pair["voted"]:  # of a vote whose answer was lost
                assert pair["voted"]["vote"] == annotator.seen[number][2]
                number += 1
                continue
            sent = {"id": pair["id"], "vote": annotator.choose(number, pair["left"], pair["right"]), "seconds": 1}
            if number in fatal:
                fatal.remove(number)
                killer = threading.Thread(target=kill_soon, args=(server.pid, draw.uniform(0, 0.02)))
                killer.start()
                with suppress(httpx.TransportError):
                    client.post(API, json=sent)
                killer.join()
                return number
            assert client.post(API, json=sent).status_code == 200
            number += 1
    return number


def kill_soon(pid: int, seconds: float) -> None:
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)


def check_figures(path: Path, annotator: Annotator) -> None:
    """What is told of the annotator is what she did."""
    votes = Preferences(path, silent).votes
    found, again = figures(votes.values()), annotator.again()
    assert len(again) == sum(bool(vote.pair.again) for vote in votes.values()) > 10
    decided = [outcome for _, _, outcome in annotator.seen.values() if outcome in ("left", "right")]
    same = sum(annotator.chosen(a) == annotator.chosen(b) for a, b in again)
    assert (found["agreement"]["count"], found["agreement"]["of"]) == (same, len(again)) and same < len(again)
    assert (found["left"]["count"], found["left"]["of"]) == (decided.count("left"), len(decided))
    assert found["left"]["low"] < 0.6 < found["left"]["high"]  # half of four fifths, and a fifth
