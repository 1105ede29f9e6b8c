import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gengen.data.image import prepare as image_prepare
from gengen.data.image.prepare import ImagesFolder, held_out, prepare
from gengen.errors import UserError
from helpers.image_stand_ins import png


def fingerprint_of(config):
    return ImagesFolder(config, print).identity()[0]


def folders(config):
    return sorted(p for p in (Path(config.dir) / "prepared").iterdir() if not p.name.endswith(".lock"))


def pixels(part):
    return {image.numpy().tobytes() for image in part.images}


@pytest.fixture
def album(tmp_path):
    """A folder of forty images in two classes; the twentieth is in both."""
    for i in range(40):
        path = tmp_path / "album" / f"{'ab'[i % 2]}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(np.full((4, 4), 5 * i)))
    (tmp_path / "album" / "b" / "copy.png").write_bytes(
        png(np.full((4, 4), 5 * 20), compress_level=0)
    )  # the same, in other bytes
    return tmp_path / "album"


# ------------------------------------------------------------------------------------------------------- what is made


def test_pixels_labels_and_captions_stay_together(album, image_config, said):
    (album / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f"a/{i:02}.png", "text": f"shade {5 * i}"}) + "\n" for i in range(0, 40, 2))
    )
    data = prepare(image_config("imagefolder", album, resolution=8), said.append)
    assert data.classes == ["a", "b"]
    rms = (data.train.images.double() / 127.5 - 1).square().mean().sqrt().item()
    assert data.model_facts == {"resolution": 8, "channels": 1, "classes": ["a", "b"], "sigma_data": round(rms, 4)}
    assert len(data.train) == 36 and len(data.val) == 4 and data.dependencies == {}
    for part in (data.train, data.val):
        assert (
            part.images.shape == (len(part), 1, 8, 8)
            and part.images.dtype == torch.uint8
            and part.labels.dtype == torch.int64
        )
        for image, label, row in zip(part.images, part.labels.tolist(), part.descriptions, strict=True):
            shade = int(image[0, 3, 3])
            assert label == shade // 5 % 2 and row.captions == ((f"shade {shade}",) if label == 0 else ())
    assert [int((part.labels == k).sum()) for part in (data.train, data.val) for k in (0, 1)] == [18, 18, 2, 2]
    lines = "\n".join(data.describe())
    for words in (
        "36 for training, 4 for validation (a share of each class)",
        "8 x 8, grey",
        "2: a, b",
        "captions     20",
        "1 dropped",
    ):
        assert words in lines


def test_unlabelled_images_have_the_label_minus_one(tmp_path, image_config, said):
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(png(np.full((4, 4), i)))
    data = prepare(image_config("imagefolder", tmp_path), said.append)
    assert data.classes == [] and set(data.train.labels.tolist()) == {-1} and "classes      none" in data.describe()


