"""Regular expressions of JSON schemas: what ECMA-262, Python and Rust read differently is rewritten or refused.

A schema's `pattern` is ECMA-262's; validators in Python read it as Python's, llguidance as Rust's. What is returned
here matches only what all three match, so an answer that obeys it is valid wherever it is checked.
"""

import re

NARROW = {"d": "0-9", "w": "A-Za-z0-9_", "s": r"\ \t\n\r\f\v"}
"""What a class holds in every dialect."""
WIDE = {
    "d": r"\p{Nd}",
    "w": r"\p{Alphabetic}\p{M}\p{N}\p{Pc}",
    "s": r"\p{White_Space}\x1c-\x1f\u{180e}\u{feff}",
}
"""What it holds in any of them: this is left out where a class is negated."""
CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
LINE_ENDS = r"\n\r\u{2028}\u{2029}"  # which a dot of ECMA-262 does not match
MAX_REPEAT = 1000
QUANTIFIER = re.compile(r"([*+?]|\{(\d{1,9})(,(\d{1,9})?)?\})(\??)(?![*+?])")
CODE = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})")

FORMATS = {
    "date": (
        r"[1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
        r"|02-(0[1-9]|1[0-9]|2[0-8]))"
    ),
    "time": r"([01][0-9]|2[0-3])(:[0-5][0-9]){2}(\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    "duration": (
        r"P([0-9]{1,4}W|[0-9]{1,4}D(T[0-9]{1,4}[HMS])?|T([0-9]{1,4}H)?[0-9]{1,4}M([0-9]{1,4}S)?|T[0-9]{1,4}[HS])"
    ),
    "uuid": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "ipv4": r"((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])",
    "ipv6": r"([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}",
    "hostname": r"[A-Za-z0-9]{1,30}(-[A-Za-z0-9]{1,30})?(\.[A-Za-z0-9]{1,30}(-[A-Za-z0-9]{1,30})?){0,2}",
}
FORMATS["date-time"] = f"{FORMATS['date']}T{FORMATS['time']}"
FORMATS["email"] = rf"[A-Za-z0-9]{{1,30}}([._+-][A-Za-z0-9]{{1,30}})?@{FORMATS['hostname']}"
FORMATS["uri"] = rf"https?://{FORMATS['hostname']}(:[1-9][0-9]{{0,3}})?(/[A-Za-z0-9._~-]{{0,64}}){{0,8}}"
"""What is written for a `format`: some of its texts, all valid (no leap second, no 29 February, http only)."""


def portable(pattern: str) -> str:
    """Return a pattern in Rust's syntax that matches what `pattern` matches in every dialect. Raises ValueError, which
    says what in it is not taken."""
    return Pattern(pattern).whole()


class Pattern:
    """One pattern as it is read, from the left."""

    def __init__(self, text: str):
        self.text, self.at = text, 0

    def whole(self) -> str:
        parts, open_groups, repeatable = [], 0, False
        while self.at < len(self.text):
            if repeatable and (quantifier := QUANTIFIER.match(self.text, self.at)):
                parts.append(self.quantifier(quantifier))
                repeatable = False
                continue
            part = self.part()
            open_groups += (part == "(?:") - (part == ")")
            if open_groups < 0:
                raise ValueError("a ) that closes nothing")
            repeatable = part not in ("(?:", "|", "^", "$")
            parts.append(part)
        if open_groups:
            raise ValueError("a ( that is not closed")
        return "".join(parts)

    def take(self) -> str:
        self.at += 1
        if self.at > len(self.text):
            raise ValueError("it ends too early")
        return self.text[self.at - 1]

    def part(self) -> str:
        """Return the next character, class, anchor or bracket of a group."""
        match c := self.take():
            case ".":
                return f"[^{LINE_ENDS}]"
            case "[":
                return self.of_class()
            case "(":
                if self.text.startswith("?:", self.at):
                    self.at += 2
                elif self.text.startswith("?", self.at):
                    raise ValueError(f"look-around, named groups and flags: {self.text[self.at - 1 : self.at + 3]}")
                return "(?:"
            case ")" | "|" | "^" | "$":
                return c
            case "*" | "+" | "?":
                raise ValueError(f"a {c} that repeats nothing, or something that is repeated already")
            case "{":
                raise ValueError("a { that begins no {m}, {m,} or {m,n}")
            case "\\":
                escaped = self.escape()
                return f"[{inside(escaped, narrow=True)}]" if escaped[0] == "class" else literal(escaped[1])
        return literal(c)

    def quantifier(self, found: "re.Match[str]") -> str:
        self.at = found.end()
        if most := [n for n in (found[2], found[4]) if n and int(n) > MAX_REPEAT]:
            raise ValueError(f"{most[0]} repeats; at most {MAX_REPEAT} are allowed")
        return found[1]  # which of several ways it matches does not matter: a ? behind it says nothing

    def escape(self) -> tuple[str, str]:
        """Return ("class", d, D, w, W, s or S) or ("character", itself), read behind a backslash."""
        if code := CODE.match(self.text, self.at):
            self.at = code.end()
            return "character", chr(int(code[1] or code[2], 16))
        c = self.take()
        if c in "dDwWsS":
            return "class", c
        if c in CONTROLS and not (c == "0" and self.text[self.at : self.at + 1].isdigit()):
            return "character", CONTROLS[c]
        if c.isalnum() or not c.isascii():
            raise ValueError(f"\\{c}, which not every dialect reads alike")
        return "character", c

    def of_class(self) -> str:
        """Return a class [...], whose [ was read."""
        negated = self.text.startswith("^", self.at)
        self.at += negated
        members = self.members()
        if negated and any(kind == "class" and value.isupper() for kind, value in members):
            raise ValueError("\\D, \\W or \\S in a class that begins with ^")
        return f"[{'^' * negated}{''.join(inside(member, narrow=not negated) for member in members)}]"

    def members(self) -> list[tuple[str, str]]:
        members: list[tuple[str, str]] = []
        while (c := self.take()) != "]":
            first = self.escape() if c == "\\" else ("character", c)
            if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
                self.at += 1
                c = self.take()
                last = self.escape() if c == "\\" else ("character", c)
                if "class" in (first[0], last[0]) or first[1] > last[1]:
                    raise ValueError(f"the range {first[1]}-{last[1]} in a class")
                members.append(("range", first[1] + last[1]))
            else:
                members.append(first)
        if not members:
            raise ValueError("an empty class []")
        return members


def literal(character: str) -> str:
    """Return a character as Rust reads it, inside a class or out. Raises ValueError for half a surrogate pair."""
    if "\ud800" <= character <= "\udfff":
        raise ValueError("half a surrogate pair")
    return character if character.isalnum() else f"\\u{{{ord(character):x}}}"


def inside(member: tuple[str, str], narrow: bool) -> str:
    """Return a member of a class. narrow: what every dialect means by \\d, \\w, \\s, not what any of them does."""
    kind, value = member
    if kind == "range":
        return f"{literal(value[0])}-{literal(value[1])}"
    if kind == "character":
        return literal(value)
    return (NARROW if narrow else WIDE)[value] if value.islower() else f"[^{WIDE[value.lower()]}]"
