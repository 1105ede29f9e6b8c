"""Personal data and secrets by their form: e-mail, phone, IBAN, card, IP addresses, keys. Seen through disguises
(plain.py), and confirmed by what the form itself can confirm: a check digit, a valid address, the spread of letters.
"""

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gengen.generation.filters.base import FilterRequest, Finding
from gengen.generation.filters.plain import plain

REACH = 224  # characters, of the longest finding, of an e-mail address or a key, with some that are not seen
LAST_GROUP = re.compile(r"[^0-9A-Za-z]+[0-9A-Za-z]+$")


def always(text: str) -> bool:
    return True


def digits_of(text: str) -> str:
    return "".join(character for character in text if character.isdigit())


CARD_LENGTHS = {"34": {15}, "37": {15}, "30": {14}, "36": {14}, "38": {14, 16}, "4": {13, 16, 19}, "5": {16},
                "2": {16}, "6": {16, 17, 18, 19}}  # fmt: skip
"""What a card's number begins with -> how many digits it has."""


def is_card(text: str) -> bool:
    """Luhn's check digit (ISO/IEC 7812-1), and a length that numbers of this beginning have."""
    digits = digits_of(text)
    lengths = CARD_LENGTHS.get(digits[:2]) or CARD_LENGTHS.get(digits[:1], set())
    doubled = [sum(divmod(2 * int(d), 10)) if i % 2 else int(d) for i, d in enumerate(reversed(digits))]
    return len(digits) in lengths and len(set(digits)) > 1 and sum(doubled) % 10 == 0


def is_iban(text: str) -> bool:
    """The check digits of ISO 13616: letters as 10 to 35, four characters moved to the end, 1 modulo 97."""
    account = "".join(character for character in text if character.isalnum()).upper()
    moved = account[4:] + account[:4]
    return 15 <= len(account) <= 34 and int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def is_phone(text: str) -> bool:
    """As many digits as numbers of the world have (ITU-T E.164), no date, not all the same."""
    digits = digits_of(text)
    return 9 <= len(digits) <= 15 and len(set(digits)) > 2


def is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return sum(character.isalnum() for character in text) >= 4 and any(c.isdigit() for c in text)


def is_spread(text: str) -> bool:
    """Whether characters are as many different ones as chance would draw: 3.3 bits a character at least."""
    counts = Counter(text)
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values()) >= 3.3


def is_key(text: str) -> bool:
    """Letters and digits, spread as chance would spread them."""
    letters, digits = sum(c.isalpha() for c in text), sum(c.isdigit() for c in text)
    return letters >= 4 and digits >= 2 and is_spread(text)


@dataclass(frozen=True)
class Pattern:
    """kind: the finding's; form: where it may be; confirmed: whether it is. Of a match that is not confirmed, the last
    group of characters may be something else: it is tried without it, then without the one before."""

    kind: str
    form: re.Pattern[str]
    confirmed: Callable[[str], bool] = always

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of each place. A match may begin within another one: where a stream is cut does not
        matter then."""
        at = 0
        while match := self.form.search(text, at):
            found = match[0]
            while found and not self.confirmed(found):
                shorter = LAST_GROUP.sub("", found)
                found = shorter if shorter != found else ""
            if found:
                yield match.start(), match.start() + len(found)
            at = match.start() + 1


OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
AT, DOT = r"(?: ?@ ?| ?[\[({] ?(?:at|AT) ?[\])}] ?)", r"(?:\.| \. | ?[\[({] ?(?:dot|DOT) ?[\])}] ?)"
LOCAL, LABEL = rf"(?<![\w.%+-])[\w%+-]{{1,32}}(?:{DOT}[\w%+-]{{1,32}}){{0,3}}", r"[A-Za-z0-9-]{1,32}"
PATTERNS = [
    Pattern("e-mail", re.compile(rf"{LOCAL}{AT}(?:{LABEL}{DOT}){{1,3}}[A-Za-z]{{2,12}}(?![A-Za-z0-9-])")),
    Pattern("e-mail", re.compile(rf"{LOCAL} at (?:{LABEL} dot ){{1,3}}[A-Za-z]{{2,12}}(?!\w)")),
    Pattern("iban", re.compile(r"(?<!\w)[A-Z]{2}(?: ?\d){2}(?:[ -]?[A-Z0-9]){11,30}(?!\w)"), is_iban),
    Pattern("card", re.compile(r"(?<![\w.,])\d(?:[ .-]?\d){12,18}(?!\w)"), is_card),
    Pattern("phone", re.compile(r"(?<![\w+])(?<!\d )(?:\+|00 ?(?=[1-9]))(?:[ ./()-]{0,3}\d){8,15}(?!\d)"), is_phone),
    Pattern("phone", re.compile(r"(?<![\w.,-])(?<!\d )(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-])"),
            is_phone),
    Pattern("phone", re.compile(r"(?<![\w.,-])(?<!\d )\(?0\d{1,4}\)?(?:[ ./-]\d{2,8}){1,4}(?![\w-])"), is_phone),
    Pattern("phone", re.compile(r"(?<![\w.,-])(?<!\d )0(?: \d){9,10}(?![\w-])"), is_phone),
    Pattern("ipv4", re.compile(rf"(?<![\w.]){OCTET}(?:(?:\.{OCTET}){{3}}|(?: \. {OCTET}){{3}})(?!\w|\.\d)")),
    Pattern("ipv6", re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])"), is_ipv6),
    Pattern("key", re.compile(
        r"(?<![\w-])(?:sk-|[ps]k_|gh[oprsu]_|github_pat_|glpat-|xox[abprs]-|AKIA|ASIA|AIza|hf_|npm_|eyJ)"
        r"[\w.-]{12,150}(?![\w-])"), is_spread),
    Pattern("key", re.compile(r"(?<![\w+/=-])[A-Za-z0-9_+/=-]{32,160}(?![\w+/=-])"), is_key),
    Pattern("key", re.compile(r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----")),
]  # fmt: skip


class PatternFilter:
    """Finds all of PATTERNS."""

    reach = REACH
    reads_prompts = True

    def find(self, text: str, prompt: str = "") -> Sequence[Finding]:
        seen, places = plain(text)
        found = [
            Finding(places[start], places[end - 1] + 1, pattern.kind)
            for pattern in PATTERNS
            for start, end in pattern.find(seen)
        ]
        return [finding for finding in found if finding.end - finding.start < REACH]


def make(request: FilterRequest) -> PatternFilter:
    return PatternFilter()
