"""How well a marked text is found, what the mark costs, and how unmarked texts score.

    python benchmarks/watermark.py RUN [n=200] [tokens=200] [delta=2] [top_p=1] [batch=50] [keys=20]

Texts are drawn at temperature 1 from nothing. Found: z >= 4. Replaced: a share of the tokens, by any of the
vocabulary. Again: from the text, tokenised anew, as detect does. Unmarked: windows of the run's own unmarked texts, by
several keys; with h = 1 a key has a bias of its own, as frequent pairs are green or not for all texts.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from turns import arguments

from gengen.generation.base import Sample
from gengen.generation.load import load_generator
from gengen.generation.secret_key import new_key, read_key
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.watermark import Watermark

FOUND = 4.0


def replaced(tokens: list[int], share: float, vocab_size: int, seed: int) -> list[int]:
    """Put another token in the place of a share of them."""
    draw = np.random.default_rng(seed)
    changed = np.array(tokens)
    places = draw.choice(len(tokens), round(share * len(tokens)), replace=False)
    changed[places] = draw.integers(1, vocab_size, len(places))
    return changed.tolist()


def row(name: str, mark: Watermark, texts: Sequence[Sequence[int]]) -> None:
    z = np.array([mark.detect([0, *text]).z for text in texts])
    print(f"  {name:34} z median {np.median(z):5.1f}, least {z.min():5.1f}   found {(z >= FOUND).mean():.3f}")


def nats(samples: Sequence[Sample]) -> float:
    """The model's own loss on samples, nats a token."""
    return -float(np.concatenate([sample.logprobs for sample in samples]).mean())


def bits_per_byte(samples: Sequence[Sample]) -> float:
    """The same, in bits a byte of the texts: a mark may also prefer tokens that are longer or shorter."""
    total = -float(np.concatenate([sample.logprobs for sample in samples]).sum())
    return total / np.log(2) / sum(len(sample.text.encode()) for sample in samples)


def main(run: str, n: int, tokens: int, delta: float, top_p: float, batch: int, keys: int) -> None:
    generator = load_generator(run)
    assert isinstance(generator, TextGenerator)
    generator.batch_size = batch
    tokenizer = generator.tokenizer
    with tempfile.TemporaryDirectory() as folder:
        new_key(Path(folder) / "key")
        mark = Watermark(read_key(Path(folder) / "key"), delta)
    plain = generator.generate("", n=n, max_tokens=tokens, temperature=1.0, top_p=top_p)
    marked = generator.generate("", n=n, max_tokens=tokens, temperature=1.0, top_p=top_p, processor=mark)
    whole = [sample for sample in marked if len(sample.tokens) == tokens]
    drawn = [sample.tokens for sample in whole]
    print(f"delta {delta:g}, {len(whole)} of {n} texts have {tokens} tokens")
    for length in sorted({tokens // 4, tokens // 2, tokens}):
        row(f"{length} tokens", mark, [text[:length] for text in drawn])
    for share in (0.1, 0.2, 0.4):
        changed = [replaced(text, share, tokenizer.vocab_size, i) for i, text in enumerate(drawn)]
        row(f"{tokens} tokens, {share:.0%} replaced", mark, changed)
    row(f"{tokens} tokens, again", mark, [tokenizer.encode(sample.text) for sample in whole])
    cost = nats(marked) / nats(plain) - 1
    print(f"nats a token, by the model itself: {nats(plain):.3f} unmarked, {nats(marked):.3f} marked: {cost:+.1%}")
    bits = bits_per_byte(plain), bits_per_byte(marked)
    print(f"bits a byte: {bits[0]:.3f} unmarked, {bits[1]:.3f} marked: {bits[1] / bits[0] - 1:+.1%} (bar 8 %)")
    unmarked = [sample.tokens for sample in plain if len(sample.tokens) > tokens // 4]
    z = np.array([[Watermark(bytes([key]) * 32).detect([0, *text]).z for text in unmarked] for key in range(keys)])
    print(f"{z.size} unmarked: z mean {z.mean():+.3f}, deviation {z.std():.3f}, most {z.max():.1f}; "
          f"means of single keys {z.mean(1).min():+.2f} to {z.mean(1).max():+.2f}")  # fmt: skip
    eight = dict(n=8, max_tokens=tokens, temperature=1.0, top_p=top_p)
    cpu = {name: [cpu_seconds(lambda p=p: generator.generate("", **eight, processor=p)) for _ in range(5)]
           for name, p in {"unmarked": None, "marked": mark}.items()}  # fmt: skip
    least = {name: min(seconds) / tokens * 1e3 for name, seconds in cpu.items()}
    print(f"CPU ms a step of 8 rows: {least['unmarked']:.2f} unmarked, {least['marked']:.2f} marked: "
          f"{least['marked'] / least['unmarked'] - 1:+.1%}")  # fmt: skip


def cpu_seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


if __name__ == "__main__":
    asked, unknown = arguments(sys.argv[1:], n=200, tokens=200, delta=2.0, top_p=1.0, batch=50, keys=20)
    if len(unknown) != 1:
        raise SystemExit("which run? python benchmarks/watermark.py RUN")
    main(unknown[0], **asked)
