"""Word-for-word copies: as brute force finds them, at every border, and never one too many."""

import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from gengen.data.text.shards import TokenStream, write_shards
from gengen.evaluation import copying
from gengen.evaluation.copying import copied_share, matching_lengths


def stream(folder: Path, tokens: list[int], shard_tokens: int = 2**27, vocab_size: int = 2**16) -> TokenStream:
    folder.mkdir(exist_ok=True)
    write_shards(folder, "train", [tokens], vocab_size, "t", shard_tokens)
    return TokenStream(folder, "train", "t")


def brute_force(tokens: list[int], text: list[int]) -> list[int]:
    """For each position of the text the longest run from there that is anywhere in the tokens."""

    def run(i: int, j: int) -> int:
        n = 0
        while i + n < len(text) and j + n < len(tokens) and text[i + n] == tokens[j + n]:
            n += 1
        return n

    return [max(run(i, j) for j in range(len(tokens))) for i in range(len(text))]


@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
def test_the_lengths_are_those_of_brute_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(copying, "CHUNK", chunk)
    draw = random.Random(chunk)
    for case in range(6):
        letters = draw.choice([2, 3, 30])
        tokens = draw.choices(range(letters), k=draw.randint(1, 200))
        texts = [draw.choices(range(letters + 1), k=draw.randint(0, 40)) for _ in range(4)]
        cut = draw.randrange(len(tokens))
        texts.append([letters, *tokens[cut : cut + 30], letters])  # a planted copy
        found = matching_lengths(stream(tmp_path / str(case), tokens, shard_tokens=50), texts)
        assert [lengths.tolist() for lengths in found] == [brute_force(tokens, text) for text in texts]


def test_copies_at_the_ends_and_across_chunks_and_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "CHUNK", 100)
    tokens = list(range(1000))
    train = stream(tmp_path / "s", tokens, shard_tokens=150)
    texts = [tokens[:20], tokens[-20:], tokens[90:110], tokens[140:310], tokens]
    assert [int(lengths[0]) for lengths in matching_lengths(train, texts)] == [20, 20, 20, 170, 1000]


def test_a_copy_ends_with_the_stream_and_with_its_text(tmp_path: Path) -> None:
    train = stream(tmp_path / "s", [1, 2, 3, 4, 5, 6])
    found = matching_lengths(
        train, [[5, 6, 1, 2], [2, 3], [4, 5]]
    )  # the end goes on at the start; 2 3 4 5 in two texts
    assert [lengths.tolist() for lengths in found] == [[2, 1, 2, 1], [2, 1], [2, 1]]


def test_a_copy_with_one_word_changed_is_two(tmp_path: Path) -> None:
    draw = random.Random(0)
    tokens = draw.choices(range(5000), k=2000)
    text = [*tokens[700:725], 9999, *tokens[726:740]]
    (lengths,) = matching_lengths(stream(tmp_path / "s", tokens), [text])
    assert lengths.tolist() == [*range(25, 0, -1), 0, *range(14, 0, -1)]
    assert copied_share([lengths], 8) == (18 + 7) / 33


def test_nothing_collides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large tokens of the stream beside small ones of the text; an edge that has no room for them counts what is not
    there.
    """
    draw = random.Random(1)
    tokens = [draw.randrange(2**20, 2**32) for _ in range(20_000)]
    train = stream(tmp_path / "s", tokens, vocab_size=2**32)
    text = list(range(300))
    assert not any(matching_lengths(train, [text])[0])
    monkeypatch.setattr(copying, "TOKEN_BITS", 2)
    small = stream(tmp_path / "small", [5, 3, 1, 0, 2] * 40)
    assert max(matching_lengths(small, [[0, 4, 1, 3, 5, 2] * 9])[0]) > max(
        brute_force([5, 3, 1, 0, 2] * 40, [0, 4, 1, 3, 5, 2] * 9)
    )


def test_texts_without_tokens(tmp_path: Path) -> None:
    train = stream(tmp_path / "s", [1, 2, 3])
    assert [len(lengths) for lengths in matching_lengths(train, [[], []])] == [0, 0]
    assert [lengths.tolist() for lengths in matching_lengths(train, [[], [2], []])] == [[], [1], []]


def test_the_share_of_ngrams_by_hand() -> None:
    matching = [np.array([3, 2, 1, 0]), np.array([2, 1]), np.array([], int)]
    assert [copied_share(matching, n) for n in (1, 2, 3, 4, 5)] == [5 / 6, 3 / 4, 1 / 2, 0, None]


def test_memory_does_not_grow_with_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "CHUNK", 2**14)
    tokens = np.random.default_rng(0).integers(0, 500, 2**20)
    train = stream(tmp_path / "s", tokens.tolist())
    texts = [tokens[i : i + 200].tolist() for i in range(0, 2**20, 2**16)]
    tracemalloc.start()
    found = matching_lengths(train, texts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(lengths.tolist() == list(range(200, 0, -1)) for lengths in found)
    levels = 200 * 16 * 200 / 2 * 3 * 8 + 200 * 16 * 200  # of the trie: three numbers an n-gram
    assert peak < levels + 40 * 2**14 * 8 < 2**20 * 8 * 8  # the whole stream and what is computed of it would be more
