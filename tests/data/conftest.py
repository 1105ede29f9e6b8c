"""A seeded writer of prose, and a small archive pinned like the real one."""

import hashlib
import random
import zipfile

import pytest

from gengen.config.data import TextConfig
from gengen.data import wheels

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
        file.writestr("fake_books-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("fake_books-1.0.dist-info/RECORD", "")
    pins = tmp_path / "wheels.txt"
    pins.write_text(f"# data\nfake-books==1.0 \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n")
    monkeypatch.setattr(wheels, "PINS", pins)
    return path


@pytest.fixture
def book_config(tmp_path):
    def config(**changes):
        facts = {"name": "storybook", "dir": str(tmp_path / "data"), "source": "wheel", "wheel": "fake-books", "split": "tails"}
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
