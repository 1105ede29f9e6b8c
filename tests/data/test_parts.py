"""Text prepared part by part: whatever the parts, the threads and the kills between, the same files."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from gengen.config.data import TextConfig
from gengen.data.sources import text_files
from gengen.data.sources.skips import Skips
from gengen.data.text import encode, spool
from gengen.data.text.prepare import TextFolder, prepare
from gengen.data.text.sources.base import Document, text_source
from gengen.data.text.spool import StrippedHash, open_spool, write_spool
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError


def files_of(config: TextConfig, folder: str = "") -> dict[str, str]:
    """File -> hash, of the only prepared folder."""
    homes = [p for p in (Path(folder or config.dir) / "prepared").iterdir() if not p.name.startswith(".")]
    assert len(homes) == 1
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(homes[0].iterdir())}


@pytest.fixture
def corpus(tmp_path, prose):
    """Some 300 documents in two files, one of them of one document alone, which is two thirds of the text."""
    (folder := tmp_path / "texts").mkdir()
    rows = [json.dumps({"text": prose(50 + 7 * i, i)}) for i in range(300)]
    (folder / "a.jsonl").write_text("\n".join(rows))
    (folder / "b.txt").write_text("\n".join(prose(500, 1000 + i) for i in range(1300)))
    return folder


def small_parts(monkeypatch):
    """Segments of 20 kB and blocks of 50 kB, of which a document has several."""
    monkeypatch.setattr(spool, "SEGMENT", 20_000)
    monkeypatch.setattr(text_files, "BLOCK", 50_000)
    monkeypatch.setattr(encode, "BATCH", 7_000)


@pytest.mark.parametrize("split", ["content", "documents", "tails"])
def test_parts_and_threads_change_nothing(corpus, file_config, tmp_path, said, monkeypatch, split):
    settings = {"split": split, "max_documents": 301}
    prepare(file_config(corpus, dir=str(tmp_path / "whole"), **settings), 400, said.append)
    whole = files_of(file_config(corpus), tmp_path / "whole")
    small_parts(monkeypatch)
    for workers in (1, 3):
        config = file_config(corpus, dir=str(tmp_path / f"parts-{workers}"), prepare_workers=workers, **settings)
        prepare(config, 400, said.append)
        assert files_of(config) == whole
        assert any("in 33 parts with tiktoken" in line for line in said), said
    assert not list((tmp_path / "parts-3" / "prepared").glob(".*.making"))


CODE = """
import sys
from gengen.config.data import TextConfig
from gengen.data.sources import text_files
from gengen.data.text import encode, spool
from gengen.data.text.prepare import prepare
spool.SEGMENT, text_files.BLOCK = 20_000, 50_000
if "again" in sys.argv:
    text_files.json_rows = None  # the source is not read again
    from gengen.data.text.tokenizer import TextTokenizer
    TextTokenizer.train = None  # nor the tokenizer trained