def test_a_batch_by_hand(album, image_config, said):
    (album / "c").mkdir()
    stripes = np.zeros((16, 16), np.uint8)
    stripes[:, :2], stripes[:, 2:4] = 255, 51
    for i in range(20):
        (album / "c" / f"{i}.png").write_bytes(png(np.vstack([stripes[:-1], np.full((1, 16), i)])))
    data = prepare(image_config("imagefolder", album, resolution=16), said.append)
    index = torch.nonzero(data.train.labels == 2)[:3, 0]
    batch = data.batch("train", index, torch.tensor([False, True, True]))
    row = torch.full((16,), -1.0)
    row[:2], row[2:4] = 1.0, 51 / 127.5 - 1
    torch.testing.assert_close(batch["images"][:, 0, 0], torch.stack([row, row.flip(0), row.flip(0)]), rtol=0, atol=0)
    assert (
        batch["labels"].tolist() == [2, 2, 2]
        and torch.equal(batch["index"], index)
        and batch["images"].dtype == torch.float32
    )
    plain = data.batch("val", torch.arange(4), torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(plain["images"], data.val.images[:4] / 127.5 - 1, rtol=0, atol=1e-6)


def test_pixels_are_mapped_not_read(album, image_config, said):
    data = prepare(image_config("imagefolder", album), said.append)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc on this system")
    assert "train.safetensors" in maps.read_text() and data.train.images.is_contiguous()


# -------------------------------------------------------------------------------------------------------- what is held
# out


def test_no_picture_is_on_both_sides(image_archives, image_config, said):
    data = prepare(image_config("animals", validation=0.5), said.append)
    assert (
        data.meta["duplicates"] == 3
        and len(data.train) + len(data.val) == 97
        and not pixels(data.train) & pixels(data.val)
    )
    images = [image.tobytes() for image in image_archives.images]
    inside = held_out(
        [str(i) for i in range(100)], [str(label) for label in image_archives.labels], 0.5
    )  # the bug put back: divided first
    assert {i for i, v in zip(images, inside, strict=True) if v} & {
        i for i, v in zip(images, inside, strict=True) if not v
    }


def test_a_copy_of_a_held_out_picture_is_not_trained_on(tmp_path, image_config, said):
    for part, shades in (("train", range(10)), ("val", range(8, 12))):
        for shade in shades:
            path = tmp_path / part / "a" / f"{shade}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(np.full((4, 4), shade)))
    data = prepare(image_config("imagefolder", tmp_path), said.append)
    assert sorted(data.val.images[:, 0, 0, 0].tolist()) == [8, 9, 10, 11] and sorted(
        data.train.images[:, 0, 0, 0].tolist()
    ) == list(range(8))
    assert data.meta["split"] == "as the source is divided"


@pytest.mark.parametrize("share", [0.1, 0.11, 0.25, 0.5, 0.9])
def test_every_class_gives_its_share(share):
    labels = [str(i % 7) for i in range(1000)]
    inside = held_out([f"g{i}" for i in range(1000)], labels, share)
    assert inside.sum() == int(1000 * share)
    for label in set(labels):
        mine = inside[[given == label for given in labels]]
        assert abs(mine.sum() - share * len(mine)) <= 1


def test_what_is_held_out_does_not_depend_on_the_order_of_files():
    groups, labels = [f"g{i}" for i in range(200)], [str(i % 3) for i in range(200)]
    inside = held_out(groups, labels, 0.1)
    there = held_out(groups[::-1], labels[::-1], 0.1)
    assert inside.tolist() == there[::-1].tolist()
    recorded = [25, 45, 50, 54, 82, 88, 91, 109, 111, 113, 114, 119, 133, 149, 151, 161, 173, 177, 179, 186]
    assert np.flatnonzero(inside).tolist() == recorded  # a change here would move images across in every prepared set


def test_emoji_share_no_base_name(image_archives, image_config, said):
    data = prepare(image_config("emoji", validation=0.4), said.append)
    assert len(data.train) + len(data.val) == 60

    def bases(part):
        captions = [row.caption for row in part.descriptions]
        return {("farmer" if "farmer" in c else "running" if "running" in c else c.split(",")[0]) for c in captions}

    assert not bases(data.train) & bases(data.val) and len(bases(data.val)) == int(0.4 * 43)


def test_too_few_images_to_hold_any_out(tmp_path, image_config, said):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(np.full((4, 4), i)))
    with pytest.raises(UserError, match=r"the val part is empty: 3 different images, data.validation=0.1"):
        prepare(image_config("imagefolder", tmp_path), said.append)
    assert len(prepare(image_config("imagefolder", tmp_path, validation=0.4), said.append).val) == 1


# -------------------------------------------------------------------------------------------------------------- once


def test_prepared_once(image_archives, image_config, said, tmp_path):
    config = image_config("mnist")
    first = prepare(config, said.append)
    shutil.rmtree(tmp_path / "data" / "wheels")  # the source is not needed again
    said.clear()
    again = prepare(config, said.append)
    assert not said and again.meta == first.meta and torch.equal(again.train.images, first.train.images)
    assert folders(config) == [Path(config.dir) / "prepared" / f"mnist-{first.fingerprint[:16]}"]


