"""What becomes of each schema of the public JSON-Schema test suite (draft 2020-12): enforced, or refused by name.

    python benchmarks/json_schema_suite.py [archive=jsonschema-4.26.0.tar.gz] [walks=20] [only=items] [show=1]

The suite is others' work, and read from an archive that holds it: the source package of `jsonschema`, which pip
downloads (and does not install) where no archive is given. Of each schema that is taken,

- no spelling of an invalid instance may be writable: "weakened" must be 0;
- a valid instance should be; where answers are narrower than the schema (docs/sample.md says in what) is counted;
- texts drawn at random from the grammar must be valid under `jsonschema`, formats included.
"""

import itertools
import json
import random
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from jsonschema import Draft202012Validator

from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.text.grammar import Grammar, GrammarSpec, compile_grammar
from gengen.io import Json

TOKENIZER = TextTokenizer.byte()
FOLDER = "json/tests/draft2020-12/"
OPTIONAL = ("optional/format/", "optional/ecmascript-regex", "optional/float-overflow", "optional/bignum")


def downloaded(folder: str) -> Path:
    """Return the source package of jsonschema, fetched into a folder."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", folder]
    subprocess.run([*command, "jsonschema"], check=True)
    return next(Path(folder).glob("jsonschema-*.tar.gz"))


def groups(archive: Path) -> Iterator[tuple[str, dict[str, Json]]]:
    """Yield each schema with its instances, and the file it is from."""
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            name = member.name.partition("/")[2]
            place = name.removeprefix(FOLDER)
            if not name.startswith(FOLDER) or not name.endswith(".json"):
                continue
            if place.startswith("optional/") and not place.startswith(OPTIONAL):
                continue
            file = tar.extractfile(member)
            assert file
            for group in json.load(file):
                yield place.removesuffix(".json"), group


def orders(value: Json) -> Iterator[Json]:
    """Yield a value with its objects' names in each order, of each list and object 24 at most."""
    if isinstance(value, dict):
        for names in itertools.islice(itertools.permutations(value), 24):
            for values in itertools.islice(itertools.product(*(list(orders(value[name])) for name in names)), 24):
                yield dict(zip(names, values, strict=True))
    elif isinstance(value, list):
        yield from (list(items) for items in itertools.islice(itertools.product(*map(list, map(orders, value))), 24))
    else:
        yield value
        if isinstance(value, float) and value.is_integer():
            yield int(value)


def spellings(value: Json) -> set[str]:
    """Return texts that spell a value."""
    texts = set()
    for ordered in orders(value):
        for ascii_only in (False, True):
            for separators in ((",", ":"), (", ", ": ")):
                text = json.dumps(ordered, ensure_ascii=ascii_only, separators=separators)
                texts |= {text, text.replace("a", "\\u0061")}
    return texts


def writable(grammar: Grammar, text: str) -> bool:
    """Return whether a text is a whole answer."""
    constraint = grammar.constraint()
    for token in TOKENIZER.encode(text):
        if not constraint.allowed()[token]:
            return False
        constraint.add(token)
    return bool(constraint.allowed()[TOKENIZER.eot])


def walk(grammar: Grammar, seed: int, limit: int = 600) -> str | None:
    """Return a text drawn at random, None where it does not end in time. What closes something is likelier, so that
    most end."""
    draw, constraint, tokens = random.Random(seed), grammar.constraint(), list[int]()
    while len(tokens) < limit and not constraint.complete:
        allowed = constraint.allowed().nonzero()[:, 0].tolist()
        closing = [token for token in allowed if TOKENIZER.decode_bytes([token]) in (b'"', b"]", b"}", b"")]
        token = draw.choice(closing if closing and draw.random() < 0.15 else allowed)
        if token == TOKENIZER.eot:
            return TOKENIZER.decode_bytes(tokens).decode()
        constraint.add(token)
        tokens.append(token)
    return TOKENIZER.decode_bytes(tokens).decode() if constraint.complete else None


def judged(group: dict[str, Json], walks: int) -> tuple[str, list[str]]:
    """Return what becomes of a schema, and the instances or texts that say so."""
    schema = group["schema"]
    try:
        grammar = compile_grammar(GrammarSpec(json_schema=schema), TOKENIZER)
    except UserError as error:
        return "refused", [str(error)]
    weaker, narrower = [], []
    for test in group["tests"]:
        accepted = [text for text in spellings(test["data"]) if writable(grammar, text)]
        if accepted and not test["valid"]:
            weaker.append(accepted[0])
        if not accepted and test["valid"]:
            narrower.append(json.dumps(test["data"], ensure_ascii=False))
    checker = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    drawn = [text for seed in range(walks) if (text := walk(grammar, seed)) is not None]
    weaker += [text for text in drawn if not checker.is_valid(json.loads(text))]
    return ("weakened", weaker) if weaker else ("narrower", narrower) if narrower else ("exact", [])


def main(arguments: dict[str, str]) -> None:
    walks, only, shown = int(arguments.get("walks", 20)), arguments.get("only", ""), "show" in arguments
    counts: Counter[str] = Counter()
    files: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(arguments["archive"]) if "archive" in arguments else downloaded(folder)
        for file, group in groups(archive):
            if not file.startswith(only):
                continue
            verdict, because = judged(group, walks)
            counts[verdict] += 1
            files.setdefault(file, Counter())[verdict] += 1
            if verdict == "weakened" or shown:
                print(f"{verdict:9} {file}: {group['description']}\n          {'; '.join(because)[:300]}")
    for file, verdicts in files.items():
        print(f"{file:40} {', '.join(f'{count} {verdict}' for verdict, count in sorted(verdicts.items()))}")
    enforced = counts["exact"] + counts["narrower"]
    how = f"{counts['exact']} exactly, {counts['narrower']} with narrower answers"
    print(f"{counts.total()} schemas: {enforced} enforced ({how}), {counts['refused']} refused by name, ", end="")
    print(f"{counts['weakened']} weakened")


if __name__ == "__main__":
    main(dict(argument.split("=", 1) for argument in sys.argv[1:]))
