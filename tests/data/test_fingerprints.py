"""What tells large files from each other: their content, as far as it is looked at, and not when they were written."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gengen.config.data import ImageConfig, TextConfig
from gengen.data.image.prepare import ImagesFolder
from gengen.data.image.sources import folder as image_folder
from gengen.data.sources.files import BLOCK, BLOCKS, EDGE, MAX_HASHED, content_hash
from gengen.data.text.prepare import TextFolder
from helpers.image_stand_ins import png

SIZE = MAX_HASHED + 12345
GAP = (SIZE - 2 * EDGE - BLOCK) // (BLOCKS - 1)  # from one block to the next, of which BLOCK are read


def large(path: Path) -> Path:
    """A sparse file over the limit, with a text at its start."""
    path.write_bytes(b"once upon a time\n")
    os.truncate(path, SIZE)
    return path


def write_at(path: Path, place: int, raw: bytes = b"x") -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(raw)


def fingerprint(path: Path, trained_on: str = "") -> str:
    return TextFolder(TextConfig("text", path=str(path)), 300, print, None, trained_on).identity()[0]


def copied(source: Path, target: Path) -> None:
    subprocess.run(["cp", source, target], check=True)


def copied_with_its_time(source: Path, target: Path) -> None:
    shutil.copy2(source, target)


def sent(source: Path, target: Path) -> None:
    """As rsync does: pieces into a file of another name, which is renamed; here without its time."""
    beside = target.with_name(f".{target.name}.a1b2c3")
    with open(source, "rb") as old, open(beside, "wb") as new:
        shutil.copyfileobj(old, new, 2**20)
    os.utime(beside, (1, 1))
    os.rename(beside, target)


@pytest.mark.parametrize("copy", [copied, copied_with_its_time, sent])
def test_a_copy_of_a_large_file_is_the_same_data(tmp_path, copy):
    (tmp_path / "elsewhere").mkdir()
    copy(source := large(tmp_path / "a.txt"), target := tmp_path / "elsewhere" / "a.txt")
    assert source.stat().st_size > MAX_HASHED and fingerprint(target) == fingerprint(source)


@pytest.mark.parametrize(
    "place", [0, EDGE - 1, EDGE, EDGE + BLOCK - 1, EDGE + 7 * GAP + BLOCK // 2, SIZE - EDGE - 1, SIZE - EDGE, SIZE - 1]
)
def test_a_change_where_it_is_looked_at_shows(tmp_path, place):
    before = content_hash(path := large(tmp_path / "a.txt"))
    stamp = path.stat().st_mtime_ns
    write_at(path, place)
    os.utime(path, ns=(stamp, stamp))
    assert content_hash(path) != before


def test_what_does_not_show_is_a_change_between_the_blocks_that_keeps_the_size(tmp_path):
    before, told = fingerprint(path := large(tmp_path / "a.txt")), content_hash(path)
    write_at(path, EDGE + BLOCK)
    assert content_hash(path) == told and fingerprint(path) == before
    write_at(path, SIZE)  # a byte more
    assert fingerprint(path) != before


def test_a_small_file_is_hashed_whole(tmp_path):
    os.truncate(path := large(tmp_path / "a.txt"), MAX_HASHED)
    before = content_hash(path)
    write_at(path, EDGE + BLOCK)
    assert content_hash(path) != before and not before.startswith("sample")


def test_a_run_whose_data_were_told_by_their_time_finds_them(tmp_path, monkeypatch):
    """As long as the time is the same; then nothing of today's may be taken for them."""
    path = large(tmp_path / "a.txt")
    with monkeypatch.context() as patch:
        patch.setattr(
            "gengen.data.sources.files.FileSet.facts", lambda self: {"files": [[".", SIZE, f"changed {stamp}"]]}
        )
        stamp = path.stat().st_mtime_ns
        before = fingerprint(path)
    assert fingerprint(path) != before and fingerprint(path, trained_on=before) == before
    os.utime(path)
    assert fingerprint(path, trained_on=before) == fingerprint(path)


def test_a_large_folder_of_images_is_told_by_sizes_and_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(image_folder, "MAX_HASHED", 100)
    monkeypatch.setattr(image_folder, "HASHED", 3)
    for number in range(8):
        path = tmp_path / "album" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png([[[number] * 3] * 4] * 4))

    def told(root: Path, trained_on: str = "") -> str:
        config = ImageConfig("imagefolder", path=str(root), resolution=8)
        return ImagesFolder(config, print, trained_on=trained_on).identity()[0]

    shutil.copytree(tmp_path / "album", tmp_path / "copy", copy_function=shutil.copyfile)
    before = told(tmp_path / "album")
    assert told(tmp_path / "copy") == before
    write_at(tmp_path / "copy" / "a" / "2.png", 60)  # not in the sample: a/0, a/6 and b/5 are
    assert told(tmp_path / "copy") == before
    write_at(tmp_path / "copy" / "b" / "5.png", 60)
    assert (sampled := told(tmp_path / "copy")) != before
    (tmp_path / "copy" / "a" / "2.png").write_bytes(b"another size")
    assert told(tmp_path / "copy") not in (before, sampled)
