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


def emoji_table():
    """Two base names in three sexes and three tones each, a couple in two tones, and forty plain objects: as
    emoji-data has them.
    """

    def entry(code, name, category, tones=()):
        first, *rest = code.split("-")
        variations = {tone: {"unified": "-".join([first, tone, *rest])} for tone in tones}
        return {
            "unified": code,
            "name": name,
            "short_name": name.lower(),
            "category": category,
            "skin_variations": variations,
        }

    people = [
        entry(code, f"{who}FARMER", "People", TONES)
        for code, who in zip(FARMER.split(), ("MAN ", "WOMAN ", ""), strict=True)
    ]
    people += [
        entry(code, f"{who} RUNNING", "People", TONES)
        for code, who in zip(RUNNER.split(), ("MAN", "WOMAN", "PERSON"), strict=True)
    ]
    couple = entry("1F491", "COUPLE", "People") | {
        "skin_variations": {"1F3FB-1F3FF": {"unified": "1F491-1F3FB-1F3FF"}}
    }
    objects = [entry(f"{0x1F5C0 + i:X}", f"OBJECT {i}", "Objects") for i in range(38)]
    return [
        *people,
        couple,
        *objects,
        entry("00A9-FE0F", "COPYRIGHT SIGN", "Symbols"),
        entry("2764-FE0F", "HEAVY BLACK HEART", "Symbols"),
    ]
