"""The attributes that things of a data set have, and captions read as requests for them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from gengen.data.image.captions import Description, words_of
from gengen.data.image.sources.base import Thing
from gengen.errors import UserError

UNKNOWN = -1  # the number of a value that a thing lacks
Asked = Mapping[str, str]
"""Attribute -> the value that is asked for."""


@dataclass(frozen=True)
class Vocabulary:
    """The values of each attribute of the things that training pictures show, sorted; those that vary."""

    values: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, descriptions: Sequence[Description]) -> Self:
        """Collect the attributes of things that have two or more, which can be combined."""
        found: dict[str, set[str]] = {}
        for attributes in (thing.attributes for row in descriptions for thing in row.things):
            for name, value in attributes.items() if len(attributes) > 1 else ():
                found.setdefault(name, set()).add(value)
        return cls({name: sorted(values) for name, values in sorted(found.items()) if len(values) > 1})

    @property
    def sizes(self) -> list[int]:
        return [len(values) for values in self.values.values()]

    def knows(self, things: Sequence[Thing]) -> bool:
        """Return whether there are things, and each value of them is one that can be told."""
        known = (
            bool(thing.attributes)
            and all(value in self.values.get(name, ()) for name, value in thing.attributes.items())
            for thing in things
        )
        return bool(things) and all(known)

    def numbers(self, attributes: Asked) -> list[int]:
        """Return the number of each attribute's value in the order of `values`, UNKNOWN where there is none."""
        return [
            values.index(attributes[name]) if attributes.get(name) in values else UNKNOWN
            for name, values in self.values.items()
        ]

    def targets(self, asked: Sequence[Asked]) -> Tensor:
        """Return those numbers of N things, (N, attributes) int64."""
        return torch.tensor([self.numbers(attributes) for attributes in asked]).view(len(asked), len(self.values))

    def named(self, numbers: Sequence[int]) -> dict[str, str]:
        """Return the values of these numbers."""
        pairs = zip(self.values.items(), numbers, strict=True)
        return {name: values[number] for (name, values), number in pairs if number != UNKNOWN}


class CaptionReader:
    """Says what a caption asks for: as the data describe its picture, or else by the words of values in it."""

    def __init__(self, vocabulary: Vocabulary, descriptions: Sequence[Description]):
        self.vocabulary = vocabulary
        self.known = {
            " ".join(words_of(caption)): row.things[0].attributes
            for row in descriptions
            if len(row.things) == 1 and vocabulary.knows(row.things)
            for caption in row.captions
        }

    def __call__(self, caption: str) -> Asked:
        """Return what is asked for. Raises UserError where the caption names no value."""
        text = " ".join(words_of(caption))
        if text in self.known:
            return self.known[text]
        values = [(value, name) for name, values in self.vocabulary.values.items() for value in values]
        found: dict[str, str] = {}
        for value, name in sorted(values, key=lambda pair: -len(pair[0])):  # "medium dark" before "dark"
            pattern = rf"\b{re.escape(' '.join(words_of(value)))}\b"
            if name not in found and re.search(pattern, text):
                found[name], text = value, re.sub(pattern, "|", text)
        if not found:
            some = "; ".join(f"{name}: {', '.join(values[:8])}" for name, values in self.vocabulary.values.items())
            raise UserError(f"{caption!r} asks for nothing that the judge of this data can tell: it knows {some}")
        return found
