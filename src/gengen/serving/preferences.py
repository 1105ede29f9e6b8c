"""Votes of people between two texts, in a file that `data=preferences` reads as it is.

A vote is a line, on the disk before it is answered: "prompt", "chosen", "rejected", "chosen_ended", "rejected_ended",
and under "gengen" where it comes from. What is no pair to learn from (ties, both bad, skipped, shown again) goes to
NAME-other.jsonl beside it. No line is ever changed: {"retract": ID} takes one back.
"""

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gengen.config.limits import parse_json
from gengen.errors import UserError
from gengen.evaluation.intervals import interval

Tree = dict[str, Any]

FORMAT = 1
MAX_FILE = 64 * 2**20  # bytes of each of the two files
REPEATS = 10  # one in so many pairs is an earlier one again, its sides swapped
APART = 3  # pairs at least between the first and the second time
SIDES = ("left", "right")
OUTCOMES = (*SIDES, "tie", "bad", "skip")


@dataclass(frozen=True)
class Text:
    """One of the two texts of a pair: sample `index` of a run."""

    text: str
    ended: bool
    run: Tree  # name, step, sha256
    index: int


@dataclass(frozen=True)
class Pair:
    """Two texts as an annotator is shown them: pair `number` of hers.

    id: of the vote on it; another one once a vote on it was taken back. again: the id of the vote on it before.
    """

    id: str
    annotator: str
    number: int
    prompt: list[dict[str, str]]
    left: Text
    right: Text
    seed: int
    settings: Tree
    again: str = ""


@dataclass(frozen=True)
class Vote:
    """What was said of a pair: left, right, tie, bad (both) or skip."""

    pair: Pair
    outcome: str
    seconds: float
    time: str

    @property
    def decided(self) -> bool:
        return self.outcome in SIDES

    @property
    def chosen(self) -> tuple[str, int] | str:
        """Return the text that was chosen, on whichever side it stood; else the outcome."""
        text = self.pair.left if self.outcome == "left" else self.pair.right
        return (str(text.run.get("name")), text.index) if self.decided else self.outcome

    @property
    def teaches(self) -> bool:
        """Return whether it is a pair to learn from."""
        return self.decided and not self.pair.again

    def line(self) -> Tree:
        """Return it as the file has it."""
        pair = self.pair
        about: Tree = {
            "format": FORMAT, "id": pair.id, "annotator": pair.annotator, "number": pair.number, "again": pair.again,
            "seed": pair.seed, "settings": pair.settings, "seconds": self.seconds, "time": self.time,
        }  # fmt: skip
        if not self.teaches:
            sides = {side: vars(getattr(pair, side)) for side in SIDES}
            return {"prompt": pair.prompt, "outcome": self.outcome, **sides, "gengen": about}
        names = {"chosen": self.outcome, "rejected": SIDES[1 - SIDES.index(self.outcome)]}
        texts: dict[str, Text] = {name: getattr(pair, side) for name, side in names.items()}
        about |= {
            "runs": {name: text.run for name, text in texts.items()},
            "index": {name: text.index for name, text in texts.items()},
            "side": self.outcome,  # of the chosen one
        }
        said = {name: text.text for name, text in texts.items()}
        return {"prompt": pair.prompt} | said | {f"{n}_ended": t.ended for n, t in texts.items()} | {"gengen": about}


def vote_of(line: Tree) -> Vote:
    """Return the vote that a line tells of. Raises ValueError, TypeError or KeyError where it tells of none."""
    about = line["gengen"]
    if "chosen" in line:
        outcome = about["side"]
        other = SIDES[1 - SIDES.index(outcome)]
        texts = {
            side: Text(line[name], line[f"{name}_ended"], about["runs"][name], about["index"][name])
            for side, name in ((outcome, "chosen"), (other, "rejected"))
        }
    else:
        outcome = line["outcome"]
        texts = {side: Text(**line[side]) for side in SIDES}
    if not all(isinstance(text.run, dict) and isinstance(text.index, int) for text in texts.values()):
        raise TypeError("a text of no run")
    pair = Pair(
        str(about["id"]),
        str(about["annotator"]),
        int(about["number"]),
        line["prompt"],
        texts["left"],
        texts["right"],
        int(about["seed"]),
        dict(about["settings"]),
        str(about["again"]),
    )
    return Vote(pair, OUTCOMES[OUTCOMES.index(outcome)], float(about["seconds"]), str(about["time"]))


# --- which pair comes next, and on which side each text stands: functions of the annotator and the number


def draw(*of: str | int) -> int:
    """Return a number that is drawn by a hash: the same for the same annotator and pair, on any machine."""
    return int.from_bytes(hashlib.sha256(json.dumps(of).encode()).digest()[:8], "big")


def pair_id(annotator: str, number: int, attempt: int) -> str:
    return f"{draw('id', annotator, number, attempt):016x}"


def swapped(annotator: str, number: int) -> bool:
    """Return whether the first run's text stands on the right."""
    return draw("side", annotator, number) % 2 == 1


def repeated(annotator: str, number: int, votes: Iterable[Vote]) -> Vote | None:
    """Return the vote whose pair an annotator is shown again as number `number`; None where she is shown a new one."""
    if draw("repeat", annotator, number) % REPEATS:
        return None
    own = [vote for vote in votes if vote.pair.annotator == annotator]
    before = {vote.pair.again for vote in own}
    choices = [
        vote
        for vote in own
        if not vote.pair.again
        and vote.outcome != "skip"
        and vote.pair.number < number - APART
        and vote.pair.id not in before
    ]
    return choices[draw("which", annotator, number) % len(choices)] if choices else None


# --- figures


def counted(right: int, n: int) -> Tree | None:
    """Return a share with its 95 % interval; None of nothing."""
    if not n:
        return None
    low, high = interval(right, n)
    return {"count": right, "of": n, "low": low, "high": high}


