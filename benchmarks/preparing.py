"""A corpus to token shards: how fast, in how much memory, and what a kill costs.

    python benchmarks/preparing.py [megabytes=200] [text=1000] [vocab=32768] [workers=0] [seed=0]

The corpus is cut from the sources of Python's standard library, seeded: documents of a few kB in eleven .jsonl files.
It is prepared in a process of its own, then again in one that is killed (SIGKILL) when 95 % of its parts are done, and
once more: the files must be the same. `text` megabytes of the same sources as one .txt are prepared last. Memory is
the process's peak (VmHWM). workers=0: one a core.
"""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from turns import arguments

from gengen.data.text.spool import HEAD, SEGMENT

FILES = 11
CODE = """
import sys
from gengen.config.data import TextConfig
from gengen.data.text.prepare import prepare
path, folder, vocab, workers = sys.argv[1:]
prepare(TextConfig("text", path=path, dir=folder, prepare_workers=int(workers) or None), int(vocab), print)
print(*(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def sources() -> list[str]:
    """The standard library's own, without its tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [path for path in sorted(root.rglob("*.py")) if not {"site-packages", "test", "tests"} & set(path.parts)]
    return [path.read_text(encoding="utf8", errors="replace") for path in paths]


def documents(texts: list[str], size: int, seed: int) -> Iterator[str]:
    """Documents of 300 to 6,500 characters from anywhere in the texts, of so many bytes in all."""
    draws, written = random.Random(seed), 0
    while written < size:
        text = draws.choice(texts)
        start = draws.randrange(len(text) + 1)
        document = text[start : start + draws.randrange(300, 6_500)]
        written += len(document.encode())
        yield document


def write_rows(folder: Path, size: int, seed: int) -> tuple[int, int]:
    """Write the corpus; return its bytes of text, and of the spool."""
    folder.mkdir()
    files = [open(folder / f"{number:02}.jsonl", "w", encoding="utf8") for number in range(FILES)]  # noqa: SIM115
    total, spooled = 0, 0
    for number, document in enumerate(documents(sources(), size, seed)):
        files[number % FILES].write(json.dumps({"text": document}) + "\n")
        total += len(document.encode())
        spooled += HEAD.size + len(document.encode())
    for file in files:
        file.close()
    return total, spooled


def write_text(path: Path, size: int, seed: int) -> None:
    with open(path, "w", encoding="utf8") as file:
        for document in documents(sources(), size, seed):
            file.write(document + "\n")


@dataclass(frozen=True)
class Run:
    seconds: float
    processor: float
    """Seconds of it, of all cores: what remains of a figure where others keep the machine busy."""
    megabytes: float
    """Resident at most; 0 where it was killed."""
    status: int


def prepared(path: Path, folder: Path, vocab: int, workers: int, fault: str = "") -> Run:
    """Prepare in a process of its own."""
    line = [sys.executable, "-c", CODE, str(path), str(folder), str(vocab), str(workers)]
    start, before = perf_counter(), os.times()
    done = subprocess.run(line, env=os.environ | {"GENGEN_FAULT": fault}, stdout=subprocess.PIPE, text=True)
    peak = re.search(r"VmHWM:\s+(\d+) kB", done.stdout)
    seconds, after = perf_counter() - start, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(seconds, used, int(peak[1]) / 1024 if peak else 0, done.returncode)


def hashes(folder: Path) -> list[tuple[str, str]]:
    """Name and hash of each prepared file."""
    found = sorted(path for path in (folder / "prepared").glob("text-*/*"))
    return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in found]


def shown(what: str, size: float, run: Run) -> str:
    resident = f"  {run.megabytes:5,.0f} MB resident" if run.megabytes else ""
    return (
        f"{what:34}{size / run.seconds:6.2f} MB/s  {run.seconds:7.1f} s ({run.processor:.1f} of processors){resident}"
    )


def main(megabytes: int, text: int, vocab: int, workers: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        total, spooled = write_rows(root / "rows", megabytes * 10**6, seed)
        size, parts = total / 1e6, -(-spooled // SEGMENT)
        print(f"{size:.1f} MB of text in {FILES} .jsonl files")
        whole = prepared(root / "rows", root / "whole", vocab, workers)
        print(shown("prepared", size, whole))
        stop = max(1, int(0.95 * parts))
        killed = prepared(root / "rows", root / "killed", vocab, workers, f"prepare:part@{stop}=kill")
        assert killed.status == -signal.SIGKILL, "it was not killed"
        again = prepared(root / "rows", root / "killed", vocab, workers)
        print(shown(f"killed after part {stop} of {parts}", size, killed))
        print(shown("and gone on with", size, again))
        same = hashes(root / "whole") == hashes(root / "killed") and len(hashes(root / "whole")) > 3
        print(f"the same files: {same}")
        if text:
            write_text(root / "one.txt", text * 10**6, seed)
            print(shown(f"one .txt of {text} MB", text, prepared(root / "one.txt", root / "text", vocab, workers)))


if __name__ == "__main__":
    main(**arguments(sys.argv[1:], megabytes=200, text=1000, vocab=32768, workers=0, seed=0)[0])
