"""What is planted in a run, a folder of weights or a data set is refused, and nothing of it is executed or
imported."""

import gzip
import io
import json
import os
import pickle
import re
import shutil
import struct
import sys
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from tests.security.conftest import edit, newest, signed
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gengen.checkpoints import files, store
from gengen.checkpoints import layout as format
from gengen.checkpoints.convert import torch_file as importing
from gengen.checkpoints.files import Damaged, read_json
from gengen.checkpoints.run import create, find
from gengen.cli import main
from gengen.config.data import TextConfig
from gengen.config.limits import MAX_DEPTH
from gengen.config.schema import put
from gengen.data.dialogue.sources.corpora import NoAliases, dialogues
from gengen.data.image.decode import MAX_PIXELS
from gengen.data.sources import text_files, wheels
from gengen.data.sources.base import read_records
from gengen.data.sources.skips import Skips
from gengen.data.text import foreign_tokenizer, tokenizer
from gengen.data.text.foreign_tokenizer import ForeignTokenizer
from gengen.data.text.sources.base import text_source
from gengen.data.text.tokenizer import TextTokenizer, byte_alphabet
from gengen.errors import UserError
from gengen.generation.text import grammar, grammar_trial, json_schema, patterns, tools

ROOT = Path(__file__).parents[2]
SOURCES = [*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]


class Payload:
    """What runs a command where it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def pickles(canary: Path) -> dict[str, bytes]:
    zipped = io.BytesIO()
    torch.save({"w": Payload(canary)}, zipped)
    return {"pickle": pickle.dumps(Payload(canary)), "torch": zipped.getvalue()}


def commands(run: Path) -> list[list[str]]:
    return [
        ["sample", str(run), "max_tokens=4"],
        ["evaluate", str(run)],
        ["train", f"run={run.name}", f"runs_dir={run.parent}", "trainer.max_steps=31"],
    ]


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one message of a command that fails; no traceback."""
    capsys.readouterr()
    assert main(argv) in (2, 4)
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and "Traceback" not in out + err
    return err


# ---------------------------------------------------------------------------------------------------- pickles


def test_the_payload_would_run(tmp_path: Path) -> None:
    pickle.loads(pickles(tmp_path / "made")["pickle"])
    assert (tmp_path / "made").exists()


CHECKPOINT = [
    "model.safetensors",
    "optimizer.safetensors",
    "optimizer.json",
    "config.json",
    "state.json",
    "tokenizer.json",
    "manifest.json",
]


