"""A thousand damaged checkpoints, and as many hundreds whose manifest was made to fit: F12."""

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gengen
from gengen.checkpoints import store
from gengen.checkpoints.files import Damaged, sha256, to_json
from gengen.checkpoints.layout import digest, read
from gengen.cli import main
from gengen.errors import UserError
from helpers.families import FamilyOf

Others = list[bytes]  # contents of other files: of this checkpoint, of an older one, of another run
Damage = Callable[[random.Random, bytes, Others], bytes]


def flipped(draw: random.Random, content: bytes, others: Others) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ draw.randint(1, 255)]) + content[at + 1 :]


def truncated(draw: random.Random, content: bytes, others: Others) -> bytes:
    return content[: draw.randrange(len(content))]


def swapped(draw: random.Random, content: bytes, others: Others) -> bytes:
    return draw.choice(others)


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    10**30,
    1.5,
    "",
    "../../x",
    "F64",
    [],
    {},
    [-1],
    [2**62, 2**62],
    {"tensor": "nowhere"},
    [[[[]]]],
]


def edited(draw: random.Random, content: bytes, others: Others) -> bytes:
    """One value of the JSON, or of the header of the tensors, is lost, renamed or replaced by an odd one."""
    size = 0 if content[:1] == b"{" and content[-2:] == b"}\n" else int.from_bytes(content[:8], "little")
    tree = json.loads(content[8 : 8 + size] if size else content)
    node, key = draw.choice(list(places(tree)))
    if (action := draw.choice(["lose", "rename", "replace"])) == "rename" and isinstance(node, dict):
        node[f"{key}_"] = node.pop(key)
    elif action == "lose":
        del node[key]
    else:
        node[key] = draw.choice([odd for odd in ODD if odd != node[key]])
    header = json.dumps(tree).encode() if size else to_json(tree).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + size :] if size else header


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a tree, at most a few of each list."""
    keys = list(tree) if isinstance(tree, dict) else range(min(len(tree), 3)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from places(tree[key])


DAMAGES: dict[str, Damage] = {
    "a byte flipped": flipped,
    "truncated": truncated,
    "a file swapped": swapped,
    "a value edited": edited,
}


@pytest.fixture(scope="module")
def checkpoints(family_of: FamilyOf, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A checkpoint, an older one of the same run, and one of another run, of the same shapes."""
    family, runs = family_of("gpt"), tmp_path_factory.mktemp("other")
    assert main(["train", *family.settings, "seed=5", f"runs_dir={runs}", "run=other", "stop_at=4"]) == 0
    newest, older = store.all_steps(family.straight / "checkpoints")[:2]
    return newest, older, runs / "other" / "checkpoints" / "step-000000004"


