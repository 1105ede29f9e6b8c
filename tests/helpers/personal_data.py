"""Seeded corpora for filters: made-up personal data, in eight disguises, and what only looks like it."""

import random
import string
from collections.abc import Callable

LETTERS = str.maketrans("aceiopxyABCEHKMOPTX", "асеіорхуАВСЕНКМОРТХ")  # noqa: RUF001
FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
MATHEMATICAL = {ord("0") + i: 0x1D7CE + i for i in range(10)}
MATHEMATICAL |= {ord("A") + i: 0x1D400 + i for i in range(26)} | {ord("a") + i: 0x1D41A + i for i in range(26)}
ARABIC = {ord("0") + i: 0x0660 + i for i in range(10)}


def luhn(digits: str) -> str:
    """Add the check digit."""
    total = sum(sum(divmod(2 * int(d), 10)) if i % 2 == 0 else int(d) for i, d in enumerate(reversed(digits)))
    return digits + str(-total % 10)


def iban(draw: random.Random) -> str:
    country, length = draw.choice([("DE", 18), ("FR", 23), ("GB", 18), ("ES", 20), ("NL", 14)])
    account = number(draw, length)
    check = 98 - int("".join(str(int(c, 36)) for c in account + country + "00")) % 97
    return f"{country}{check:02}{account}"


def number(draw: random.Random, length: int) -> str:
    return "".join(draw.choices(string.digits, k=length))


def word(draw: random.Random, least: int = 3, most: int = 9) -> str:
    return "".join(draw.choices(string.ascii_lowercase, k=draw.randint(least, most)))


def email(draw: random.Random) -> str:
    end = draw.choice(["com", "org", "net", "de", "co.uk", "example"])
    return (
        f"{word(draw)}{draw.choice(['.', '_', '', '+'])}{word(draw)}{draw.choice(['', '7', '42'])}@{word(draw)}.{end}"
    )


def phone(draw: random.Random) -> str:
    a, b, c = draw.randint(200, 989), draw.randint(200, 999), draw.randint(1000, 9999)
    forms = [f"+1 {a} {b} {c}", f"({a}) {b}-{c}", f"{a}-{b}-{c}", f"+49 30 {b}{c}", f"+44 20 7{b} {c}", f"0{a} {b}{c}"]
    return draw.choice(forms)


def card(draw: random.Random) -> str:
    start, length = draw.choice([("4", 16), ("51", 16), ("37", 15), ("6011", 16)])
    return luhn(start + number(draw, length - 1 - len(start)))


def ipv4(draw: random.Random) -> str:
    return ".".join(str(draw.randint(1, 254)) for _ in range(4))


def ipv6(draw: random.Random) -> str:
    groups = [f"{draw.randrange(0x1000, 0xFFFF):x}" for _ in range(8)]
    return ":".join(groups) if draw.random() < 0.5 else ":".join(groups[:3]) + "::" + groups[3]


def key(draw: random.Random) -> str:
    body = "".join(draw.choices(string.ascii_letters + string.digits, k=36))
    return draw.choice(["sk-", "ghp_", "AKIA", ""]) + body


KINDS: dict[str, Callable[[random.Random], str]] = {
    "e-mail": email, "phone": phone, "iban": iban, "card": card, "ipv4": ipv4, "ipv6": ipv6, "key": key,
}  # fmt: skip


def grouped(text: str) -> str:
    return " ".join(text[i : i + 4] for i in range(0, len(text), 4))


DISGUISES: dict[str, tuple[Callable[[str], str], set[str]]] = {  # what is done, and to which kinds it can be
    "grouped": (grouped, {"iban", "card"}),
    "spaced": (lambda text: text.replace("@", " @ ").replace(".", " . "), {"e-mail", "ipv4"}),
    "zero-width": (lambda text: "\u200b".join(text), set(KINDS)),
    "full-width": (lambda text: text.translate(FULL_WIDTH), set(KINDS)),
    "look-alikes": (lambda text: text.translate(LETTERS), {"e-mail", "iban", "key"}),
    "mathematical": (lambda text: text.translate(MATHEMATICAL), set(KINDS)),
    "other digits": (lambda text: text.translate(ARABIC), {"phone", "iban", "card", "ipv4"}),
    "in words": (lambda text: text.replace("@", " [at] ").replace(".", " [dot] "), {"e-mail"}),
}


def near_misses(draw: random.Random) -> list[str]:
    """One of each thing that looks like personal data and is none."""
    wrong_card = card(draw)
    wrong_iban = iban(draw)
    return [
        wrong_card[:-1] + str((int(wrong_card[-1]) + draw.randint(1, 9)) % 10),
        wrong_iban[:2] + f"{(int(wrong_iban[2:4]) + draw.randint(1, 90)) % 100:02}" + wrong_iban[4:],
        f"{draw.randint(256, 999)}.{draw.randint(1, 254)}.{draw.randint(1, 254)}.{draw.randint(1, 254)}",
        f"{draw.randint(1, 9)}.{draw.randint(0, 30)}.{draw.randint(0, 30)}",
        f"{draw.randint(1900, 2030)}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}",
        f"{draw.randint(10, 23)}:{draw.randint(10, 59)}:{draw.randint(10, 59)}",
        f"{draw.randint(1, 999)},{draw.randint(100, 999)},{draw.randint(100, 999)}.{draw.randint(10, 99)}",
        f"{word(draw)}@{word(draw)}",
        f"{word(draw)}-{word(draw)}-{word(draw)}-{word(draw)}-{word(draw)}-{word(draw)}-{word(draw)}",
        f"pp. {draw.randint(100, 400)}-{draw.randint(401, 900)}",
        f"std::{word(draw)}::{word(draw)}",
    ]
