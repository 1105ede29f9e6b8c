"""Spooled documents -> tokens, segment by segment: each becomes a part, a file of tokens for either side of the split.

    part-00000.train.bin  part-00000.val.bin  tokens, nothing else
    part-00000.json       written last: bytes of text and tokens of each side

The parts are then put one behind the other into shards, so how many threads made them changes nothing. Parts that were
done are kept when the process is killed.
"""

import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gengen.data.text.fast_encoder import Encode
from gengen.data.text.shards import dtype_of
from gengen.data.text.spool import Piece, Spool, put_text
from gengen.data.text.tokenizer import TextTokenizer
from gengen.faults import fault

BATCH = 2**20  # characters encoded at a time
CHUNK = 2**20  # tokens copied at a time
SIDES = ("train", "val")


class Stopped(Exception):
    """Another thread failed, or the user asked for an end."""


@dataclass(frozen=True)
class Encoding:
    """What all parts share. cuts: (N,) int64, see holdout.Split."""

    spool: Spool
    cuts: np.ndarray
    tokenizer: TextTokenizer
    encode: Encode

    def tokens(self, number: int, side: str) -> Path:
        return self.spool.folder / f"part-{number:05}.{side}.bin"

    def facts(self, number: int) -> Path:
        return self.spool.folder / f"part-{number:05}.json"

    def left(self) -> list[int]:
        """Return the segments that are not yet parts."""
        return [number for number in range(self.spool.segments) if not self.facts(number).exists()]

    def totals(self, side: str) -> dict[str, int]:
        """Return the bytes of text and the tokens of one side."""
        parts = [json.loads(self.facts(number).read_bytes())[side] for number in range(self.spool.segments)]
        return {key: sum(part[key] for part in parts) for key in ("bytes", "tokens")}

    def joined(self, side: str) -> Iterator[np.ndarray]:
        """Yield the tokens of one side in order."""
        for number in range(self.spool.segments):
            with open(self.tokens(number, side), "rb") as file:
                while len(chunk := np.fromfile(file, dtype_of(self.tokenizer.vocab_size), CHUNK)):
                    yield chunk


def encode_parts(encoding: Encoding, workers: int) -> None:
    """Make the parts that are left, in so many threads: encoders let go of the interpreter's lock."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(workers)
    try:
        for part in as_completed(pool.submit(encode_part, encoding, number, stop) for number in encoding.left()):
            part.result()
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def encode_part(encoding: Encoding, number: int, stop: threading.Event) -> None:
    """Encode one segment, and remove it. Raises Stopped."""
    facts = {}
    dtype = dtype_of(encoding.tokenizer.vocab_size)
    for side in SIDES:
        texts = on_side(side, encoding.spool.pieces(number), encoding.cuts)
        count = {"bytes": 0, "tokens": 0}
        with open(encoding.tokens(number, side), "wb") as file:
            for tokens in encoded(texts, encoding.tokenizer, encoding.encode, count):
                if stop.is_set():
                    raise Stopped
                file.write(np.asarray(tokens, dtype).tobytes())
                count["tokens"] += len(tokens)
            file.flush()
            os.fsync(file.fileno())
        facts[side] = count
    put_text(encoding.facts(number), json.dumps(facts))
    encoding.spool.segment(number).unlink()
    fault("prepare:part")


def on_side(side: str, pieces: Iterable[Piece], cuts: np.ndarray) -> Iterator[tuple[str, bool]]:
    """Yield (text, whether a document begins with it on this side) of what lies before the cuts, or behind them.
    Nothing empty is yielded."""
    for text, document, offset in pieces:
        cut = int(cuts[document])
        here = min(max(cut - offset, 0), len(text))  # characters of the piece before the cut
        if side == "train" and here:
            yield text[:here], offset == 0
        elif side == "val" and here < len(text):
            yield text[here:], offset <= cut


def encoded(
    texts: Iterable[tuple[str, bool]], tokenizer: TextTokenizer, encode: Encode, count: dict[str, int]
) -> Iterator[Sequence[int] | np.ndarray]:
    """Yield the tokens of the texts; those that begin a document, behind the end of another and the start of its own
    (in our tokenizers one token). Adds their bytes to `count`."""
    opening = list(dict.fromkeys([tokenizer.eot, tokenizer.start]))
    batch: list[str] = []
    begins: list[bool] = []
    waiting = 0

    def flush() -> Iterator[Sequence[int] | np.ndarray]:
        for begin, ids in zip(begins, encode(batch), strict=True):
            if begin:
                yield opening
            yield ids

    for text, first in texts:
        count["bytes"] += len(text.encode())
        for number, piece in enumerate(tokenizer.pieces(text)):
            batch.append(piece)
            begins.append(first and number == 0)
            waiting += len(piece)
            if waiting >= BATCH:
                yield from flush()
                batch, begins, waiting = [], [], 0
    yield from flush()
