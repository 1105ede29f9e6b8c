"""Folders of images as people have them: each is read right, or one line names what is not."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gengen.data.image.prepare import PreparedImages, prepare
from gengen.errors import UserError
from helpers.image_stand_ins import png

COMPOSED, APART = "caf\u00e9", "cafe\u0301"  # the same word in two Unicode forms


def draw(root: Path, folder: str, *shades: int, raw: bytes | None = None) -> None:
    """A grey picture of each shade, as FOLDER/SHADE.png."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for shade in shades:
        (root / folder / f"{shade}.png").write_bytes(png(np.full((4, 4), shade)) if raw is None else raw)


def metadata(root: Path, *rows: dict[str, str]) -> None:
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def read(data: PreparedImages) -> dict[int, tuple[str | None, str]]:
    """Shade -> (class, caption)."""
    found = {}
    for part in (data.train, data.val):
        for image, label, row in zip(part.images, part.labels.tolist(), part.descriptions, strict=True):
            found[int(image[0, 0, 0])] = (data.classes[label] if label >= 0 else None, row.caption)
    return found


def in_two_classes(root: Path) -> None:
    draw(root, "cat", *range(20))
    draw(root, "dog", 3, 4, *range(30, 50))


def in_two_classes_again(root: Path) -> None:
    in_two_classes(root)
    draw(root, "", 5)


def captioned_twice(root: Path) -> None:
    draw(root, "cat", *range(20))
    draw(root, "cat/again", 3, 4)
    metadata(root, {"file_name": "cat/3.png", "text": "a"}, {"file_name": "cat/again/3.png", "text": "b"})


def emptied(root: Path) -> None:
    draw(root, "cat", *range(20))
    draw(root, "dog", 3, 4)


def held_out_whole(root: Path) -> None:
    draw(root, "train/cat", *range(20))
    draw(root, "val/cat", 30)
    draw(root, "val/dog", 31)


def unreadable(root: Path) -> None:
    draw(root, "cat", *range(20))
    draw(root, "dog", 30, raw=b"no picture")


def without_pictures(root: Path) -> None:
    draw(root, "cat", *range(20))
    (root / "dog").mkdir()
    draw(root, "cow")
    (root / "cow" / "1.tif").write_bytes(b"II")


def linked(root: Path) -> None:
    draw(root, "cat", *range(20))
    draw(root.parent / "elsewhere", "many", *range(30, 50))
    draw(root.parent / "elsewhere", "", 60)
    (root / "dog").symlink_to(root.parent / "elsewhere" / "many")
    (root / "cat" / "round").symlink_to(root)
    (root / "cat" / "60.png").symlink_to(root.parent / "elsewhere" / "60.png")
    (root / "cat" / "gone.png").symlink_to(root / "nowhere.png")


def parts_linked(root: Path) -> None:
    draw(root.parent / "elsewhere", "a/cat", *range(20))
    draw(root.parent / "elsewhere", "b/cat", 30)
    root.mkdir()
    (root / "train").symlink_to(root.parent / "elsewhere" / "a")
    (root / "val").symlink_to(root.parent / "elsewhere" / "b")


def captions_in_another_form(root: Path) -> None:
    draw(root, APART, *range(20))
    metadata(root, {"file_name": f"{COMPOSED}/3.png", "text": "a"}, {"file_name": f"{APART}/4.png", "text": "b"})


def captions_of_two_alike(root: Path) -> None:
    draw(root, APART, *range(20))
    draw(root, COMPOSED, *range(30, 50))
    (root / APART / "30.png").write_bytes(png(np.full((4, 4), 99)))
    metadata(root, {"file_name": f"{APART}/30.png", "text": "a"}, {"file_name": f"{COMPOSED}/30.png", "text": "b"})


def classes_in_two_forms(root: Path) -> None:
    draw(root, f"train/{COMPOSED}", *range(20))
    draw(root, f"val/{APART}", 30)
    draw(root, "train/bar", *range(40, 50))


def other_endings(root: Path) -> None:
    draw(root, "cat", *range(20))
    for name in ("1.bmp", "2.BMP", "3.tif", ".4.bmp"):
        (root / "cat" / name).write_bytes(b"BM")


