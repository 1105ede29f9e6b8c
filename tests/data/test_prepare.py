import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gengen.data.sources import wheels
from gengen.data.text import prepare as prepare_module
from gengen.data.text.prepare import TextFolder, prepare
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError


def folders(config):
    return sorted(p for p in (Path(config.dir) / "prepared").iterdir() if not p.name.endswith(".lock"))


def test_tails_hold_out_the_end_of_every_document(archive, book_config, prose, said):
    texts = [prose(6000, 1), prose(4000, 2)]
    data = prepare(book_config(validation=0.25), 300, said.append)
    eot, encode = [data.tokenizer.eot], data.tokenizer.encode
    assert data.train.read(0, len(data.train)).tolist() == eot + encode(texts[0][:4500]) + eot + encode(
        texts[1][:3000]
    )
    assert data.val.read(0, len(data.val)).tolist() == eot + encode(texts[0][4500:]) + eot + encode(texts[1][3000:])
    assert data.val_bytes == len((texts[0][4500:] + texts[1][3000:]).encode())
    assert (
        data.tokenizer.hash == TextTokenizer.train([texts[0][:4500], texts[1][:3000]], 300).hash
    )  # validation is never seen
    assert data.model_facts == {"vocab_size": 300}


def test_documents_holds_out_every_nth(tmp_path, file_config, said):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"tale {i}"}) + "\n" for i in range(20)))
    data = prepare(file_config(tmp_path / "a.jsonl", tokenizer="byte", split="documents"), 999, said.append)
    assert data.tokenizer.vocab_size == 257
    assert data.tokenizer.decode(data.val.read(0, len(data.val))) == "tale 9tale 19"
    assert (
        data.meta["documents"] == 20
        and data.meta["val"] == {"bytes": 13, "tokens": 15}
        and data.meta["train"]["tokens"] == 18 * 7 + 9
    )
    assert data.meta["bytes_per_token"] == pytest.approx(130 / 150)


def texts_of(data, split):
    """The texts of one split."""
    stream = getattr(data, split)
    return "".join("|" if i == data.tokenizer.eot else chr(i - 1) for i in stream.read(0, len(stream))).split("|")[1:]


def test_copies_of_a_document_lie_on_one_side(tmp_path, file_config, said):
    """201 documents given twice, the second time with other white space around: none held out is trained on."""
    rows = [json.dumps({"text": f"tale {i}{end}"}) for end in ("", "\n") for i in range(201)]

    def opened(rows, **changes):
        (tmp_path / "a.jsonl").write_text("\n".join(rows))
        return prepare(file_config(tmp_path / "a.jsonl", tokenizer="byte", **changes), 999, said.append)

    data = opened(rows)
    train, val = ([text.strip() for text in texts_of(data, split)] for split in ("train", "val"))
    assert len(train) == 2 * 181 and len(val) == 2 * 20 and not set(train) & set(val)
    line = "data: 201 of 402 documents are copies of others; they are held out together"
    assert line in said and data.meta["copies"] == 201 and "402, 201 of them copies of others" in data.describe()[2]
    assert {text.strip() for text in texts_of(opened(rows[::-1]), "val")} == set(val)  # no order changes the split
    assert {text.strip() for text in texts_of(opened([*rows, '{"text": "one more"}']), "val")} == set(val)
    opened(rows, split="documents")
    assert "201 of 402 documents are copies of others; some may be held out and others trained on" in said[-1]


def test_few_documents_many_times_fall_back_to_tails(tmp_path, file_config, said):
    (tmp_path / "a.jsonl").write_text('{"text": "the same story again"}\n{"text": "and another one"}\n' * 20)
    data = prepare(file_config(tmp_path / "a.jsonl", tokenizer="byte"), 999, said.append)
    assert data.meta["split"] == "tails" and set(texts_of(data, "val")) == {"in", "ne"}
    assert "data: 2 different documents are too few to hold out every 10th; the last 10% of each is held out" in said
    assert "data: 38 of 40 documents are copies of others; the same ends of them are held out" in said


def test_data_stay_as_they_were_prepared_for_the_run_that_goes_on(archive, book_config, said, monkeypatch):
    """Another format is another folder, but for a run whose checkpoint names the older one."""
    monkeypatch.setattr(TextFolder, "FORMAT", 1)
    before = prepare(book_config(), 300, said.append)
    monkeypatch.undo()
    monkeypatch.setattr(wheels, "PINS", archive.parents[2] / "wheels.txt")
    assert prepare(book_config(), 300, said.append).fingerprint != before.fingerprint
    said.clear()
    again = prepare(book_config(), 300, said.append, trained_on=before.fingerprint)
    assert again.fingerprint == before.fingerprint and again.meta["format"] == 1 and not said
    other = prepare(book_config(validation=0.2), 300, said.append, trained_on=before.fingerprint)
    assert other.meta["format"] == 3  # other data are today's


def test_too_few_documents_fall_back_to_tails(archive, book_config, said):
    data = prepare(book_config(split="documents"), 300, said.append)
    assert data.meta["split"] == "tails" and any(
        "2 documents are too few to hold out every 10th" in line for line in said
    )


def test_prepared_once(archive, book_config, said):
    config = book_config()
    first = prepare(config, 300, said.append)
    archive.unlink()  # the source is not needed again
    said.clear()
    again = prepare(config, 300, said.append)
    assert not said and again.meta == first.meta and again.tokenizer.to_json() == first.tokenizer.to_json()
    assert folders(config) == [Path(config.dir) / "prepared" / f"storybook-{first.fingerprint[:16]}"]
    assert "wheel fake-books 1.0" in "\n".join(again.describe())