prepare({config!r}, 400, print)
"""


def run_code(config: TextConfig, *arguments: str, fault: str = "") -> tuple[int, str]:
    code = CODE.replace("{config!r}", repr(config))
    environment = os.environ | {"GENGEN_FAULT": fault}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_what_a_killed_process_did_is_not_done_again(corpus, file_config, tmp_path, said):
    """Killed as 31 of 33 parts are done: the last two are encoded, and the files are those of an undisturbed one."""
    prepare(file_config(corpus, dir=str(tmp_path / "whole")), 400, said.append)
    config = file_config(corpus, prepare_workers=1)
    code, _ = run_code(config, fault="prepare:part@31=kill")
    assert code == -signal.SIGKILL and not list((tmp_path / "data/prepared").glob("text-*"))
    code, output = run_code(config, "again")
    assert code == 0 and "33 parts with tiktoken (31 were encoded before)" in output, output
    assert files_of(config) == files_of(config, str(tmp_path / "whole"))


def test_a_spool_that_was_not_whole_is_written_anew(corpus, file_config, tmp_path, said):
    config = file_config(corpus)
    folder = TextFolder(config, 400, said.append)
    making = tmp_path / "data" / "prepared" / f".text-{folder.identity()[0][:16]}.making" / "spool"
    making.mkdir(parents=True)
    (making / "texts-00000.bin").write_bytes(b"half of it")
    (making / "part-00000.json").write_text('{"train": {"bytes": 9, "tokens": 9}, "val": {"bytes": 9, "tokens": 9}}')
    prepare(config, 400, said.append)
    found = files_of(config)
    prepare(file_config(corpus, dir=str(tmp_path / "whole")), 400, said.append)
    assert found == files_of(config, str(tmp_path / "whole"))


def test_a_failure_in_a_thread_ends_all_and_leaves_nothing(corpus, file_config, tmp_path, said, monkeypatch):
    small_parts(monkeypatch)
    monkeypatch.setenv("GENGEN_FAULT", "prepare:part@3=full")
    with pytest.raises(UserError, match=r"cannot be prepared .*No space left"):
        prepare(file_config(corpus, prepare_workers=2), 400, said.append)
    assert not list((tmp_path / "data" / "prepared").glob("*text*[!k]"))  # but the lock


# ------------------------------------------------------------------------------------------ what is held out, at most


def test_what_is_held_out_has_a_limit(tmp_path, file_config, prose, said):
    """Of 400 documents of 1,000 bytes, a tenth is held out unless that may be too many tokens; then it is halved."""
    rows = [json.dumps({"text": prose(1000, i)[:900].ljust(1000, "x")}) for i in range(400)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))

    def held(most: int, order: int = 1, **changes: object) -> set[str]:
        (tmp_path / "a.jsonl").write_text("\n".join(rows[::order]))
        config = file_config(tmp_path / "a.jsonl", val_tokens=most, tokenizer="byte", **changes)
        data = prepare(config, 300, said.append)
        assert len(data.val) <= most
        texts = [json.loads(row)["text"].encode() for row in rows]
        assert data.val_bytes + data.meta["train"]["bytes"] == sum(map(len, texts))  # and the rest is trained on
        return set(data.tokenizer.decode(data.val.read(0, len(data.val))).split("x" * 50))

    everything = held(100_000)
    assert not said[1:]
    fewer = held(30_000)
    line = "held out is 5% instead of 10%: data.val_tokens=30,000 allows no more, at a token a byte"
    assert f"data: {line}" in said
    assert fewer < everything and held(30_000, order=-1) == fewer  # a part of what it was, whatever the order
    assert held(30_000, split="documents") != fewer
    assert held(4_000, split="tails") == {""} and said[-1].startswith("data: held out is 0.156% instead of 10%")


def test_few_large_documents_have_their_ends_held_out(tmp_path, file_config, prose, said):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": prose(20_000, i)}) for i in range(25)))
    data = prepare(file_config(tmp_path / "a.jsonl", val_tokens=30_000), 300, said.append)
    assert data.meta["split"] == "tails" and len(data.val) <= 30_000
    line = "data: 25 documents are too large to hold out some of them; the last 1.25% of each is held out"
    assert line in said and len(data.val) > 3_000


def test_the_limit_holds_whatever_the_bytes_of_a_character(tmp_path, file_config, said):
    """Letters first and then Chinese: the tails have three times the bytes that their share of the text has."""
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": "a" * 900 + "山" * 100}) for _ in range(50)))

    def held(most: int) -> int:
        config = file_config(tmp_path / "a.jsonl", val_tokens=most, tokenizer="byte", split="tails")
        return len(prepare(config, 300, said.append).val)

    assert held(20_000) == 50 * (3 * 100 + 1) and held(10_050) == 50 * (3 * 50 + 1)
    assert held(10_049) == 50 * (3 * 25 + 1)  # of 50 characters it cannot be known that they have but 150 bytes


def test_no_tokenizer_changes_what_is_held_out(tmp_path, file_config, prose, said):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": prose(300, i)}) for i in range(200)))
    texts = set()
    for settings in ({"tokenizer": "byte"}, {"vocab_size": 300}, {"vocab_size": 500}):
        config = file_config(tmp_path / "a.jsonl", val_tokens=4_000, **settings)
        data = prepare(config, config.vocab_size or 300, said.append)
        texts.add(data.tokenizer.decode(data.val.read(0, len(data.val))))
    assert len(texts) == 1


# ---------------------------------------------------------------------------------------------------- text in pieces


def test_a_hash_of_pieces_is_that_of_the_whole():
    draw = random.Random(0)
    for _ in range(200):
        raw = bytes(draw.choice(b"ab \n\t\r") for _ in range(draw.randrange(30)))
        content, start = StrippedHash(), 0
        while start < len(raw):
            end = start + draw.randrange(1, 6)
            content.update(raw[start:end])
            start = end
        assert content.number() == int.from_bytes(hashlib.sha256(raw.strip()).digest()[:8], "little")


def test_documents_come_back_from_the_spool(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "SEGMENT", 40)
    documents = [
        Document("é" * 9, "a"),
        Document("", "b"),
        Document("one", "c", iter([" two", " three" * 9, " four"])),
        Document("x" * 50, "c"),
    ]
    assert open_spool(tmp_path / "s") is None
    segments, origins = write_spool(tmp_path / "s", documents, whole=False)
    found = spool.finish_spool(tmp_path / "s", segments, {})
    pieces = [piece for number in range(segments) for piece in found.pieces(number)]
    texts = ["".join(p.text for p in pieces if p.document == number) for number in range(4)]
    assert texts == ["é" * 9, "", "one two" + " three" * 9 + " four", "x" * 50] and origins == ["a", "b", "c"]
    assert [p.offset for p in pieces if p.document == 2] == [0, 3, 7, 61] and segments > 2
    assert found.sizes.tolist() == [18, 0, 66, 50] and found.lengths.tolist() == [9, 0, 66, 50]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_text_file_is_the_same_text_in_any_blocks(tmp_path, file_config, prose, monkeypatch, encoding):
    """Its pieces are encoded as the whole is; of a damaged one, the same lines are left out."""
    text = "\n".join(prose(300, i) for i in range(40)) + "   \n\n \t " + prose(5000, 99) + "\n"
    raw = text.encode(encoding)
    if encoding == "utf-8":
        raw = raw.replace(b"\n", b"\n\xff bad\n", 30)
    (path := tmp_path / "a.txt").write_bytes(raw)
    tokenizer = TextTokenizer.train([prose(20_000, 5)], 400)
    for block in (100, 1_000, 2**24):
        monkeypatch.setattr(text_files, "BLOCK", block)
        skips = Skips(0.9)
        parts = []
        for document in text_source(file_config(path)).read(skips, print):
            parts += [document.text, *document.more]
        assert "".join(parts) == text and (len(parts) > 1) == (block < 2**24)
        assert skips.bad["line"] == (30 if encoding == "utf-8" else 0) and skips.good["file"] == 1
        if skips.bad:
            assert skips.first == f"{path} line 2: not UTF-8 (invalid start byte)"
        assert [i for ids in tokenizer.encode_batch(parts) for i in ids] == tokenizer.encode(text)


def test_a_text_file_is_held_a_block_at_a_time(tmp_path, file_config, prose, said, monkeypatch):
    """24 MB in blocks of 1 MB, each of which takes some 25: characters are of 4 bytes, and several copies are made."""
    monkeypatch.setattr(text_files, "BLOCK", 2**20)
    monkeypatch.setattr(spool, "SEGMENT", 2**22)
    line = prose(2_000, 1).encode() + b"\n"
    (path := tmp_path / "a.txt").write_bytes(line * (24 * 10**6 // len(line)))
    source = text_source(file_config(path))
    open_spool(tmp_path / "s")
    tracemalloc.start()
    write_spool(tmp_path / "s", source.read(Skips(0), said.append), whole=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(peak)
    assert peak < 32 * 2**20


def test_a_tokenizer_that_cuts_no_words_gets_whole_documents(tmp_path):
    documents = [Document("one", "c", iter([" two", " three"]))]
    open_spool(tmp_path / "s")
    found = spool.finish_spool(tmp_path / "s", write_spool(tmp_path / "s", documents, whole=True)[0], {})
    assert [piece.text for piece in found.pieces(0)] == ["one two three"]


def test_sides_of_a_split_meet_at_the_cut():
    """Pieces of 4 characters of a document of 12, cut at each place: nothing is lost, and each side begins once."""
    text = "abcdefghijkl"
    pieces = [spool.Piece(text[i : i + 4], 0, i) for i in (0, 4, 8)]
    for cut in range(13):
        train, val = (list(encode.on_side(side, pieces, np.array([cut]))) for side in ("train", "val"))
        assert "".join(t for t, _ in train) == text[:cut] and "".join(t for t, _ in val) == text[cut:]
        for side in (train, val):
            assert [begins for _, begins in side] == [True] * bool(side) + [False] * (len(side) - 1)
