import pickle

import numpy as np
import pytest

from gengen.data.text.shards import HEADER, ShardError, TokenStream, write_shards

TOKENS = np.random.default_rng(0).integers(0, 60_000, 1000)


@pytest.fixture(params=[60_000, 70_000], ids=["uint16", "uint32"])
def folder(request, tmp_path):
    chunks = np.split(TOKENS, [0, 1, 130, 640, 641])
    assert write_shards(tmp_path, "train", chunks, request.param, "hash", shard_tokens=256) == 1000
    return tmp_path


def test_shards_are_one_circular_stream(folder):
    assert len(list(folder.glob("train-*.bin"))) == 4
    stream = TokenStream(folder, "train", "hash")
    assert len(stream) == 1000
    for start, count in [(0, 1000), (255, 2), (250, 600), (990, 20), (-1, 3), (7, 0), (500, 2500)]:
        np.testing.assert_array_equal(
            stream.read(start, count), np.take(TOKENS, range(start, start + count), mode="wrap")
        )
    assert stream.read(0, 1).dtype == np.int64


def test_a_stream_travels_to_a_worker_by_name(folder):
    packed = pickle.dumps(TokenStream(folder, "train", "hash"))
    assert len(packed) < 1000
    np.testing.assert_array_equal(pickle.loads(packed).read(0, 1000), TOKENS)


def test_size_on_disk_is_header_and_tokens(tmp_path):
    write_shards(tmp_path, "val", [[1, 2, 3]], 257, "hash")
    assert (tmp_path / "val-00000.bin").stat().st_size == HEADER + 6


@pytest.mark.fault("F21")
def test_damage_is_named(folder):
    last = folder / "train-00003.bin"
    whole = last.read_bytes()
    for raw, message in [
        (whole[:-2], "bytes, expected .* for 232 tokens"),
        (whole + b"x", "bytes, expected"),
        (whole[:100], "header cannot be read|bytes, expected"),
        (b"\0" * len(whole), "not a token shard"),
        (whole.replace(b'"version": 1', b'"version": 9', 1), "version 9"),
        (whole.replace(b'"uint', b'"lint', 1), "header cannot be read"),
    ]:
        last.write_bytes(raw)
        with pytest.raises(ShardError, match=f"train-00003.bin: .*({message})"):
            TokenStream(folder, "train", "hash")
    last.write_bytes(whole)
    with pytest.raises(ShardError, match="tokens of another tokenizer"):
        TokenStream(folder, "train", "other")
    with pytest.raises(ShardError, match="no val shards"):
        TokenStream(folder, "val", "hash")
