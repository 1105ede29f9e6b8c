"""Prepared data: what is made of a data set once, in a folder named by a fingerprint of all that shaped it.

    <data.dir>/prepared/<data.name>-<fingerprint>/  meta.json  and whatever its kind keeps

A folder is made under another name and renamed when complete, so it is never seen half done. Of two processes that
want the same one, one makes it and the other waits.
"""

import fcntl
import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

from gengen.config.data import DataConfig
from gengen.config.model import ModelConfig
from gengen.config.redact import redact
from gengen.data.sources.base import Source
from gengen.data.sources.files import ToldByTime
from gengen.data.sources.skips import Skips, in_words
from gengen.errors import UserError
from gengen.io import Say, fsync, write_text
from gengen.registry import DATA

if TYPE_CHECKING:  # text is prepared without torch, which takes seconds to import
    from torch import Tensor

    from gengen.data.text.tokenizer import TextTokenizer

Batch: TypeAlias = "dict[str, Tensor]"
Opened = TypeVar("Opened")
Config_co = TypeVar("Config_co", bound=DataConfig, covariant=True)
Config_contra = TypeVar("Config_contra", bound=DataConfig, contravariant=True)

# ---------------------------------------------------------------------------------------------------------- contracts


class PreparedData(Protocol):
    """Prepared data of any kind, opened."""

    @property
    def config(self) -> DataConfig:
        """The config it was asked for with, its source settled."""

    @property
    def fingerprint(self) -> str:
        """sha256 over all that shaped it, in hex; checkpoints record it."""

    @property
    def model_facts(self) -> dict[str, Any]:
        """What the data fixes of the model: field of its config -> value."""

    @property
    def dependencies(self) -> dict[str, Path]:
        """Folders that a run keeps a copy of, by the name they have there."""

    @property
    def train(self) -> Sized:
        """What is trained on."""

    @property
    def val(self) -> Sized:
        """What is held out."""

    def describe(self) -> list[str]:
        """Return what it is, in aligned lines for people."""


class PreparedRows(PreparedData, Protocol):
    """Prepared data that consists of rows, any of which can be drawn: images, examples, signals."""

    def batch(self, split: str, index: "Tensor") -> Batch:
        """Return these rows. split: train or val; index: (B,) int64; each tensor returned has B rows."""


class FlippableRows(PreparedData, Protocol):
    """Rows that can be mirrored as they are drawn; they are where the config has `flip`."""

    def batch(self, split: str, index: "Tensor", flipped: "Tensor | None" = None) -> Batch:
        """Return these rows. flipped: (B,) bool, which of them to mirror; None = none."""


class CaptionedRows(PreparedRows, Protocol):
    """Rows with captions, for a model that reads these; batches then hold their tokens, too, or their numbers."""

    @property
    def tokenizer(self) -> "TextTokenizer | None":
        """The tokenizer of the captions; None for a model with a frozen text encoder."""

    def caption_features(self) -> "Tensor":
        """Return what a frozen text encoder said of each different caption, by number, (M, L, D) fp16: 0 behind the
        end of each; the first is the empty one.
        """

    def held_out_captions(self, n: int) -> list[str]:
        """Return up to n different captions of what is held out, evenly spaced."""


@dataclass(frozen=True)
class PrepareRequest(Generic[Config_co]):
    """What is asked of a data set's `prepare`."""

    config: Config_co
    model: ModelConfig
    """Of the model that is to be trained on it: its context, its vocabulary size."""
    say: Say
    tokenizer: str | None = None
    """The tokenizer of the run that is gone on with or started from, as JSON."""
    trained_on: str = ""
    """The fingerprint of the data of the run that goes on or is evaluated: they stay as they were prepared for it."""
    allow_build: bool = True
    """Whether to make what is missing or damaged, instead of raising `NotPrepared` or the damage."""


class Prepare(Protocol[Config_contra]):
    """How a registered data set is prepared (`register_data(prepare=...)`)."""

    def __call__(self, request: PrepareRequest[Config_contra]) -> PreparedData: ...


def prepare_data(request: PrepareRequest[DataConfig]) -> PreparedData:
    """Prepare the data set that the config names, or open it where that is done."""
    prepare: Prepare[DataConfig] = DATA[request.config.name].load("prepare")
    return prepare(request)


class NotPrepared(UserError):
    """The folder `home` is not there, where nothing is to be made."""

    def __init__(self, home: Path):
        super().__init__(f"{home} is not there")
        self.home = home


# ------------------------------------------------------------------------------------------------- one kind of folder


class FromMeta:
    """What prepared data of the built-in kinds say of themselves, by their meta.json."""

    meta: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return self.meta["fingerprint"]

    @property
    def dependencies(self) -> dict[str, Path]:
        return {}

    def described(self, facts: dict[str, str]) -> list[str]:
        """Return source, licence, these facts, fingerprint and skips in aligned lines."""
        facts = {key: self.meta[key] for key in ("source", "licence")} | facts
        facts |= {"fingerprint": self.fingerprint[:16], "skipped": in_words(self.meta["skips"])}
        return [f"{key:<{max(12, *map(len, facts))}} {value}" for key, value in facts.items()]