def test_the_fingerprint_tells_what_matters_and_nothing_else(image_archives, image_config, album, tmp_path):
    base = image_config("animals")
    seen = [fingerprint_of(base)] + [fingerprint_of(image_config(name)) for name in ("mnist", "emoji")]
    seen += [
        fingerprint_of(replace(base, **change))
        for change in ({"resolution": 16}, {"channels": 3}, {"validation": 0.2})
    ]
    mine = image_config("imagefolder", album)
    seen.append(fingerprint_of(mine))
    stamp = (album / "a" / "00.png").stat().st_mtime_ns
    (album / "a" / "00.png").write_bytes(png(np.full((4, 4), 1)))
    os.utime(album / "a" / "00.png", ns=(stamp, stamp))
    seen.append(fingerprint_of(mine))
    (album / "metadata.jsonl").write_text('{"file_name": "a/00.png", "text": "x"}')
    seen.append(fingerprint_of(mine))
    pins = tmp_path / "wheels.txt"
    pins.write_text(pins.read_text().replace("animal_shape_mnist==1.0", "animal_shape_mnist==1.1"))
    seen.append(fingerprint_of(base))
    assert len(set(seen)) == len(seen)
    free = {
        "flip": False,
        "batch_size": 3,
        "micro_batch_size": 1,
        "num_workers": 2,
        "dir": "elsewhere",
        "licence": "x",
        "name": "mine",
    }
    assert fingerprint_of(replace(base, **free)) == seen[-1]
    (tmp_path / "moved").symlink_to(album)
    assert (
        fingerprint_of(replace(mine, path=str(tmp_path / "moved"))) == seen[-2]
    )  # the place of the folder does not matter


def test_the_fingerprint_is_the_recorded_one(image_config):
    """It changes when a set is prepared differently, and then FORMAT does: prepared folders and runs name it."""
    assert fingerprint_of(image_config("animals"))[:16] == "82082c3225c99103"


@pytest.mark.parametrize("name", ["train.safetensors", "val.safetensors", "descriptions.json", "meta.json"])
def test_a_truncated_file_is_named_and_made_again(album, image_config, said, name):
    config = image_config("imagefolder", album)
    before = prepare(config, said.append)
    said.clear()
    path = folders(config)[0] / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    after = prepare(config, said.append)
    assert path.read_bytes() == whole and after.meta == before.meta and len(folders(config)) == 1
    assert len(said) == 2 and f"{name}: damaged" in said[0] and "preparing it again" in said[0]
    assert said[1].endswith("dropped: 1, of which 1 with another label (1 in b and kept in a)")


def die_at(config, call):
    """Prepare in a process that is gone, without a word, at the given call of _write_images."""

    def child():
        calls, write = [], image_prepare._write_images

        def counted(*args):
            calls.append(args)
            if len(calls) == call:
                os._exit(9)
            write(*args)

        image_prepare._write_images = counted
        prepare(config, print)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("call", [1, 2])
def test_a_process_killed_halfway_leaves_no_half_folder(album, image_config, said, call):
    config = image_config("imagefolder", album)
    prepare(replace(config, dir=config.dir + "-warm"), said.append)  # what decoding imports is there before the fork
    assert die_at(config, call) == 9
    home = Path(config.dir) / "prepared" / f"imagefolder-{fingerprint_of(config)[:16]}"
    assert not home.exists() and [p.name for p in folders(config)] == [f".{home.name}.making"]
    assert len(prepare(config, said.append).train) == 36
    assert folders(config) == [home]


def test_a_failure_leaves_nothing(album, image_config, said):
    (album / "a" / "x.png").write_bytes(b"%!PS")
    config = image_config("imagefolder", album, max_bad=0.01)
    with pytest.raises(UserError, match="1 of 42 images cannot be read"):
        prepare(config, said.append)
    assert folders(config) == []
    data = prepare(replace(config, max_bad=0.1), said.append)
    assert (
        any("skipped what cannot be read: 1 image; first: " in line for line in said)
        and "x.png: no PNG" in data.describe()[-1]
    )


def test_a_spool_of_any_length_is_written_in_chunks(album, image_config, said, monkeypatch):
    whole = prepare(image_config("imagefolder", album), said.append)
    monkeypatch.setattr(image_prepare, "CHUNK", 16 * 16 * 5)  # five images at a time
    parts = prepare(image_config("imagefolder", album, dir=str(album.parent / "other")), said.append)
    assert torch.equal(whole.train.images, parts.train.images) and torch.equal(whole.val.labels, parts.val.labels)
