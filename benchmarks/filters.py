"""What filters find of made-up personal data and of words in disguise, what they take wrongly, and how long it takes.

    python benchmarks/filters.py TEXT... [n=2000] [words=examples/words.txt]

n: examples of personal data plain, and in all disguises together; as many near misses. TEXT: files of books, of which
each finding is shown and counted as false. The words are seen in ten disguises.
"""

import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from turns import arguments

from gengen.generation.filters.base import Filter, Finding
from gengen.generation.filters.patterns import PatternFilter
from gengen.generation.filters.words import WordFilter, read_words

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.personal_data import DISGUISES, FULL_WIDTH, KINDS, LETTERS, MATHEMATICAL, near_misses

LEET = str.maketrans("aeiost", "4310$7")
WORD_DISGUISES: dict[str, Callable[[str], str]] = {
    "plain": str,
    "capitals": str.upper,
    "digits": lambda word: word.translate(LEET),
    "repeated": lambda word: word.replace(word[1], word[1] * 4),
    "spaced": lambda word: word if " " in word else " ".join(word),
    "dotted": lambda word: word if " " in word else ".".join(word),
    "zero-width": lambda word: "\u200b".join(word),
    "full-width": lambda word: word.translate(FULL_WIDTH),
    "look-alikes": lambda word: word.translate(LETTERS),
    "mathematical": lambda word: word.translate(MATHEMATICAL),
    "accents": lambda word: "".join(c + "\u0301" if c in "aeiou" else c for c in word),
}


def found(filter: Filter, secret: str, kind: str) -> bool:
    return Finding(9, 9 + len(secret), kind) in filter.find(f"Write to {secret}, please.", "")


def personal(n: int) -> None:
    draw, patterns = random.Random(0), PatternFilter()
    for name, (change, kinds) in {"plain": (str, set(KINDS)), **DISGUISES}.items():
        each = max(n // (len(kinds) * (1 if name == "plain" else len(DISGUISES))), 1)
        recall = {kind: sum(found(patterns, change(KINDS[kind](draw)), kind) for _ in range(each)) / each
                  for kind in sorted(kinds)}  # fmt: skip
        print(f"  {name:14} " + "  ".join(f"{kind} {share:.3f}" for kind, share in recall.items()))
    misses = [text for _ in range(max(n // 11, 1)) for text in near_misses(draw)]
    wrong = [text for text in misses if patterns.find(f"See {text}, please.")]
    print(f"  {len(misses)} near misses: {len(wrong)} taken wrongly {wrong[:5]}")


def listed(path: str) -> None:
    words = read_words(Path(path))
    filter = WordFilter(words)
    for name, change in WORD_DISGUISES.items():
        share = sum(found(filter, change(word), "word") for word in words) / len(words)
        print(f"  {name:14} {share:.3f} of {len(words)}")


def books(files: list[str], filters: dict[str, Filter]) -> None:
    for name, filter in filters.items():
        false, characters, start = Counter[str](), 0, time.perf_counter()
        for file in files:
            text = Path(file).read_text("utf8", errors="replace")
            characters += len(text)
            false.update(text[f.start : f.end] for f in filter.find(text, ""))
        spent = time.perf_counter() - start
        rate, each = sum(false.values()) / characters * 1e5, spent / characters * 1e6
        print(f"  {name}: {characters:,} characters, {rate:.2f} findings in 100,000, {each:.1f} us a character "
              f"{false.most_common(8)}")  # fmt: skip


def main(files: list[str], n: int, words: str) -> None:
    print("personal data: recall")
    personal(n)
    print("words: recall")
    listed(words)
    print("books")
    books(files, {"patterns": PatternFilter(), "words": WordFilter(read_words(Path(words)))})


if __name__ == "__main__":
    asked, files = arguments(sys.argv[1:], n=2000, words=str(Path(__file__).parents[1] / "examples" / "words.txt"))
    main(files, **asked)