def figures(votes: Iterable[Vote]) -> Tree:
    """Return how many votes there are of each kind; how often the same pair got the same vote again; how often the
    left one was chosen, which is half the time where sides do not matter; and which run was preferred to which."""
    votes = list(votes)
    first = {vote.pair.id: vote for vote in votes}
    again = [(first[vote.pair.again], vote) for vote in votes if vote.pair.again in first and vote.outcome != "skip"]
    decided = [vote for vote in votes if vote.decided]
    wins: dict[tuple[str, str], list[bool]] = {}
    for vote in decided:
        names = sorted({str(vote.pair.left.run.get("name")), str(vote.pair.right.run.get("name"))})
        if len(names) == 2 and not vote.pair.again:
            wins.setdefault((names[0], names[1]), []).append(vote.chosen[0] == names[0])
    outcomes = {outcome: sum(v.outcome == outcome for v in votes if not v.pair.again) for outcome in OUTCOMES[2:]}
    return {
        "pairs": sum(vote.teaches for vote in votes),
        **outcomes,
        "agreement": counted(sum(a.chosen == b.chosen for a, b in again), len(again)),
        "left": counted(sum(vote.outcome == "left" for vote in decided), len(decided)),
        "wins": [{"run": a, "over": b} | (counted(sum(won), len(won)) or {}) for (a, b), won in sorted(wins.items())],
    }


# --- the files


@dataclass
class VoteFile:
    """A file of votes, which one process appends to. votes: those that were not taken back, by their id; retracted:
    the ids of the others."""

    path: Path
    votes: dict[str, Vote] = field(default_factory=dict)
    retracted: set[str] = field(default_factory=set)

    def open(self, say: Callable[[str], None]) -> None:
        """Read what is there, and end its last line. Raises UserError where it cannot be written."""
        try:
            self.file: BinaryIO = self.path.open("ab+")
        except OSError as error:
            raise UserError(f"preferences={self.path} cannot be written: {error.strerror}") from None
        self.file.seek(0)
        whole = 0
        for line in self.file:
            if not (line.endswith(b"\n") or is_json(line)):  # cut off in the middle, so it was never answered
                say(f"{self.path}: {len(line)} bytes at its end are half a vote, and are removed")
                self.file.truncate(whole)
                break
            whole += len(line)
            self.take(line)
            if not line.endswith(b"\n"):
                self.file.write(b"\n")
        self.size = self.file.seek(0, os.SEEK_END)
        self.sync()
        folder = os.open(self.path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def take(self, line: bytes) -> None:
        """Take a line that is there. Lines of others are theirs."""
        try:
            tree = parse_json(line.decode())
            if isinstance(tree, dict) and isinstance(id := tree.get("retract"), str):
                self.retracted.add(id)
                self.votes.pop(id, None)
            else:
                vote = vote_of(tree)
                self.votes[vote.pair.id] = vote
        except (ValueError, TypeError, KeyError, AttributeError):
            return

    def append(self, tree: Tree) -> None:
        """Append a line; it is on the disk when this returns. Raises OSError, and the file is as before then."""
        line = json.dumps(tree, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        if self.size + len(line) > MAX_FILE:
            raise OSError(f"{self.path.name} would grow beyond {MAX_FILE:,} bytes: give another file")
        try:
            self.file.write(line)
            self.sync()
        except OSError:
            self.file.truncate(self.size)
            raise
        self.size += len(line)
        self.take(line)

    def sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())


def is_json(line: bytes) -> bool:
    try:
        parse_json(line.decode())
    except ValueError:
        return False
    return True


class Preferences:
    """Both files under one lock, whose one writer this process is until it ends."""

    def __init__(self, path: Path, say: Callable[[str], None]):
        """Raises UserError where the files cannot be written, or another process writes them."""
        self.path, self.mutex = path, threading.Lock()
        self.pairs, self.others = VoteFile(path), VoteFile(path.with_name(f"{path.stem}-other.jsonl"))
        try:
            self.lock = path.with_name(f".{path.name}.lock").open("a")
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"preferences={path} is written by another process; give another file") from None
        except OSError as error:
            raise UserError(f"preferences={path} cannot be written: {error.strerror}") from None
        for file in (self.pairs, self.others):
            file.open(say)

    @property
    def votes(self) -> dict[str, Vote]:
        """Return all votes that hold, of both files, by number."""
        found = [*self.pairs.votes.values(), *self.others.votes.values()]
        return {vote.pair.id: vote for vote in sorted(found, key=lambda vote: vote.pair.number)}

    def vote_on(self, annotator: str, number: int) -> Vote | None:
        """Return the vote of an annotator on a pair of hers."""
        return self.votes.get(self.id_of(annotator, number))

    def id_of(self, annotator: str, number: int) -> str:
        """Return the id of the vote on a pair: a new one for each vote that was taken back."""
        attempt = 0
        while (id := pair_id(annotator, number, attempt)) in self.pairs.retracted | self.others.retracted:
            attempt += 1
        return id

    def add(self, vote: Vote) -> Vote:
        """Write a vote; returns the one that holds, which is an earlier one where its pair has one."""
        with self.mutex:
            if (there := self.votes.get(vote.pair.id)) is None:
                (self.pairs if vote.teaches else self.others).append(vote.line())
            return there or vote

    def retract(self, id: str) -> bool:
        """Take a vote back; returns whether there was one, now or before."""
        with self.mutex:
            for file in (self.pairs, self.others):
                if id in file.votes:
                    file.append({"retract": id})
                if id in file.retracted:
                    return True
        return False

    def close(self) -> None:
        for file in (self.pairs.file, self.others.file, self.lock):
            file.close()