@pytest.mark.parametrize("name", CHECKPOINT)
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_in_a_file_of_a_checkpoint(
    name: str, kind: str, run: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether or not the manifest was made to match; what sampling does not need it does not read."""
    (newest(run) / name).write_bytes(pickles(canary)[kind])
    assert "no checkpoint that verifies" in refused(["sample", str(run)], capsys)
    assert name in refused(["sample", str(newest(run))], capsys)
    if name == "manifest.json":
        return
    signed(newest(run))
    for argv in commands(run):
        if name in ("optimizer.safetensors", "optimizer.json", "state.json") and argv[0] != "train":
            assert main([*argv, "max_tokens=1"] if argv[0] == "sample" else ["sample", str(run), "max_tokens=1"]) == 0
        else:
            assert name in refused(argv, capsys)


@pytest.mark.parametrize(
    "name",
    ["config.json", "metrics.csv", "log.txt", "run.lock", "checkpoints/LATEST", "checkpoints/BEST", "tokenizer.json"],
)
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_in_a_file_of_a_run(
    name: str, kind: str, run: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / name).write_bytes(pickles(canary)[kind])
    for argv in (commands(run)[0], commands(run)[2]):
        if name == "config.json":
            assert "config.json is damaged: not" in refused(argv, capsys)
        else:  # it is not read, or made anew
            assert main(argv) in (0, 2)
            assert "Traceback" not in capsys.readouterr().err


def test_a_pickle_in_the_files_that_weights_are_imported_from(
    canary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ):
        for kind, raw in pickles(canary).items():
            folder = hf_folder(tmp_path / f"{name}-{kind}")
            (folder / name).write_bytes(raw)
            assert "cannot be imported" in refused(
                ["import_weights", str(folder), "run=x", f"runs_dir={tmp_path}"], capsys
            )
    folder = hf_folder(tmp_path / "bin")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "is not read, as that could run code" in refused(
        ["import_weights", str(folder), "run=x", f"runs_dir={tmp_path}"], capsys
    )


def test_no_array_of_objects_and_no_archive_is_data(
    canary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.array([Payload(canary)], dtype=object), allow_pickle=True)
    for name in ("x.pkl", "x.pt", "x.tar", "x.zip", "x.npz"):
        (tmp_path / name).write_bytes(pickles(canary)["pickle"])
    for name in ("x.npy", "x.pkl", "x.pt", "x.tar", "x.zip", "x.npz"):
        error = refused(
            ["prepare", "data=text", f"data.path={tmp_path / name}", f"data.dir={tmp_path / 'data'}"], capsys
        )
        assert "is not a kind of file that is read; allowed are .jsonl, .parquet, .txt" in error


# ---------------------------------------------------------------------------------------------- names of code

PLANTED: dict[str, tuple[str, Any]] = {
    "a model": ("model.name", "planted:run"),
    "a list as a model": ("model.name", ["planted", "run"]),
    "an object as a model": ("model.name", {"_target_": "planted.run"}),
    "a target": ("_target_", "planted.run"),
    "a target in the model": ("model._target_", "planted.run"),
    "a class path": ("model.class_path", "planted.run"),
    "an instantiator": ("model._instantiator", "planted.run"),
    "a model that is no group": ("model", "planted.run"),
    "a stage": ("stage.name", "planted:run"),
    "a stage that is no group": ("stage", "planted.run"),
    "a data set": ("data.name", "planted:run"),
    "a logger": ("logger.name", "planted:run"),
    "hydra": ("hydra", {"callbacks": {"x": {"_target_": "planted.run"}}}),
    "defaults": ("defaults", [{"model": "planted"}]),
    "dunder": ("__import__", "planted"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_config_cannot_name_code(what: str, run: Path, canary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, value = PLANTED[what]
    for path in (run, newest(run)):
        edit(path / "config.json", lambda tree: put(tree, key, value))
    signed(newest(run))
    sample, *others = commands(run)
    for argv in others:
        refused(argv, capsys)
    if key.split(".")[0] == "model" or key == "stage":
        refused(sample, capsys)
    else:  # sampling reads no other part
        assert main(sample) == 0


def test_plugins_of_a_stored_config_are_not_imported(run: Path, canary: Path) -> None:
    for path in (run, newest(run)):
        edit(path / "config.json", lambda tree: tree.update(plugins=["planted"]))
    signed(newest(run))
    for argv in commands(run):
        assert main(argv) == 0


def test_plugins_that_the_command_line_names_are(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the test above would notice."""
    (tmp_path / "ours.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'made')!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert main([*commands(run)[0], "plugins=ours"]) == 0
    assert (tmp_path / "made").exists() and sys.modules.pop("ours")


def test_interpolations_in_a_stored_config_are_text(
    run: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("PLANTED_VALUE", "vaLue-of-the-environment")
    for path in (run, newest(run)):
        edit(path / "config.json", lambda tree: put(tree, "data.licence", "${oc.env:PLANTED_VALUE}"))
    signed(newest(run))
    for argv in commands(run):
        main(argv)
    out, err = capfd.readouterr()
    assert "vaLue" not in out + err
    assert not [path for path in run.rglob("*") if path.is_file() and b"vaLue" in path.read_bytes()]


# ------------------------------------------------------------------------------------------------- the tensors


def header(tensors: dict[str, Any], data: bytes = b"") -> bytes:
    raw = json.dumps(tensors).encode()
    return struct.pack("<Q", len(raw)) + raw + data


HEADERS = {
    "a header of an exabyte": struct.pack("<Q", 2**60) + b"{}",
    "a header of 17 MB": struct.pack("<Q", 17 * 2**20) + b"{}" + b" " * (17 * 2**20),
    "a tensor larger than the file": header(
        {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, b"0000"
    ),
    "a shape that overflows": header(
        {"w": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, b"0000"
    ),
    "tensors that overlap": header(
        {
            "v": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        },
        b"0000",
    ),
    "a negative place": header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, b"0000"),
    "no such numbers": header({"w": {"dtype": "O", "shape": [1], "data_offsets": [0, 8]}}, b"00000000"),
    "50,001 tensors": header({f"w{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(50_001)}),
    "deep": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "nothing": b"",
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_lies_is_damage(what: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(HEADERS[what])
    start = time.perf_counter()
    with pytest.raises(Damaged, match=r"model\.safetensors is damaged: "):
        format.read_tensors(tmp_path / "model.safetensors")
    assert time.perf_counter() - start < 2


@pytest.mark.slow
def test_50_000_tensors_are_read(tmp_path: Path) -> None:
    save_file({f"w{i}": torch.zeros(1) for i in range(format.MAX_TENSORS)}, tmp_path / "model.safetensors")
    assert len(format.read_tensors(tmp_path / "model.safetensors")) == 50_000


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"width": 2**20}, "has shape"),
        ({"layers": 10**9}, "config.json describes no model (layers=1000000000)"),
        ({"layers": 10**5}, "more than"),
        ({"vocab_size": 2**26, "width": 2**20, "heads": 2**10, "head_size": 2**10}, "has shape"),
        ({"context": 2**40}, "config.json describes no model (context="),
    ],
)
def test_weights_are_compared_before_the_model_takes_memory(changes: Any, words: str, run: Path, capsys: Any) -> None:
    for path in (run, newest(run)):
        edit(path / "config.json", lambda tree: tree["model"].update(changes))
    signed(newest(run))
    start, before = time.perf_counter(), rss()
    assert words in refused(commands(run)[0], capsys)
    assert time.perf_counter() - start < 5 and rss() - before < 200 * 2**20


def test_weights_of_another_type_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = newest(run) / "model.safetensors"
    weights = {name: tensor.double() for name, tensor in format.read_tensors(path).items()}
    path.unlink()
    save_file(weights, path)
    signed(newest(run))
    assert "is torch.float64, not torch.float32" in refused(commands(run)[0], capsys)


# -------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    "text,words",
    [
        ("[" * 100_000, "nested deeper than 32"),
        ("[" * 33 + "]" * 33, "nested deeper than 32"),
        ('{"a":' * 500 + "1" + "}" * 500, "nested deeper than 32"),
        ("1" * 5000, "not JSON"),
        (" " * (16 * 2**20 + 1), "16,777,217 bytes; at most 16,777,216 are allowed"),
        ('{"a": ', "not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
    ],
)
def test_json_has_a_size_and_a_depth(
    text: str | bytes, words: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "x.json").write_bytes(raw)
    with pytest.raises(Damaged, match=words):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[" * 32 + "]" * 32)
    read_json(tmp_path / "x.json")
    for name in ("config.json", "state.json", "optimizer.json"):
        shutil.copyfile(newest(run) / name, tmp_path / "kept")
        (newest(run) / name).write_bytes(raw)
        signed(newest(run))
        assert words in refused(commands(run)[2], capsys) or name == "config.json"  # a resume reads the run's own
        shutil.copyfile(tmp_path / "kept", newest(run) / name)
    (run / "config.json").write_bytes(raw)
    assert words in refused(commands(run)[0], capsys)


def test_what_is_no_plain_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")  # would be waited for
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "zeros.json").symlink_to("/dev/zero")  # has no end
    for name in ("pipe.json", "folder.json", "zeros.json", "n" * 5000, "\0"):
        with pytest.raises(Damaged, match="missing"):
            read_json(tmp_path / name)


@pytest.mark.parametrize(
    "facts",
    [
        {"files": []}, {"files": {"model.safetensors": None}}, {"files": {"model.safetensors": {"bytes": "4"}}},
        {"files": {"../x": {}}},
        {"files": {"n" * 5000: {}}}, {"files": {"\0": {}}}, {"files": {"..": {}}}, {"files": {"/etc/passwd": {}}},
        {"step": "30"},
    ],
)  # fmt: skip
def test_a_manifest_that_is_none(facts: dict[str, Any], run: Path) -> None:
    signed(newest(run), **facts)
    with pytest.raises(Damaged):
        format.verify(newest(run))


# -------------------------------------------------------------------------------------- archives, links, names


def zipped(path: Path, members: dict[str, bytes], link: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, raw in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (0o120777 if name == link else 0o100644) << 16
            file.writestr(info, raw)
    return path


@pytest.mark.parametrize(
    "members,link,words",
    [
        ({"../slip.txt": b"x"}, "", "leads out of the archive"),
        ({"a/../../slip.txt": b"x"}, "", "leads out of the archive"),
        ({"/tmp/slip.txt": b"x"}, "", "leads out of the archive"),
        ({"..\\slip.txt": b"x"}, "", "leads out of the archive"),
        ({"slip.txt": b"/etc/passwd"}, "slip.txt", "is a link"),
        ({"slip.txt": b"\0" * 2**26}, "", "67,108,864 bytes when unpacked; at most"),
    ],
)
def test_members_that_slip_or_burst(members: dict[str, bytes], link: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        list(wheels.read_members(zipped(tmp_path / "a.whl", members, link), ["slip"]))
    assert [path.name for path in tmp_path.iterdir()] == ["a.whl"]


def test_a_gzip_bomb_stops_early() -> None:
    bomb = gzip.compress(b"\0" * 2**26)
    tracemalloc.start()
    with pytest.raises(UserError, match="holds more than the 1,000,000 that are allowed"):
        wheels.gunzip(bomb, limit=1_000_000)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()
    assert wheels.gunzip(gzip.compress(b"abc")) == b"abc"


def test_a_bomb_among_texts_stops_early(tmp_path: Path) -> None:
    for name in ("a.txt.gz", "a.jsonl.gz"):
        (tmp_path / name).write_bytes(gzip.compress((b" " * 2**20 + b"\n") * 2**6, 9))  # 65 kB
        config, skips = TextConfig(path=str(tmp_path / name), max_bad=1), Skips(1)
        tracemalloc.start()
        assert not list(read_records(text_source(config), skips, print))
        assert tracemalloc.get_traced_memory()[1] < 2**26
        tracemalloc.stop()
        assert skips.bad == {"file": 1} and "bytes when unpacked; no more are read" in skips.first


def test_nothing_is_ever_unpacked_to_the_disk_and_tar_is_not_read() -> None:
    found = re.compile(r"tarfile|extractall|\.extract\(|unpack_archive|extract_archive|(np|numpy)\.load\(")
    assert not [path for path in SOURCES if found.search(path.read_text())]


def test_the_only_yaml_that_others_wrote_is_in_a_pinned_archive() -> None:
    readers = {path.name: re.findall(r"yaml\.\w*load\w*", path.read_text()) for path in SOURCES}
    assert {name: calls for name, calls in readers.items() if calls} == {"corpora.py": ["yaml.load"]}
    assert (
        issubclass(NoAliases, yaml.SafeLoader)
        and "yaml.load(archive.read(name), NoAliases)"
        in (ROOT / "src/gengen/data/dialogue/sources/corpora.py").read_text()
    )
    assert not [path.name for path in SOURCES if re.search(r"OmegaConf\.load|yaml\.Loader|unsafe", path.read_text())]


def test_an_alias_bomb_bursts_nothing(run: Path, canary: Path, tmp_path: Path) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for one, two in zip("abcdefghi", "bcdefghij", strict=True):
        bomb += f"{two}: &{two} [{', '.join([f'*{one}'] * 9)}]\n"
    for name in ("config.yaml", "config.yml", ".hydra/config.yaml", "hparams.yaml"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(bomb)
    start = time.perf_counter()
    assert main(commands(run)[0]) == 0
    archive = zipped(tmp_path / "a.whl", {"x/english/bomb.yml": f"{bomb}conversations: [*j]\n".encode()})
    with zipfile.ZipFile(archive) as opened, pytest.raises(UserError, match="aliases in YAML are not read"):
        list(dialogues(opened))
    assert time.perf_counter() - start < 5
    with pytest.raises(yaml.YAMLError):
        yaml.load(f"!!python/object/apply:os.system ['touch {canary}']", NoAliases)


@pytest.mark.parametrize("pointer", ["LATEST", "BEST"])
def test_a_pointer_out_of_the_run_is_not_followed(
    pointer: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(newest(run), tmp_path / "step-000000099")
    for where in (
        "../../../step-000000099",
        str(tmp_path / "step-000000099"),
        "step-000000030/../../../../step-000000099",
    ):
        (run / "checkpoints" / pointer).write_text(where)
        assert store.pointed(run / "checkpoints", pointer) is None
        assert main(commands(run)[0]) == 0
        if pointer == "BEST":
            assert "checkpoint=best: " in refused(["sample", str(run), "checkpoint=best"], capsys)


NAMES = ["../x", "..", "a/b", "/tmp/x", "a\0b", "x" * 5000, "a\nb", "", "-x", ".x", "~x", "a b", "caf\u00e9"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_runs_stay_in_their_folder(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="cannot name a run"):
        create(tmp_path / "runs", name, "stem")
    if name not in ("..", "/tmp/x"):
        with pytest.raises(UserError, match="no run"):
            find(name, tmp_path / "runs")
        refused(["sample", f"run={name}", f"runs_dir={tmp_path / 'runs'}"], capsys)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# ------------------------------------------------------------------------------------------- images and texts


def test_a_picture_that_promises_2_5_billion_pixels_and_eps_named_png(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(9):
        Image.new("L", (16, 16), 20 * i).save(folder / f"{i}.png")
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IDAT"
    )
    argv = [
        "prepare",
        "data=imagefolder",
        "model=unet",
        f"data.path={folder}",
        f"data.dir={tmp_path / 'data'}",
        "data.max_bad=0",
    ]
    for name, raw, words in [
        ("bomb.png", bomb, "promises more than 64,000,000 pixels"),
        ("eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EOF\n", "no PNG, JPEG, WEBP image"),
    ]:
        (folder / name).write_bytes(raw)
        error = refused(argv, capsys)
        assert name in error and words in error
        (folder / name).unlink()


def test_lines_have_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(text_files, "MAX_LINE", 1000)
    for name, raw, words in [
        ("a.jsonl", b'{"text": "' + b"x" * 1001 + b'"}\n', "line 1: longer than 1,000 bytes"),
        ("b.jsonl", b"[" * 900 + b"]" * 90, "line 1: not JSON"),
        ("c.jsonl", b'{"text": ' + b"[" * 40 + b"]" * 40 + b"}", "line 1: not JSON (nested deeper than 32)"),
    ]:
        (tmp_path / name).write_bytes(raw)
        assert words in refused(
            ["prepare", "data=text", f"data.path={tmp_path / name}", f"data.dir={tmp_path / 'data'}"], capsys
        )


# ------------------------------------------------------------------------------------------------- tokenizers


def bpe(**parts: Any) -> str:
    """A tokenizer.json of single bytes, with parts of it replaced; those of the model as model__name."""
    made = Tokenizer(models.BPE({character: i for i, character in enumerate(byte_alphabet())}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tree = json.loads(made.to_str())
    for key, value in parts.items():
        put(tree, key.replace("__", "."), value)
    return json.dumps(tree)


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "chunks of no length": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        "FixedLength before encoding is not supported"),
    "a broken table": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        "Precompiled before encoding"),
    "a regex that backtracks": ({"pre_tokenizer": split("(a+)+$")}, "PanicException"),
    "a regex that is none": ({"pre_tokenizer": split("(")}, "cannot be used"),
    "one letter into a book": (
        {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "x" * 300_000}},
        r"it takes more than 2 s to load|memory allocation of \d+ bytes failed",  # whichever limit it meets first
    ),
    "a merge into nothing": ({"model__merges": [["a", "b"]]}, "cannot be used"),
    "a hidden one": ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Nmt"}]}},
        "Nmt before encoding is not supported"),
    "an id of 2^32": ({"model__vocab": {"a": 2**32}}, "cannot be used"),
    "deep": ({"normalizer": json.loads("[" * 40 + "]" * 40)}, "nested deeper than 32"),
    "another model": ({"model__type": "Unigram"}, "cannot be used"),
    "a template": ({"post_processor": 3, "truncation": "x", "model": {}}, "cannot be used"),
}  # fmt: skip


def test_the_tokenizer_is_good_before_it_is_malformed() -> None:
    assert (
        ForeignTokenizer.wrap(bpe(), 0, 0, 512).decode(ForeignTokenizer.wrap(bpe(), 0, 0, 512).encode("a fox"))
        == "a fox"
    )


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_tokenizers(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """Known panics of the library, and what takes time or memory: one error of ours, from another process."""
    monkeypatch.setattr(foreign_tokenizer, "SECONDS", 2)
    parts, words = MALFORMED[what]
    folder = hf_folder(tmp_path / "hf", bpe(**parts))
    start = time.perf_counter()
    assert main(["import_weights", str(folder), "run=x", f"runs_dir={tmp_path / 'runs'}"]) == 2
    out, err = capfd.readouterr()
    assert (
        re.search(words, err)
        and err.startswith("error: ")
        and "Traceback" not in out + err
        and "panicked" not in out + err
    )
    assert time.perf_counter() - start < 5 and not (tmp_path / "runs").exists()
    with pytest.raises(UserError):  # in a checkpoint that claims to have imported it
        inner = json.loads(bpe(**parts))
        TextTokenizer.from_json(
            json.dumps({"gengen": "foreign", "start": 0, "end": 0, "size": 512, "tokenizer": inner})
        )


def test_merges_into_no_token_are_refused_in_our_own_kind(capfd: Any) -> None:
    vocabulary = {name: i for i, name in enumerate(["<|endoftext|>", *byte_alphabet()])}
    with pytest.raises(UserError, match="are merged into no token"):
        TextTokenizer.from_json(json.dumps({"model": {"vocab": vocabulary, "merges": [["a", "b"]]}}))
    assert "panicked" not in capfd.readouterr().err


def test_a_text_that_a_regex_cannot_bear_is_an_error() -> None:
    with pytest.raises(UserError, match="it cannot encode this text"):  # q is in none of the texts that are tried
        ForeignTokenizer.wrap(
            bpe(pre_tokenizer={"type": "Sequence", "pretokenizers": [split("(q+)+$"), byte_level()]}), 0, 0, 512
        ).encode("q" * 60 + "b")


def byte_level() -> dict[str, Any]:
    return json.loads(bpe())["pre_tokenizer"]


def test_a_chat_template_is_ignored(tmp_path: Path, canary: Path) -> None:
    folder = hf_folder(tmp_path / "hf")
    template = "{{ cycler.__init__.__globals__.os.system('touch " + str(canary) + "') }}"
    edit(
        folder / "tokenizer_config.json",
        lambda tree: tree.update(chat_template=template, auto_map={"AutoTokenizer": "planted.run"}),
    )
    edit(
        folder / "config.json",
        lambda tree: tree.update(auto_map={"AutoModel": "planted.run"}, _attn_implementation_internal="planted/run"),
    )
    assert main(["import_weights", str(folder), "run=x", f"runs_dir={tmp_path / 'runs'}"]) == 0
    assert main(["sample", str(tmp_path / "runs" / "x"), "max_tokens=2"]) == 0
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and b"cycler" in path.read_bytes()]


def hf_folder(folder: Path, tokenizer: str | None = None) -> Path:
    """Llama's layout with a tiny model, that can be imported."""
    width, vocabulary = 8, 512
    sizes = {
        "num_hidden_layers": 1,
        "hidden_size": width,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
    }
    weights = {"model.embed_tokens": (vocabulary, width), "lm_head": (vocabulary, width), "model.norm": (width,)}
    block = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"} | {
        f"mlp.{name}_proj": (8, width) for name in ("gate", "up")
    }
    block |= {"mlp.down_proj": (width, 8), "input_layernorm": (width,), "post_attention_layernorm": (width,)}
    weights |= {f"model.layers.0.{name}": shape for name, shape in block.items()}
    folder.mkdir(parents=True)
    save_file(
        {f"{name}.weight": torch.full(shape, 0.01) for name, shape in weights.items()}, folder / "model.safetensors"
    )
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": vocabulary} | sizes | ends))
    (folder / "tokenizer.json").write_text(tokenizer or bpe())
    for name in ("tokenizer_config", "generation_config"):
        (folder / f"{name}.json").write_text("{}")
    return folder


# --------------------------------------------------------------------------------------------- the promises


def test_every_promise_names_tests_that_exist_and_limits_that_hold() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    rooms = (ROOT / "tests" / room for room in ("security", "serving", "playground"))
    tests = "".join(path.read_text() for room in rooms for path in room.glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", page)
    assert len(named) > 20 and not [name for name in named if f"def {name}(" not in tests]
    assert not [path for path in re.findall(r"`(tests/[\w/.]+)`", page) if not (ROOT / path).exists()]
    mib = 2**20
    found = [files.MAX_JSON, MAX_DEPTH, format.MAX_TENSORS, format.MAX_HEADER, format.MAX_NUMBER, format.MAX_TOKENIZER]
    assert found == [16 * mib, 32, 50_000, 16 * mib, 134_217_728, 32 * mib]
    found = [
        tokenizer.MAX_JSON,
        foreign_tokenizer.MAX_SIZE,
        foreign_tokenizer.SECONDS,
        wheels.MAX_BYTES,
        wheels.MAX_RATIO,
        importing.MAX_BYTES,
    ]
    assert found == [32 * mib, 1_048_576, 10, 2048 * mib, 200, 1024 * mib]
    found = [MAX_PIXELS, text_files.MAX_LINE]
    assert found == [64_000_000, 16 * mib]
    found = [json_schema.MAX_BYTES, json_schema.MAX_ALTERNATIVES, json_schema.MAX_ONE_OF, patterns.MAX_REPEAT]
    assert found == [2**16, 1000, 100, 1000]
    found = [grammar_trial.SECONDS, grammar_trial.MEMORY, grammar.compiled.cache_info().maxsize, tools.MAX_TOOLS]
    assert found == [2, 1024, 64, 64]


# ---------------------------------------------------------------------------------------------------- secrets


def test_a_secret_of_the_environment_is_nowhere(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """After training, evaluating, sampling, and what fails; nor where it was typed into a field that is kept."""
    secret = 'sEcret "of/the" environment-81'
    for name in ("HF_TOKEN", "WANDB_API_KEY", "MY_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, secret)
    runs, data = tmp_path / "runs", tmp_path / "data"
    argv = [
        *tiny,
        f"data.dir={data}",
        f"runs_dir={runs}",
        "run=r",
        "trainer.max_steps=6",
        "trainer.eval_every=3",
        "trainer.sample_every=3",
    ]
    assert main(["train", *argv, f"data.licence={secret}"]) == 0
    for command in commands(runs / "r")[:2]:
        assert main(command) == 0
    assert main(["train", "run=r", f"runs_dir={runs}", "data.batch_size=9"]) == 2
    assert main(["train", "run=r", f"runs_dir={runs}", "trainer.max_step=9"]) == 2
    out, err = capfd.readouterr()
    spellings = [secret, json.dumps(secret)[1:-1], "sEcret"]
    assert not [word for word in spellings if word in out + err]
    written = [path for folder in (runs, data) for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if any(word.encode() in path.read_bytes() for word in spellings)]
    assert "<HF_TOKEN>" in (runs / "r" / "config.json").read_text()