@pytest.mark.parametrize("name", ["train-00000.bin", "val-00000.bin", "tokenizer.json", "meta.json"])
def test_a_truncated_file_is_named_and_made_again(archive, book_config, said, name):
    config = book_config()
    before = prepare(config, 300, said.append)
    said.clear()
    path = folders(config)[0] / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    after = prepare(config, 300, said.append)
    assert path.read_bytes() == whole and after.meta == before.meta and len(folders(config)) == 1
    assert len(said) == 1 and "preparing it again" in said[0] and ("json" in name or f"{name}: " in said[0])


def test_the_fingerprint_tells_what_matters(archive, book_config, file_config, tmp_path, prose, said):
    def fingerprint(config, vocab_size=300, tokenizer=None):
        return prepare(config, vocab_size, said.append, tokenizer).fingerprint

    text = tmp_path / "a.txt"
    text.write_text(prose(2000))
    mine = TextTokenizer.train([prose(3000, 9)], 280)
    seen = [fingerprint(book_config()), fingerprint(book_config(), 310), fingerprint(book_config(), 300, mine)]
    seen += [
        fingerprint(book_config(validation=0.2)),
        fingerprint(book_config(members=["one-story"])),
        fingerprint(file_config(text)),
    ]
    stamp = text.stat().st_mtime_ns
    text.write_text(prose(2000).replace("fox", "cat"))
    os.utime(text, ns=(stamp, stamp))  # same size, same time
    seen.append(fingerprint(file_config(text)))
    assert len(set(seen)) == len(seen)
    assert fingerprint(file_config(text, num_workers=3, batch_size=2, dir=str(tmp_path / "elsewhere"))) == seen[-1]


def test_a_given_tokenizer_is_used(archive, book_config, prose, said):
    mine = TextTokenizer.train([prose(3000, 9)], 280)
    data = prepare(book_config(), 300, said.append, mine)
    assert data.tokenizer.hash == mine.hash and data.model_facts == {"vocab_size": 280}


def test_bpe_learns_from_the_whole_corpus(tmp_path, file_config, said, monkeypatch):
    """A corpus five times what BPE is trained on, in three languages one after the other: it learns words of each."""
    languages = [["hare", "river"], ["größe", "läufer"], ["川の水", "山の木"]]
    rows = [json.dumps({"text": " ".join(words * 20)}) for words in languages for _ in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    monkeypatch.setattr(prepare_module, "BPE_CHARACTERS", sum(len(json.loads(row)["text"]) for row in rows) // 5)
    data = prepare(file_config(tmp_path / "a.jsonl"), 400, said.append)
    assert all(len(data.tokenizer.encode(f" {word}")) == 1 for words in languages for word in words)


def test_a_sample_is_even_and_of_its_size(monkeypatch):
    texts = [f"{i:03}" * (1 + i % 7) for i in range(1000)]  # 3 to 21 characters, 11,985 in all
    assert list(prepare_module._sample(texts, 1.0)) == texts
    monkeypatch.setattr(prepare_module, "BPE_CHARACTERS", 1200)
    taken = list(prepare_module._sample(texts, 1200 / 11_985))
    assert 1180 < sum(map(len, taken)) < 1221
    for quarter in range(4):
        assert sum(len(text) for text in taken if int(text[:3]) // 250 == quarter) == pytest.approx(300, abs=21)
    start = "".join(prepare_module._sample(texts, 1.0))  # what the first format took
    assert "".join(texts).startswith(start) and 1200 <= len(start) < 1221


def test_skips_are_said_and_recorded(tmp_path, file_config, prose, said):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": prose(100, i)}) + "\n" for i in range(40)) + "{\n")
    data = prepare(file_config(tmp_path / "a.jsonl", max_bad=0.05), 300, said.append)
    assert data.meta["skips"]["line"] == 1 and "a.jsonl line 41: not JSON" in data.meta["skips"]["first"]
    assert (
        any("skipped what cannot be read: 1 line; first: " in line for line in said)
        and "1 line; first: " in data.describe()[-1]
    )
    with pytest.raises(UserError, match="1 of 41 lines"):
        prepare(file_config(tmp_path / "a.jsonl", max_bad=0.01), 300, said.append)
    assert len(folders(file_config(tmp_path))) == 1  # a failure leaves nothing behind


@pytest.mark.parametrize("text, part", [("", "train"), ("x", "train")])
def test_an_empty_part_is_an_error(tmp_path, file_config, said, text, part):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\n")
    with pytest.raises(UserError, match=f"the {part} part is empty"):
        prepare(file_config(tmp_path / "a.jsonl"), 300, said.append)


def test_a_folder_that_cannot_be_written(archive, book_config, tmp_path, said):
    (tmp_path / "flat").write_text("a file")
    with pytest.raises(UserError, match="cannot be prepared"):
        prepare(book_config(dir=str(tmp_path / "flat")), 300, said.append)


def test_processes_that_prepare_at_once_make_one_copy(tmp_path, file_config, prose):
    (tmp_path / "a.txt").write_text(prose(300_000))
    config = file_config(tmp_path / "a.txt")
    code = f"""
from gengen.config.data import TextConfig
from gengen.data.text.prepare import prepare
data = prepare({config!r}, 400, print)
print("tokens", len(data.train), data.tokenizer.hash)
import sys; assert not {{"torch", "lightning", "datasets", "pyarrow"}} & set(sys.modules)
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], outputs
    lines = [line for out, _ in outputs for line in out.splitlines()]
    assert len({line for line in lines if line.startswith("tokens")}) == 1
    assert sum(line.startswith("data: preparing") for line in lines) == 1 and len(folders(config)) == 1