def fingerprint_of(facts: dict[str, Any], today: int, trained_on: str = "") -> tuple[str, int]:
    """Return (sha256 over all that shapes prepared data, the format they are made in).

    The format is today's, or an earlier one where the fingerprint is then `trained_on`. "since" among the facts holds
    those that came with a format: its number -> facts.
    """
    since, digests = facts.get("since", {}), {}
    facts = {key: value for key, value in facts.items() if key != "since"}
    for version in range(today, 0, -1):
        of_version = facts | {"format": version}
        for first, more in since.items():
            of_version |= more if version >= first else {}
        digests[version] = hashlib.sha256(json.dumps(of_version, sort_keys=True).encode()).hexdigest()
    version = next((version for version, digest in digests.items() if digest == trained_on), today)
    return digests[version], version


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn whatever is wrong with a file or folder into a UserError that names it as damaged."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error})") from error


class PreparedFolder(ABC, Generic[Opened]):
    """How one data set is prepared. A kind of data is a subclass: its facts, how it fills a folder, how it opens one.

    source: where the records come from; its facts are part of the fingerprint.
    """

    FORMAT: ClassVar[int]
    """Raise it when the same source would be prepared differently."""
    RESUMES: ClassVar[bool] = False
    """Whether `build` goes on with what a killed process left in the spool."""

    def __init__(self, config: DataConfig, source: Source[object], say: Say, trained_on: str = ""):
        self.config, self.source, self.say, self.trained_on = config, source, say, trained_on

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what of the config shapes the folder, besides the source. Not the folder it goes to."""

    @abstractmethod
    def build(self, folder: Path, spool: Path, skips: Skips) -> dict[str, Any]:
        """Fill an empty folder and return its meta data, in which at least the fingerprint is. What cannot be read is
        counted in `skips`. spool: a path to use on the way."""

    @abstractmethod
    def opened(self, meta: dict[str, Any]) -> Opened:
        """Open what lies in the finished folder `home`; raise UserError, OSError, ValueError, KeyError or TypeError
        for what is damaged."""

    def identity(self) -> tuple[str, int]:
        """Return (fingerprint, format). It is computed anew each time, as files may change."""
        found = fingerprint_of(self.facts() | self.source.facts(), self.FORMAT, self.trained_on)
        if self.trained_on not in ("", found[0]) and isinstance(self.source, ToldByTime):
            before = fingerprint_of(self.facts() | self.source.facts_by_time(), self.FORMAT, self.trained_on)
            return before if before[0] == self.trained_on else found
        return found

    def get(self, allow_build: bool = True) -> Opened:
        """Open the folder, and make it first where it is missing or damaged."""
        self.fingerprint, self.format = self.identity()
        self.home = Path(self.config.dir) / "prepared" / f"{self.config.name}-{self.fingerprint[:16]}"
        return build_once(self.home, self._open, self._build, self.say, allow_build, self.RESUMES)

    def _open(self) -> Opened:
        with naming(self.home / "meta.json"):
            meta = json.loads((self.home / "meta.json").read_bytes())
            if meta["fingerprint"] != self.fingerprint:
                found, expected = meta["fingerprint"][:16], self.fingerprint[:16]
                raise ValueError(f"the fingerprint is {found}, expected {expected}")
        with naming(self.home):
            return self.opened(meta)

    def _build(self, folder: Path, spool: Path) -> None:
        skips = Skips(self.config.max_bad)
        meta = self.build(folder, spool, skips)
        if skips.bad:
            self.say(f"data: skipped what cannot be read: {in_words(skips.summary())}")
        write_text(folder / "meta.json", redact(json.dumps(meta | {"skips": skips.summary()}, indent=2)))


# -------------------------------------------------------------------------------------------------------- made once


def build_once(
    home: Path,
    open_: Callable[[], Opened],
    build: Callable[[Path, Path], None],
    say: Say,
    allow_build: bool = True,
    resumes: bool = False,
) -> Opened:
    """Return what `open_` finds in the folder `home`; where it raises UserError, for a folder that is missing or
    damaged, the folder is made first.

    build(folder, spool): fills an empty folder; `spool` is a path to use on the way, thrown away in the end.
    allow_build: where it is off, a missing folder raises `NotPrepared`, and a damaged one its own error. resumes:
    whether the spool of a process that was killed or interrupted is kept for the next.
    """
    if not allow_build:
        if not home.exists():
            raise NotPrepared(home)
        return open_()
    with suppress(UserError):
        return open_()
    try:
        with _workspace(home, say, resumes) as making:
            try:
                return open_()  # made while this process waited
            except UserError as damage:
                say(f"data: {damage}\n  preparing it again" if home.exists() else f"data: preparing {home}")
            built = making / "built"
            shutil.rmtree(built, ignore_errors=True)
            built.mkdir()
            build(built, making / "spool")
            fsync(built)
            if home.exists():
                os.rename(home, making / "damaged")
            os.rename(built, home)
            fsync(home.parent)
            return open_()
    except OSError as error:
        raise UserError(f"data: {home} cannot be prepared ({error})") from error


@contextmanager
def _workspace(home: Path, say: Say, resumes: bool) -> Iterator[Path]:
    """Give a folder beside `home` to one process at a time, empty unless it `resumes`: the lock is the system's, and
    falls with its process. It is removed when the work is done, or has failed; after an interrupt only where nobody
    resumes it."""
    home.parent.mkdir(parents=True, exist_ok=True)
    making = home.with_name(f".{home.name}.making")
    with open(home.with_name(f".{home.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("data: another process prepares the same data; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not resumes:
            shutil.rmtree(making, ignore_errors=True)  # left by a process that was killed
        making.mkdir(exist_ok=True)
        keep = resumes
        try:
            yield making
            keep = False
        except Exception:
            keep = False
            raise
        finally:
            if not keep:
                shutil.rmtree(making, ignore_errors=True)