def linked(source: Path, target: Path) -> Path:
    """A copy of a folder whose files are the same files; replace them, never write into them."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target, copy_function=os.link))


def damaged(draw: random.Random, checkpoint: Path, damage: Damage, sources: tuple[Path, ...], but: str = "") -> str:
    """Damage one file of a (linked) checkpoint, not `but`; returns its name. It is another content than it was."""
    while True:
        path = draw.choice(sorted(p for p in checkpoint.iterdir() if p.name != but))
        others = [p.read_bytes() for p in checkpoint.iterdir()] + [
            (source / path.name).read_bytes() for source in sources
        ]
        content = path.read_bytes()
        try:
            made = damage(draw, content, others)
        except ValueError:  # it was no JSON before
            continue
        if made != content:
            path.unlink()
            path.write_bytes(made)
            return path.name


@pytest.mark.fault("F12")
@pytest.mark.parametrize("kind", DAMAGES)
def test_250_damaged_checkpoints(
    kind: str, checkpoints: tuple[Path, Path, Path], tmp_path: Path, record_property: Any
) -> None:
    """Each is refused by the name of the file, and what is taken is the one before it."""
    newest, older, other = checkpoints
    draw = random.Random(kind)
    good = linked(older, tmp_path / older.name)
    for _ in range(250):
        bad = linked(newest, tmp_path / newest.name)
        name = damaged(draw, bad, DAMAGES[kind], (older, other))
        said: list[str] = []
        with pytest.raises(UserError) as refused:
            read(bad)
        assert isinstance(refused.value, Damaged) or "has format" in str(refused.value)
        assert store.newest(tmp_path, said.append) == good
        assert len(said) == 1 and str(bad) in said[0] and str(bad) in str(refused.value)
        if name != "manifest.json":
            assert name in str(refused.value)
    record_property("damaged checkpoints, each refused by name and the one before it taken", 250)


# --- the manifest made to fit: the work of a hand, which no hash tells


def fitted(checkpoint: Path) -> None:
    """Rewrite the manifest so that it lists the files as they are."""
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    for name in manifest["files"]:
        file = checkpoint / name
        manifest["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    path.unlink()
    path.write_text(to_json(manifest | {"sha256": digest(manifest)}))


def outcome(action: Callable[[], object]) -> str:
    """refused in words, or loaded; anything else is a fault of ours."""
    try:
        action()
    except UserError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return "loaded"


@pytest.mark.fault("F12")
@pytest.mark.slow
def test_300_checkpoints_damaged_by_hand_are_refused_or_are_other_numbers(
    checkpoints: tuple[Path, Path, Path], tmp_path: Path, record_property: Any
) -> None:
    """Where the manifest fits, names, shapes, types and values are what is checked. What loads is a model with other
    numbers.
    """
    newest, older, other = checkpoints
    draw, outcomes = random.Random("by hand"), Counter[str]()
    for kind, damage in list(DAMAGES.items()) * 75:
        bad = linked(newest, tmp_path / newest.name)
        file = damaged(draw, bad, damage, (older, other), but="manifest.json")
        fitted(bad)
        generators: list[Any] = []
        ended = outcome(lambda: generators.append(gengen.load(bad, device="cpu")))  # noqa: B023
        if ended == "loaded":
            ended = outcome(lambda: generators[0].generate(["once"], max_tokens=3))  # noqa: B023
        outcomes[ended if ended in ("refused", "loaded") else f"{kind}, {file}: {ended}"] += 1
    assert set(outcomes) == {"refused", "loaded"}, "\n".join(f"{n} {what}" for what, n in outcomes.items())
    for word, n in outcomes.items():
        record_property(f"checkpoints damaged by hand, their manifest made to fit: {word}", n)


@pytest.mark.fault("F12")
@pytest.mark.slow
def test_100_resumes_from_checkpoints_damaged_by_hand(
    checkpoints: tuple[Path, Path, Path],
    family_of: FamilyOf,
    tmp_path: Path,
    record_property: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What only training reads: moments, generators, loop, clocks."""
    _, older, other = checkpoints
    draw, outcomes = random.Random("by hand"), Counter[str]()
    for kind, damage in list(DAMAGES.items()) * 25:
        shutil.rmtree(tmp_path / "r", ignore_errors=True)
        shutil.copytree(
            family_of("gpt").straight, tmp_path / "r", ignore=shutil.ignore_patterns("checkpoints", "run.lock")
        )
        bad = linked(older, tmp_path / "r" / "checkpoints" / older.name)
        file = damaged(draw, bad, damage, (other,), but="manifest.json")
        fitted(bad)
        codes: list[int] = []
        argv = ["train", "run=r", f"runs_dir={tmp_path}", f"stop_at={store.step_of(older) + 1}"]
        ended = outcome(lambda: codes.append(main(argv)))  # noqa: B023
        ended = (
            {"loaded": {0: "loaded", 2: "refused"}.get(codes[0], f"exit {codes[0]}")}.get(ended, ended)
            if codes
            else ended
        )
        outcomes[ended if ended in ("refused", "loaded") else f"{kind}, {file}: {ended}"] += 1
    assert set(outcomes) == {"refused", "loaded"}, "\n".join(f"{n} {what}" for what, n in outcomes.items())
    for word, n in outcomes.items():
        record_property(f"checkpoints damaged by hand, their manifest made to fit: {word}", n)
