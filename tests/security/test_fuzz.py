"""Whatever a file holds, reading it gives something good or an error of ours, soon: never another exception, a hang or
an import.
"""

import hashlib
import io
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.security.conftest import newest, signed
from tests.security.test_payloads import bpe, hf_folder

from gengen.checkpoints import layout as format
from gengen.checkpoints.convert.huggingface import from_config
from gengen.checkpoints.files import to_json
from gengen.checkpoints.migrate import read_config
from gengen.config.compose import apply_overrides, compose_train, read_command_line, resolve
from gengen.config.data import (
    ConversationsConfig,
    ExamplesConfig,
    ImageConfig,
    PreferencesConfig,
    PromptsConfig,
    RatingsConfig,
    TextConfig,
)
from gengen.config.resume import resumed
from gengen.config.schema import build, schema
from gengen.config.train import TrainConfig
from gengen.data.dialogue.records import records
from gengen.data.image.sources.base import decode_or_skip
from gengen.data.sources.base import read_records
from gengen.data.sources.skips import Skips
from gengen.data.text.sources.base import text_source
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError
from gengen.generation.load import load_generator
from gengen.models.gpt import GPT

FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def examples(number: int) -> settings:
    """So many, the same in every run; none may take 5 seconds."""
    return settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=timedelta(seconds=5),
        suppress_health_check=FIXTURES,
    )


@contextmanager
def ours() -> Iterator[None]:
    """Errors of ours may come; and no module of a name in what is read."""
    try:
        yield
    except UserError as error:
        assert str(error)
    assert "planted" not in sys.modules