def beside_the_parts(root: Path) -> None:
    draw(root, "train/cat", *range(20))
    for number, folder in enumerate(["val", "test", "cow"]):
        draw(root, f"{folder}/cat", 30 + number)
    draw(root, "", 40)


CAT, DOG = dict.fromkeys(range(20), ("cat", "")), dict.fromkeys(range(30, 50), ("dog", ""))
COPIES = "data: copies of other pictures that were dropped: {}, of which "
READ = "read are .png, .jpg, .jpeg, .webp"
CASES: list[tuple[Callable[[Path], None], dict[int, Any], list[str]]] = [
    (in_two_classes, CAT | DOG, [COPIES.format(2) + "2 with another label (2 in dog and kept in cat)"]),
    (
        in_two_classes_again,
        CAT | DOG | {5: (None, "")},
        [COPIES.format(3) + "3 with another label (2 in dog and kept in cat; 1 in cat and kept in none)"],
    ),
    (captioned_twice, CAT | {3: ("cat", "a")}, [COPIES.format(2) + "1 with another caption"]),
    (
        without_pictures,
        CAT,
        [
            f"data: left out of ROOT: 1 .tif; {READ}",
            "data: no image, so no class, in these folders of ROOT: cow/, dog/",
        ],
    ),
    (
        linked,
        CAT | DOG | {60: ("cat", "")},
        [f"data: left out of ROOT: 1 link that leads nowhere, 1 link to a folder that is read anyway; {READ}"],
    ),
    (parts_linked, CAT | {30: ("cat", "")}, []),
    (captions_in_another_form, dict.fromkeys(range(20), (APART, "")) | {3: (APART, "a"), 4: (APART, "b")}, []),
    (
        captions_of_two_alike,
        dict.fromkeys([*range(20), *range(30, 50)], (APART, "")) | {99: (APART, "a"), 30: (APART, "b")},
        [],
    ),
    (
        classes_in_two_forms,
        dict.fromkeys([*range(20), 30], (APART, "")) | dict.fromkeys(range(40, 50), ("bar", "")),
        [],
    ),
    (other_endings, CAT, [f"data: left out of ROOT: 2 .bmp, 1 .tif; {READ}"]),
    (
        beside_the_parts,
        CAT | {30: ("cat", "")},
        ["data: left out of ROOT beside train/ and val/: 40.png, cow/, test/"],
    ),
]
REFUSED = {
    emptied: "class 'dog' is left empty: its pictures are all in cat, too; of equals the first is kept",
    held_out_whole: "class 'dog' is left without a picture to train on: all of them are held out",
    unreadable: "class 'dog' is left empty: none of its 1 images can be read"
    " (ROOT/dog/30.png: no PNG, JPEG, WEBP image)",
}


@pytest.mark.parametrize(("write", "found", "lines"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_folder_is_read_right_and_what_is_not_is_named(
    write: Callable[[Path], None],
    found: dict[int, Any],
    lines: list[str],
    tmp_path: Path,
    image_config: Any,
    said: list[str],
) -> None:
    write(root := tmp_path / "album")
    data = prepare(image_config("imagefolder", root), said.append)
    assert read(data) == found
    assert [line for line in said if "preparing" not in line] == [line.replace("ROOT", str(root)) for line in lines]


@pytest.mark.parametrize("write", REFUSED, ids=[write.__name__ for write in REFUSED])
def test_a_class_without_a_picture_is_refused(
    write: Callable[[Path], None], tmp_path: Path, image_config: Any, said: list[str]
) -> None:
    write(root := tmp_path / "album")
    with pytest.raises(UserError) as error:
        prepare(image_config("imagefolder", root), said.append)
    assert REFUSED[write].replace("ROOT", str(root)) in str(error.value)
    assert not [path for path in os.listdir(tmp_path / "data" / "prepared") if not path.endswith(".lock")]


def test_how_many_copies_disagree_is_kept_and_described(tmp_path: Path, image_config: Any, said: list[str]) -> None:
    in_two_classes(root := tmp_path / "album")
    data = prepare(image_config("imagefolder", root), said.append)
    assert data.meta["duplicates"] == 2 and data.meta["disagreeing"] == {"label": 2, "caption": 0}
    assert any(line.endswith("2 dropped, of which 2 with another label") for line in data.describe())
