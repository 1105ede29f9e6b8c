"""Text without disguise, and where each of its characters stands in the text as it is."""

import unicodedata
from functools import lru_cache

LOOKALIKES = str.maketrans(
    "АВЕЅІЈКМНОРСТУХԁԛԜаеѕіјкорсутхһԝվոսցօ"  # Cyrillic, then Armenian
    "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧαικνορυχϲϳ"  # Greek
    "ıɡʀɪɴʟ‐‑‒–—―−",  # noqa: RUF001
    "ABESIJKMHOPCTYXdqWaesijkopcytxhwvnugoABEZHIKMNOPTYXaiknopuxcjigRINL-------",
)
"""Letters of other scripts that look like Latin ones (from Unicode's confusables), and dashes."""
SPACES = {ord(space): " " for space in "\t\n\v\f\r"}
INVISIBLE = ("Mn", "Me", "Cf", "Cc")


@lru_cache(maxsize=4096)
def plain_character(character: str) -> str:
    """Return what a character stands for: compatibility forms (full-width, mathematical) as plain ones, digits of any
    script as 0 to 9, letters without accents, look-alikes as Latin; white space as a space; nothing for what is not
    seen."""
    if character.isspace():
        return " "
    found = []
    for part in unicodedata.normalize("NFKD", character):
        if unicodedata.category(part) not in INVISIBLE:
            found.append(str(unicodedata.digit(part, None) if unicodedata.category(part) == "Nd" else part))
    return "".join(found).translate(LOOKALIKES)


def plain(text: str) -> tuple[str, list[int]]:
    """Return a text in plain characters, and for each the place in `text` of the one it comes from; one place more is
    the end."""
    spaced = text.translate(SPACES)
    if spaced.isascii() and spaced.isprintable():  # most texts: nothing else changes
        return spaced, list(range(len(text) + 1))
    parts = [plain_character(character) for character in text]
    places = [place for place, part in enumerate(parts) for _ in part]
    return "".join(parts), [*places, len(text)]
