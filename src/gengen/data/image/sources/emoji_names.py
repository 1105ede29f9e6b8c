"""What an emoji shows, in words: captions made of its CLDR short name, and its attributes. Functions of strings."""

import re
from collections.abc import Sequence

TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
YELLOW = "yellow"  # the colour of a hand without a tone
COLOURED = re.compile(
    r"((?:large |medium |medium-small |small )?)"
    r"(red|orange|yellow|green|light blue|blue|purple|brown|black|white|grey|pink) (circle|square|heart)"
)
REWRITTEN = [  # CLDR has punctuation here, which the package leaves out, or another order of words
    (r"(.+) (red|curly|white|blond) hair", r"\1 with \2 hair"),
    (r"(.+) bald", r"bald \1"),
    (r"(.+) beard", r"\1 with a beard"),
    (r"(family|kiss|couple with heart) ((?:(?:wo)?man|adult)\b.*)", r"\1: \2"),
    (r"(\w+ o'clock|\w+-thirty)", r"clock showing \1"),
    (r"(black|white) (large|medium|medium-small|small) square", r"\2 \1 square"),
]
THE = re.compile(
    r"(United|Bahamas|Comoros|Gambia|Maldives|Netherlands|Philippines|Seychelles|Central African|Caribbean)\b"
    r"|.* (Islands|Territory|Territories|Republic)$"
)
COUNTED = re.compile(  # subcategories with names of single things, which an article goes before
    r"heart|geometric|animal-|plant-flower|transport-(ground|air|water)|tool|musical-instrument"
    r"|face-|cat-face|monkey-face|food-fruit|person|hand-|body-parts"
)
PHRASE = re.compile(  # what nothing is put before or behind
    r".*(:| (with|in|of|at|on|from|getting|feeding|taking|raising|tipping|rowing|bouncing|wearing|gesturing) )"
    r"|.*(polish|feeding)$"
)
UNCOUNTED = re.compile(
    r".*(s|coral|thumbs down|up together|call me hand|people hugging|light rail|construction|struck)$"
    r"|(people|men|women|busts|woman and man|horse racing|rolling on|love-you)\b|[A-NP-Z]"
)
CONSONANT = re.compile(r"uni|eu|ewe|one")  # a vowel is written, a consonant is heard
KEYWORDS = re.compile(  # those of the aliases that say in plain words what the picture shows
    r"[a-z]+ing (man|woman|person)|[a-z]+ haired (man|woman|person)|(bearded|older) (man|woman|person)"
    r"|(lion|fox|panda|unicorn|robot|hugging|vomiting) face|(mountain )?bicyclist|police(wo)?man|guards(wo)?man"
    r"|ocean|corn|mandarin|apple|rice|curry|ramen|fries|sweet potato|fish cake|cake|stew|fried egg|tea|cocktail|beers?"
    r"|champagne|gift|santa|dolls|mortar board|tickets|headphones|dart|runner|surfer|swimmer|golfer|weight lifter"
    r"|football|office|lantern|sheep|shell|bee|raven|lips|punch|eyeglasses|shirt|shoe|pouch|sandal|boot|cop"
    r"|bride with veil|angel|imp|dancer|cupid|bulb|sweat drops|poop|muscle|computer|minidisc|book|fax|mailbox|speaker"
    r"|lock|knife|gun|(fe)?male detective|paperclips|ballot box|steam locomotive|car|truck|traffic light|bike"
    r"|raised hands|fist|ice cube|cheese|phone|coffee|scales|boat|heart"
)


def spoken(name: str) -> str:
    """Return the words of a name as the package writes it: ":red_heart:" -> "red heart"."""
    return name.strip(":").replace("_", " ").replace("\u2019", "'")


def named(name: str, subcategory: str) -> str:
    """Return CLDR's English name as people say it: "man red hair" -> "man with red hair"; a flag as one."""
    if subcategory in ("country-flag", "subdivision-flag"):
        return f"flag of {'the ' * bool(THE.match(name))}{name}"
    found = ((re.fullmatch(pattern, name), words) for pattern, words in REWRITTEN)
    return next((match.expand(words) for match, words in found if match), name)


def with_article(name: str, subcategory: str) -> str:
    """Return a name with "a" or "an"; "" where it goes without, or might."""
    if not COUNTED.match(subcategory) or PHRASE.match(name) or UNCOUNTED.match(name):
        return ""
    return f"{'an' if name[0] in 'aeiouO' and not CONSONANT.match(name) else 'a'} {name}"


def skins_of(tone: str) -> list[str]:
    """Return the names of a tone's skins: 1F3FB-1F3FF -> ["light", "dark"]; one where they are equal; none for ""."""
    return list(dict.fromkeys(TONES[part] for part in tone.split("-") if part))


def captions_of(name: str, subcategory: str, aliases: Sequence[str], skins: Sequence[str]) -> tuple[str, ...]:
    """Return captions of a picture in English, the plainest first. name: see `named`; skins: see `skins_of`."""
    article = with_article(name, subcategory)
    keyword = next(filter(KEYWORDS.fullmatch, map(spoken, aliases)), "")
    plain = tuple(filter(None, dict.fromkeys((name, article, keyword))))
    if skins:
        tone = " and ".join(skins)
        plain = tuple(f"{words}, {tone} skin tone{'s' * (len(skins) > 1)}" for words in plain)
        return plain if PHRASE.match(name) else (*plain, f"{article or name} with {tone} skin")
    if found := COLOURED.fullmatch(name):
        return (*plain, f"a {found[1]}{found[3]}, {found[2]}")
    return plain


def attributes_of(name: str, subcategory: str, skins: Sequence[str], tones: int) -> dict[str, str]:
    """Return what can be asked for of a picture: a hand's gesture and tone, a plain form's shape and colour.

    tones: how many the emoji comes in. What is never drawn in another, or in two at once, has no combination.
    """
    if found := COLOURED.fullmatch("red heart" if name == "heart suit" else name):
        return {"shape": found[3], "colour": found[2]}
    if subcategory.startswith(("hand", "body-parts")) and tones == len(TONES):
        return {"gesture": name, "tone": skins[0] if skins else YELLOW}
    return {}
