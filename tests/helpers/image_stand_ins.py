"""Small made-up pictures in the forms that the real archives have them in."""

import io

import numpy as np
from PIL import Image


def array_stream(array, core="numpy.core.multiarray", end=b"."):
    """A numpy array as the animals' archive stores it, opcode by opcode (protocol 4)."""

    def text(word):
        return b"\x8c" + bytes([len(word)]) + word.encode() + b"\x94"

    def number(n):
        return b"M" + n.to_bytes(2, "little")

    kind, order = {"uint8": ("u1", "|"), "int64": ("i8", "<")}[str(array.dtype)]
    ending = {1: b"\x85", 3: b"\x87"}[array.ndim]
    return b"".join(
        [
            *(b"\x80\x04", text(core), text("_reconstruct"), b"\x93\x94", text("numpy"), text("ndarray"), b"\x93\x94"),
            *(
                b"K\x00\x85\x94",
                b"C\x01b\x94",
                b"\x87\x94R\x94(K\x01",
                *map(number, array.shape),
                ending,
                b"\x94h\x03",
            ),
            *(text("dtype"), b"\x93\x94", text(kind), b"\x89\x88\x87\x94R\x94(K\x03", text(order), b"NNN"),
            *(
                b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t\x94b\x89",
                b"B",
                array.nbytes.to_bytes(4, "little"),
                array.tobytes(),
            ),
            *(b"\x94t\x94b", end),
        ]
    )


def png(pixels, **options):
    """The bytes of a PNG of (H, W), (H, W, 3) or (H, W, 4) uint8."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, "PNG", **options)
    return file.getvalue()


FARMER = "1F468-200D-1F33E 1F469-200D-1F33E 1F9D1-200D-1F33E"
RUNNER = "1F3C3-200D-2642-FE0F 1F3C3-200D-2640-FE0F 1F3C3"
TONES = {"1F3FB": "light", "1F3FF": "dark"}


OBJECTS = [(f"{0x1F5C0 + i:X}", f"OBJECT {i}", "Objects", "tool", f"object_{i}", ()) for i in range(38)]
EMOJI = [  # code, Unicode's name, category, subcategory, CLDR's name, tones
    *(
        (code, f"{who}FARMER", "People", "person-role", f"{who}farmer".lower().replace(" ", "_"), TONES)
        for code, who in zip(FARMER.split(), ("MAN ", "WOMAN ", ""), strict=True)
    ),
    *(
        (code, f"{who} RUNNING", "People", "person-activity", f"{who}_running".lower(), TONES)
        for code, who in zip(RUNNER.split(), ("MAN", "WOMAN", "PERSON"), strict=True)
    ),
    ("1F491", "COUPLE", "People", "family", "couple_with_heart", ("1F3FB-1F3FF",)),
    *OBJECTS,
    ("00A9-FE0F", "COPYRIGHT SIGN", "Symbols", "other-symbol", "copyright", ()),
    ("2764-FE0F", "HEAVY BLACK HEART", "Symbols", "heart", "red_heart", ()),
]
"""Two base names in three sexes and three tones each, a couple in two tones, and forty plain objects."""


def variant(code, tone):
    """The code of an emoji in a tone."""
    first, *rest = code.split("-")
    return "-".join([first, tone, *rest])


def emoji_table(emoji=EMOJI):
    """As emoji-data has them."""
    return [
        {
            "unified": code,
            "name": name,
            "short_name": name.lower(),
            "category": category,
            "subcategory": subcategory,
            "skin_variations": {tone: {"unified": variant(code, tone)} for tone in tones},
        }
        for code, name, category, subcategory, _, tones in emoji
    ]


def emoji_names(emoji=EMOJI):
    """File -> what it holds, as the package with CLDR's names has it; the Spanish is made up."""

    def text(code):
        return "".join(chr(int(part, 16)) for part in code.split("-"))

    english, spanish = {}, {}
    for code, *_, name, tones in emoji:
        for each in (code, *(variant(code, tone) for tone in tones)):
            english[text(each)] = {"en": f":{name}:", "alias": [":heart:"]} if "heart" in name else {"en": f":{name}:"}
            spanish[text(each)] = f":el_{name}{'_en_tono' * (each != code)}:"
    return {"emoji/unicode_codes/emoji.json": english, "emoji/unicode_codes/emoji_es.json": spanish}
