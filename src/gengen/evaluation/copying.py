"""How much of a text stands word for word in the training text: exact, without an index of it, in one pass."""

from collections.abc import Sequence

import numpy as np

from gengen.data.text.shards import TokenStream

CHUNK = 2**18  # tokens of the stream read at a time
TOKEN_BITS = 32  # a trie's edge is (node << TOKEN_BITS) + token


class Trie:
    """The suffixes of some texts, a level at a time and only as deep as is asked for.

    A node of level n is an (n + 1)-gram of the texts. `edges`: (K,) sorted, the node above and the token that leads to
    each node; `positions`, `nodes`: where those n-grams begin in the texts, and which each is.
    """

    def __init__(self, texts: Sequence[Sequence[int]]):
        self.tokens = np.concatenate([np.asarray(text, np.int64) for text in texts])
        lengths = np.array([len(text) for text in texts])
        self.ends = np.cumsum(lengths).repeat(lengths)  # of the text that each token is in
        self.levels: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # edges, positions, nodes

    def level(self, n: int) -> np.ndarray:
        """Its edges."""
        if n == len(self.levels):
            _, positions, above = (
                self.levels[-1] if n else (None, np.arange(len(self.tokens)), np.zeros_like(self.tokens))
            )
            inside = positions + n < self.ends[positions]
            positions, above = positions[inside], above[inside]
            edges, nodes = np.unique((above << TOKEN_BITS) + self.tokens[positions + n], return_inverse=True)
            self.levels.append((edges, positions, nodes))
        return self.levels[n][0]


def matching_lengths(stream: TokenStream, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """For each position of each text, how many tokens from there on stand one behind the other somewhere in the
    stream.

    Every position of the stream walks down the trie of the texts' suffixes until it falls off: there is nothing to
    hash, so no count is ever too high. Costs 2 to 5 s for 10^7 tokens of stream; holds a chunk of it and the trie as
    deep as the longest match.
    """
    if not any(map(len, texts)):
        return [np.zeros(0, np.int64) for _ in texts]
    trie = Trie(texts)
    reached: list[np.ndarray] = []  # for each level, which of its nodes the stream holds
    longest = max(map(len, texts))
    for start in range(0, len(stream), CHUNK):
        chunk = stream.read(start, min(CHUNK + longest, len(stream) - start))
        at = np.arange(min(CHUNK, len(chunk)))
        node = np.zeros_like(at)
        for n in range(longest):
            edges = trie.level(n)
            inside = np.searchsorted(at, len(chunk) - n)
            edge = (node[:inside] << TOKEN_BITS) + chunk[at[:inside] + n]
            node = edges.searchsorted(edge).clip(max=len(edges) - 1)
            walks = edges[node] == edge
            at, node = at[:inside][walks], node[walks]
            if not len(at):
                break
            if n == len(reached):
                reached.append(np.zeros(len(edges), bool))
            reached[n][node] = True
    matching = np.zeros_like(trie.tokens)
    for (_, positions, nodes), there in zip(trie.levels, reached, strict=False):
        matching[positions] += there[nodes]
    return np.split(matching, np.cumsum([len(text) for text in texts])[:-1])


def copied_share(matching: Sequence[np.ndarray], n: int) -> float | None:
    """The share of all n-grams of the texts that stand in the stream; None where no text has n tokens."""
    starts = [lengths[: max(len(lengths) - n + 1, 0)] for lengths in matching]
    grams = sum(map(len, starts))
    return sum(int((lengths >= n).sum()) for lengths in starts) / grams if grams else None
