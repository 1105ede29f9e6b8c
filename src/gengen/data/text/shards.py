"""Token shards: uint16 or uint32 tokens behind a 1 KiB header, written in a stream and read through memory maps."""

import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gengen.errors import UserError

MAGIC = b"gengen tokens\n"
VERSION = 1
HEADER = 1024  # bytes
DTYPES: dict[str, "np.dtype[Any]"] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


class ShardError(UserError):
    """A shard is damaged or not one of ours."""


def dtype_of(vocab_size: int) -> "np.dtype[Any]":
    """Return what tokens of such a vocabulary are kept as."""
    return DTYPES["uint16" if vocab_size <= 2**16 else "uint32"]


def write_shards(
    dir: Path,
    split: str,
    chunks: Iterable[Sequence[int] | np.ndarray],
    vocab_size: int,
    tokenizer_hash: str,
    shard_tokens: int = 2**27,
) -> int:
    """Write the chunks one behind the other into `split`-00000.bin and so on, each synced to disk; return how many
    tokens."""
    dtype = dtype_of(vocab_size)
    written, file = 0, None
    for chunk in chunks:
        tokens = np.asarray(chunk, dtype)
        while len(tokens):
            room = shard_tokens - written % shard_tokens
            if room == shard_tokens:
                _finish(file, dtype, shard_tokens, tokenizer_hash)
                file = open(dir / f"{split}-{written // shard_tokens:05}.bin", "wb")  # noqa: SIM115
                file.write(bytes(HEADER))
            assert file is not None
            file.write(tokens[:room].tobytes())
            written += len(tokens[:room])
            tokens = tokens[room:]
    _finish(file, dtype, (written - 1) % shard_tokens + 1, tokenizer_hash)
    return written


def _finish(file: BinaryIO | None, dtype: "np.dtype[Any]", count: int, tokenizer_hash: str) -> None:
    """Put the header in front of a shard, sync and close it. Until then its first bytes are zero, and no reader takes
    it."""
    if file is None:
        return
    facts = {"version": VERSION, "dtype": dtype.name, "count": count, "tokenizer": tokenizer_hash}
    file.seek(0)
    file.write((MAGIC + json.dumps(facts).encode()).ljust(HEADER))
    file.flush()
    os.fsync(file.fileno())
    file.close()


def open_shard(path: Path, tokenizer_hash: str) -> np.ndarray:
    """Return the tokens of one shard, memory-mapped; raise ShardError if it is not whole or not of this tokenizer."""
    with open(path, "rb") as file:
        head = file.read(HEADER)
    if not head.startswith(MAGIC):
        raise ShardError(f"{path}: not a token shard (starts with {head[: len(MAGIC)]!r}, expected {MAGIC!r})")
    try:
        facts = json.loads(head[len(MAGIC) :])
        version, tokenizer = facts["version"], facts["tokenizer"]
        dtype, count = DTYPES[facts["dtype"]], int(facts["count"])
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path}: the header cannot be read ({type(error).__name__}: {error})") from None
    if version != VERSION:
        raise ShardError(f"{path}: version {version} of the shard format, expected {VERSION}")
    if tokenizer != tokenizer_hash:
        raise ShardError(
            f"{path}: tokens of another tokenizer ({str(tokenizer)[:16]}…, expected {tokenizer_hash[:16]}…)"
        )
    size, expected = path.stat().st_size, HEADER + count * dtype.itemsize
    if size != expected or count < 1:
        raise ShardError(f"{path}: {size:,} bytes, expected {expected:,} for {count:,} tokens")
    return np.memmap(path, dtype, mode="r", offset=HEADER)


class TokenStream:
    """All tokens of a split, as one circular sequence."""

    def __init__(self, dir: Path, split: str, tokenizer_hash: str):
        paths = sorted(dir.glob(f"{split}-*.bin"))
        if not paths:
            raise ShardError(f"{dir}: no {split} shards")
        self._source = (dir, split, tokenizer_hash)
        self._shards = [open_shard(path, tokenizer_hash) for path in paths]
        self._starts = np.cumsum([0, *map(len, self._shards)]).tolist()

    def __len__(self) -> int:
        return self._starts[-1]

    def __reduce__(self) -> tuple[type, tuple[Path, str, str]]:
        """A spawned loader worker opens the files itself: a memory map would be copied to it whole."""
        return TokenStream, self._source

    def read(self, start: int, count: int) -> np.ndarray:
        """Return tokens start .. start + count - 1, modulo the length: (count,) int64."""
        tokens, filled = np.empty(count, np.int64), 0
        while filled < count:
            position = (start + filled) % len(self)
            shard = bisect_right(self._starts, position) - 1
            part = self._shards[shard][position - self._starts[shard] :][: count - filled]
            tokens[filled : filled + len(part)] = part
            filled += len(part)
        return tokens
