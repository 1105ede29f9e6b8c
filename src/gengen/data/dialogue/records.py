"""Records of conversations, preferences, ratings and prompts, made of whatever rows a source has.

    conversations  {"messages": [{"role", "content"}, ...]}
    preferences    {"prompt", "chosen", "rejected"}, and where wanted {"margin", "chosen_ended", "rejected_ended"}
    ratings        {"prompt", "answer", "good"}, and where wanted {"ended"}; or a preference, which is two ratings
    prompts        {"prompt"} or {"messages"}, and whatever else

A prompt is a string or messages; a response a string, or the assistant's message, alone or behind those of the prompt.
Null means absent; a value of another type makes its line unreadable.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from gengen.config.data import ExamplesConfig
from gengen.data.dialogue.sources.base import Row
from gengen.data.dialogue.template import Messages, read_messages
from gengen.data.sources.base import Source, source_for
from gengen.data.sources.skips import Skips
from gengen.io import Json, Say

Record = dict[str, Any]
Optional = TypeVar("Optional", bool, float)


def dialogue_source(config: ExamplesConfig) -> Source[Row]:
    """The source of a config whose source is settled."""
    return source_for(config.kind, config)


def records(config: ExamplesConfig, skips: Skips, say: Say) -> Iterator[Record]:
    """Yield the records of a settled source, `max_examples` at most besides those it holds out itself, which come
    first.

    Each has its "origin" and its "split", None where the source is not divided. What cannot be read is skipped and
    counted; raises UserError at the end if that was too much.
    """
    parse, left = PARSERS[config.kind], config.max_examples
    for row in dialogue_source(config).read(skips, say):
        if row.split != "val" and left is not None:
            if not left:
                break
            left -= 1
        try:
            for record in parse(row.content):
                yield record | {"origin": row.origin, "split": row.split}
            skips.good[row.unit] += 1
        except (ValueError, TypeError, OverflowError) as error:
            skips.skip(row.unit, row.origin, str(error))
    skips.check()


def value(row: Json, *keys: str) -> Json:
    """Return what a row has under the first of these keys that is there and not null; else raise ValueError."""
    if not isinstance(row, dict):
        raise ValueError(f"{type(row).__name__}, not an object with the key {keys[0]!r}")
    if not (found := [key for key in keys if row.get(key) is not None]):
        has = [key if held is not None else f"{key} (null)" for key, held in row.items()]
        raise ValueError(f"no key {' or '.join(map(repr, keys))}; keys: {', '.join(has)}")
    return row[found[0]]


def optional(row: dict[str, Any], key: str, default: Optional) -> Optional:
    """Return what a row has under a key, the default where that is null; raise ValueError for another type."""
    found = row.get(key)
    if found is None:
        return default
    if type(found) is int and type(default) is float:
        found = float(found)
    if type(found) is not type(default):
        wanted = "a number" if type(default) is float else "true or false"
        raise ValueError(f"{key!r} holds {type(found).__name__} ({str(found)[:60]}), not {wanted}")
    return found


def conversation(row: Json) -> Record:
    """Return the row's messages."""
    return {"messages": read_messages(value(row, "messages"), "messages")}


def prompt(row: Json) -> Record:
    """Return the row with its prompt as messages, but for a last one of the assistant, which is to speak there."""
    messages = read_messages(value(row, "prompt", "messages"), "messages")
    answered = messages[-1]["role"] == "assistant"
    return {**row, "prompt": read_messages(messages[:-1] if answered else messages, "messages")}


def preference(row: Json) -> Record:
    """Return the prompt as messages and the responses as strings. Where the row has no prompt, it is what stands
    before the last message of `chosen`."""
    chosen = value(row, "chosen")
    asked = row.get("prompt")
    if asked in (None, "", []):
        asked = chosen[:-1] if isinstance(chosen, list) else None
    asked = read_messages(asked, "prompt")
    record: Record = {"prompt": asked, "margin": optional(row, "margin", 0.0)}
    if not math.isfinite(record["margin"]):
        raise ValueError(f"'margin' is {record['margin']}")
    for side in ("chosen", "rejected"):
        said = one_answer(value(row, side), side, asked)
        record |= {side: said, f"{side}_ended": optional(row, f"{side}_ended", True)}
    return record


def ratings(row: Json) -> list[Record]:
    """Return the prompt as messages, the answer as a string and whether it is good. Of a preference the chosen one
    is."""
    if isinstance(row, dict) and row.get("chosen") is not None:
        pair = preference(row)
        return [
            {"prompt": pair["prompt"], "answer": pair[side], "good": good, "ended": pair[f"{side}_ended"]}
            for side, good in (("chosen", True), ("rejected", False))
        ]
    asked, good = read_messages(value(row, "prompt"), "prompt"), value(row, "good", "label")
    if not isinstance(good, bool):
        raise ValueError(f"'good' holds {type(good).__name__} ({str(good)[:60]}), not true or false")
    answer = one_answer(value(row, "answer", "completion"), "answer", asked)
    assert isinstance(row, dict)
    return [{"prompt": asked, "answer": answer, "good": good, "ended": optional(row, "ended", True)}]


def one_answer(said: Json, key: str, asked: Messages) -> str:
    """Return what the assistant says, given alone or behind the messages that it answers."""
    messages = read_messages(said, key, speaker="assistant")
    messages = messages[len(asked) :] if messages[: len(asked)] == asked else messages
    if [message["role"] for message in messages] != ["assistant"]:
        raise ValueError(f"{key!r} is not one message of the assistant, alone or behind those of the prompt")
    return messages[0]["content"]


PARSERS: dict[str, Callable[[Json], list[Record]]] = {
    "conversations": lambda row: [conversation(row)],
    "preferences": lambda row: [preference(row)],
    "ratings": ratings,
    "prompts": lambda row: [prompt(row)],
}