ODD = [None, True, 0, -1, 1.5, 2**31, 2**63, 10**30, 1e308, float("inf"), float("nan"), "", "x", "planted:run",
       "planted.run", "\0", "\ud800", "../..", "${oc.env:HOME}", "???", "a" * 5000, [], [[]], {}, {"name": []},
       {"_target_": "planted.run"},
       {"tensor": "x"}]  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.sampled_from(ODD) | st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def keys(tree: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every part of a tree, the tree itself first."""
    yield before
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from keys(value, (*before, key))


@st.composite
def changed(draw: st.DrawFn, tree: Any) -> Any:
    """The tree with some of its parts replaced, removed or added to."""
    tree = deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        ways = list(keys(tree))
        *way, last = ways[draw(st.integers(0, len(ways) - 1))] or (None,)
        if last is None:
            return deepcopy(draw(JSON))
        place = tree
        for key in way:
            place = place[key]
        action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "replace":
            place[last] = deepcopy(draw(JSON))
        elif action == "remove":
            del place[last]
        elif isinstance(place, dict):
            place[draw(st.sampled_from(["_target_", "plugins", "name"]) | st.text(max_size=8))] = deepcopy(draw(JSON))
        else:
            place.append(deepcopy(draw(JSON)))
    return tree


def damaged(raw: bytes) -> st.SearchStrategy[bytes]:
    """A file with some bytes changed, cut short, doubled or put in."""

    def change(seed: int) -> bytes:
        draw, content = random.Random(seed), bytearray(raw)
        for _ in range(draw.choice([1, 1, 2, 8])):
            at, what = draw.randrange(len(content) + 1), draw.randrange(4)
            if what == 0:
                content[at : at + 1] = bytes([draw.randrange(256)])
            elif what == 1:
                content[at : at + draw.choice([1, 4, 64])] = b""
            elif what == 2:
                content[at:at] = draw.choice([b"\xff" * 4, b"\0" * 4, b"[" * 50, b'"', content[: draw.randrange(99)]])
            else:
                del content[at:]
            content = content or bytearray(b"\0")
        return bytes(content)

    return st.integers(0, 2**32).map(change)


# ----------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as written."""
    folder = tmp_path_factory.mktemp("small")
    weights = {f"w{i}": torch.arange(6.0).view(2, 3) for i in range(3)}
    moments = {"state": {name: {"step": torch.tensor(1.0), "exp_avg": tensor} for name, tensor in weights.items()}}
    format.write(
        folder,
        format.Checkpoint(3, {"model": {"name": "gpt"}}, weights, moments, {"rng": [1, 2]}, '{"gengen": "byte"}'),
    )
    return folder


def write_signed(folder: Path, manifest: Any) -> None:
    try:
        if isinstance(manifest, dict):
            manifest = manifest | {
                "sha256": format.digest({key: value for key, value in manifest.items() if key != "sha256"})
            }
        text = to_json(manifest)
    except ValueError:  # what JSON cannot spell
        text = json.dumps(manifest)
    (folder / "manifest.json").write_bytes(text.encode(errors="surrogatepass"))


@examples(200)
@given(data=st.data())
def test_manifests(small: Path, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Signed, so that every check behind the signature is reached."""
    folder = tmp_path_factory.getbasetemp() / "manifests"
    shutil.copytree(small, folder, dirs_exist_ok=True)
    good = json.loads((small / "manifest.json").read_text())
    manifest = data.draw(changed(good))
    write_signed(folder, manifest)
    with ours():
        assert format.verify(folder)["step"] == manifest["step"]
        format.read(folder)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "optimizer.safetensors", "optimizer.json", "state.json", "config.json", "tokenizer.json"],
)
@examples(60)
@given(data=st.data())
def test_files_of_a_signed_checkpoint(
    small: Path, name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"fuzz-{name}"
    shutil.copytree(small, folder, dirs_exist_ok=True)
    raw = (small / name).read_bytes()
    if name == "optimizer.json" and data.draw(st.booleans()):
        raw = json.dumps(data.draw(changed(json.loads(raw)))).encode(errors="surrogatepass")
    else:
        raw = data.draw(damaged(raw))
    (folder / name).write_bytes(raw)
    manifest = json.loads((small / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    write_signed(folder, manifest)
    with ours():
        read_config(folder)
        found = format.read(folder)
        assert sum(tensor.nbytes for tensor in found.model.values()) <= (folder / "model.safetensors").stat().st_size


# --------------------------------------------------------------------------------------------------- configs

KINDS = [
    "model=gpt data=tinystories",
    "model=unet data=animals",
    "model=gan data=mnist",
    "model=gpt stage=ppo data=prompts init_from=x stage.reward=requested_words",
]


@pytest.fixture(scope="module")
def trees() -> list[Any]:
    from gengen.config.schema import plain

    return [plain(compose_train(read_command_line(words.split()))) for words in KINDS]


@examples(400)
@given(data=st.data())
def test_stored_configs(trees: list[Any], data: st.DataObject) -> None:
    """As `sample`, `evaluate` and a resume read them."""
    tree = json.loads(json.dumps(data.draw(st.sampled_from(trees).flatmap(changed))))
    if not isinstance(tree, dict):
        return  # refused by read_config
    with ours():
        assert isinstance(build(TrainConfig, tree), TrainConfig)
    with ours():
        config, _ = resumed(tree, read_command_line(["trainer.max_steps=9", "stop_at=3"]))
        assert config.trainer.max_steps == 9 and config.plugins == []


@examples(150)
@given(data=st.data())
def test_models_of_stored_configs(base: Path, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Beside weights that are good: nothing else fits them, and no number makes a model that takes long or much."""
    folder = tmp_path_factory.getbasetemp() / "models"
    shutil.copytree(newest(base), folder, dirs_exist_ok=True)
    tree = json.loads((newest(base) / "config.json").read_text())
    tree["model"] = data.draw(changed(tree["model"]))
    (folder / "config.json").write_text(json.dumps(tree))
    signed(folder)
    with ours():
        assert load_generator(str(folder), device="cpu").generate("once", max_tokens=1)[0].prompt == "once"


LLAMA = json.loads((hf_folder(Path(tempfile.mkdtemp()) / "hf") / "config.json").read_text())


@examples(300)
@given(data=st.data())
def test_configs_of_transformers(data: st.DataObject) -> None:
    tree = data.draw(changed(LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "head_dim": 4}))
    if isinstance(tree, dict):
        with ours():
            _, model = from_config(tree)
            assert sum(tensor.numel() for tensor in format.meta_model(GPT, model, 12).parameters()) > 0


@pytest.fixture(scope="module")
def known(trees: list[Any]) -> Any:
    return schema(TrainConfig, trees[0])


VALUES = st.sampled_from(
    [str(value) for value in ODD]
    + ["1e9", "-0", "1_0", "[1,2", "nan", "${", "${trainer.max_steps}", "\\${x}", "'", "true"]
)


@examples(300)
@given(data=st.data())
def test_values_on_the_command_line(trees: list[Any], known: Any, data: st.DataObject) -> None:
    key = data.draw(
        st.sampled_from([*known, "trainer", "optim.", "model.name.x", "x"]).filter(lambda key: key != "plugins")
    )
    value = data.draw(VALUES | st.text(max_size=20))
    with ours():
        assert isinstance(
            build(TrainConfig, resolve(apply_overrides(trees[0], [(key, value)], known), known)), TrainConfig
        )


WORDS = st.sampled_from(
    ["model=gpt", "model=", "=", "==", "data", "-", "--", "--cfg", "--help", "-m", "+a=1", "~a", "a=b=c",
        "model.size=nano", "model.size",
     "\0=1", "debug=nan", "experiment=x", "trainer.max_steps=1e3", "hydra.run.dir=/tmp", "_target_=planted.run",
     "stage=ppo"]
)  # fmt: skip


@examples(60)
@given(st.lists(WORDS | st.text(max_size=10).filter(lambda word: "plugins" not in word), max_size=4))
def test_words_of_a_command(words: list[str]) -> None:
    with ours():
        assert isinstance(compose_train(read_command_line(words)), TrainConfig)


# -------------------------------------------------------------------------------------------------- tokenizers


def own() -> list[Any]:
    trained = TextTokenizer.train(["the fox and the bear went home " * 9], 270)
    return [
        json.loads(t.to_json())
        for t in (TextTokenizer.byte(), trained, TextTokenizer.byte().with_chat(), trained.with_chat())
    ]


OWN = own()
FOREIGN = {"gengen": "foreign", "start": 0, "end": 1, "size": 512, "tokenizer": json.loads(bpe())}


def holds(text: str) -> None:
    with ours():
        tokenizer = TextTokenizer.from_json(text)
        assert tokenizer.decode(tokenizer.encode("a fox\n")) == "a fox\n"
        assert max(tokenizer.encode("the bear <|endoftext|>")) < tokenizer.vocab_size <= 2**20


@examples(150)
@given(data=st.data())
def test_tokenizers_of_ours(data: st.DataObject) -> None:
    tree = data.draw(st.sampled_from(OWN))
    if data.draw(st.booleans()):
        holds(data.draw(damaged(json.dumps(tree).encode())).decode(errors="surrogateescape"))
    else:
        holds(json.dumps(data.draw(changed(tree))))


def of(tree: Any, *parts: str) -> Any:
    return {key: tree[key] for key in parts}


@pytest.mark.slow
@examples(80)
@given(data=st.data())
def test_tokenizers_of_others(data: st.DataObject) -> None:
    """What stands around the vocabulary is changed most, as there is most of a vocabulary."""
    tree = deepcopy(FOREIGN)
    vocabulary = tree["tokenizer"]["model"].pop("vocab")
    tree = data.draw(changed(tree))
    if (
        isinstance(tree, dict)
        and isinstance(inner := tree.get("tokenizer"), dict)
        and isinstance(inner.get("model"), dict)
    ):
        inner["model"].setdefault("vocab", data.draw(st.just(vocabulary) | changed(vocabulary)))
    holds(json.dumps(tree))


# -------------------------------------------------------------------------------------------------------- data

DIALOGUES: dict[str, type[ExamplesConfig]] = {
    "conversations": ConversationsConfig,
    "preferences": PreferencesConfig,
    "ratings": RatingsConfig,
    "prompts": PromptsConfig,
}
ROWS: dict[str, Any] = {
    "conversations": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "preferences": {"prompt": "a", "chosen": "b", "rejected": [{"role": "assistant", "content": "c"}], "margin": 1.5},
    "ratings": {"prompt": "a", "answer": [{"role": "assistant", "content": "c"}], "good": True, "ended": False},
    "prompts": {"prompt": [{"role": "user", "content": "a"}], "words": ["x"]},
    "text": {"text": "once upon a time"},
}


@pytest.mark.parametrize("kind", ROWS)
@examples(120)
@given(data=st.data())
def test_lines_of_jsonl(kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / f"{kind}.jsonl"
    good = json.dumps(ROWS[kind]).encode()
    lines = [json.dumps(data.draw(changed(ROWS[kind]))).encode(), data.draw(damaged(good)), good]
    path.write_bytes(b"\n".join(lines) + b"\n")
    for allowed in (0.0, 1.0):
        skips = Skips(allowed)
        with ours():
            if kind == "text":
                source = text_source(TextConfig(name="text", source="files", path=str(path)))
                found: list[Any] = list(read_records(source, skips, print))
            else:
                found = list(records(DIALOGUES[kind](name="x", source="files", path=str(path)), skips, print))
            assert found or not allowed  # the last line at least
            json.dumps([vars(x) if kind == "text" else x for x in found]).encode()  # what is prepared can be written


@pytest.mark.parametrize("margin", ["1" + "0" * 400, "NaN", "-Infinity", "1e999", '"inf"', "[1]", "{}1"])
def test_margins_that_are_no_numbers(margin: str, tmp_path: Path) -> None:
    row = '{"prompt": "a", "chosen": "b", "rejected": "c", "margin": MARGIN}\n'
    (tmp_path / "x.jsonl").write_text(row.replace("MARGIN", margin))
    with pytest.raises(UserError, match="1 of 1 lines cannot be read"):
        config = PreferencesConfig(name="x", source="files", path=str(tmp_path / "x.jsonl"))
        list(records(config, Skips(0.0), print))


def pictures() -> list[bytes]:
    noise = Image.effect_noise((24, 16), 90)
    made = []
    for kind, image in [
        ("PNG", noise.convert("RGBA")),
        ("PNG", noise.convert("P")),
        ("JPEG", noise),
        ("WEBP", noise.convert("RGB")),
    ]:
        image.save(file := io.BytesIO(), kind)
        made.append(file.getvalue())
    return made


PICTURES = pictures()


@examples(300)
@given(st.sampled_from(PICTURES).flatmap(damaged))
def test_bytes_of_an_image(raw: bytes) -> None:
    skips = Skips(1.0)
    pixels = decode_or_skip(io.BytesIO(raw), ImageConfig(name="x", resolution=8, channels=3), skips, "x.png")
    assert (pixels is None) == bool(skips.bad["image"])
    assert pixels is None or (pixels.shape == (3, 8, 8) and pixels.dtype == torch.uint8)
