"""Words that should not be in a text, as whole words: the lists are yours.

A trie is walked from where each word begins, so that a listed word within another one (Scunthorpe) is never found; an
automaton that looks in all places at once (Aho-Corasick) would find those first, to throw them away.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from gengen.errors import UserError
from gengen.generation.filters.base import FilterRequest, Finding
from gengen.generation.filters.plain import plain

LEET = {"0": "o", "1": "il", "!": "il", "|": "il", "3": "e", "4": "a", "@": "a", "5": "s", "$": "s", "6": "g",
        "7": "t", "+": "t", "8": "b", "9": "g", "€": "e"}  # fmt: skip
"""What is written for letters."""
SPACED = re.compile(r"(?<![^\W_])[^\W_](?:[ .,_*/-][^\W_@$!]){2,}(?![^\W_])")
"""Single characters with something between each two."""
MAX_WORD, MAX_FILE = 64, 2**22  # characters, bytes
CJK = "\u2e80"  # from here on, scripts that put no spaces between words

Node = dict[tuple[str, int], "Node"]
"""(letter, how often in a row) -> what may follow; ("", 0) where a word ends."""
END = ("", 0)


def one_word(before: str, after: str) -> bool:
    """Whether two neighbours belong to one word."""
    return before.isalnum() and after.isalnum() and max(before, after) < CJK


class WordFilter:
    """Finds listed words and phrases, whatever their case, accents, look-alikes and digits for letters (plain.py,
    LEET); with letters repeated three times or more ("baaad"), or single characters between them ("b.a.d")."""

    reads_prompts = True

    def __init__(self, words: Sequence[str]):
        self.root: Node = {}
        longest = 0
        for word in words:
            letters = " ".join(plain(word)[0].lower().split())
            if not letters or len(letters) > MAX_WORD:
                raise UserError(
                    f"word list: {word[:80]!r} has {len(letters)} characters; 1 to {MAX_WORD} can be found"
                )
            node, longest = self.root, max(longest, len(letters))
            for letter, run in groupby(letters):
                node = node.setdefault((letter, len(list(run))), {})
            node[END] = {}
        letters_first = {letter for letter, _ in self.root}
        self.first = letters_first | {sign for sign, meant in LEET.items() if letters_first & set(meant)}
        self.reach = 4 * longest + 16

    def find(self, text: str, prompt: str = "") -> Sequence[Finding]:
        seen, places = plain(text)
        seen = seen.lower()
        found = []
        for start, character in enumerate(seen):
            if character in self.first and (start == 0 or not one_word(seen[start - 1], character)):
                ends = [end for end in self.ends(seen, start) if not one_word(seen[end - 1], seen[end : end + 1])]
                found += [(start, max(ends))] if ends else []
        for spaced in SPACED.finditer(seen):
            joined = spaced[0][::2]
            found += [spaced.span()] if len(joined) in self.ends(joined, 0) else []
        findings = [Finding(places[start], places[end - 1] + 1, "word") for start, end in found]
        return [finding for finding in findings if finding.end - finding.start < self.reach]

    def ends(self, text: str, start: int) -> set[int]:
        """Return where a listed word that begins at `start` ends."""
        ends, states = set(), [(start, self.root)]
        while states:
            at, node = states.pop()
            if END in node:
                ends.add(at)
            if at < len(text):
                for letter in {text[at], *LEET.get(text[at], "")}:
                    runs = [(run, after) for (name, run), after in node.items() if name == letter]
                    states += [(at + n, after) for run, after in runs for n in taken(text, at, letter, run)]
        return ends


def taken(text: str, at: int, letter: str, run: int) -> Iterator[int]:
    """Yield how many characters from `at` on can stand for a letter that a word has `run` times in a row: as many, or
    three and more; not two for one, as "good" is not "god"."""
    length = 0
    while at + length < len(text) and letter in (text[at + length], *LEET.get(text[at + length], "")):
        length += 1
    if run <= length and text[at + run : at + run + 1] != text[at + run - 1]:
        yield run
    if length >= 3 and length > run:
        yield length


def read_words(path: Path) -> list[str]:
    """Read a list: a word or phrase a line; what follows a # is a comment."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"filter=words:{path} cannot be read: {error}") from None
    if len(raw) > MAX_FILE:
        raise UserError(f"filter=words:{path} is larger than the {MAX_FILE:,} bytes that are read")
    words = [line.partition("#")[0].strip() for line in text.splitlines()]
    if not any(words):
        raise UserError(f"filter=words:{path} lists no words; write one a line")
    return [word for word in words if word]


def make(request: FilterRequest) -> WordFilter:
    if not request.option:
        raise UserError("filter=words:FILE names a list of words, one a line")
    return WordFilter(read_words(Path(request.option)))
