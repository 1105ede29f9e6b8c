"""Text to token files: our way of preparing it beside `datasets.map`, with the same tokenizer and the same tokens.

    python benchmarks/tokenizing.py [rounds=3] [megabytes=8] [vocab=4096] [data.dir=data]

The text is storybook's sentences in a shuffled order, as documents of 50, or made-up words where that book cannot be
had. Ours goes from the documents to a synced token shard (gengen.data.text.prepare), theirs from a Dataset in memory
to an Arrow file, asked for ids alone.
"""

import os
import random
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from turns import arguments, ratio, spread, take_turns

from gengen.config.compose import compose_train, read_command_line
from gengen.data.prepared import PrepareRequest
from gengen.data.text.encode import encoded
from gengen.data.text.fast_encoder import encoder_for
from gengen.data.text.prepare import prepare_for
from gengen.data.text.shards import TokenStream, write_shards
from gengen.data.text.tokenizer import TextTokenizer
from gengen.errors import UserError

SENTENCES = 50  # a document


def book(settings: list[str]) -> str:
    config = compose_train(read_command_line(["model=gpt", "data=storybook", *settings]))
    try:
        prepared = prepare_for(PrepareRequest(config.data, config.model, print))  # type: ignore[arg-type]
    except UserError as error:
        print(f"made-up words, as there is no storybook: {error}")
        draws = random.Random(1)
        words = ["".join(draws.choices("etaoinshrdlu", k=draws.randint(1, 9))) for _ in range(5000)]
        return " ".join(draws.choice(words) + "." * (n % 12 == 11) for n in range(100_000))
    return prepared.tokenizer.decode(prepared.train.read(0, len(prepared.train)).tolist())


def shuffled(text: str, size: int) -> list[str]:
    """Documents of the text's sentences, at least so many bytes in all."""
    sentences, draws = re.findall(r"\S[^.!?]*[.!?]+\s*", text), random.Random(0)
    documents, written = list[str](), 0
    while written < size:
        documents.append("".join(draws.choices(sentences, k=SENTENCES)))
        written += len(documents[-1].encode())
    return documents


def ours(documents: list[str], tokenizer: TextTokenizer, folder: Path) -> None:
    encode, _ = encoder_for(tokenizer, documents[:100])
    tokens = encoded(((text, True) for text in documents), tokenizer, encode, {"bytes": 0})
    write_shards(folder, "ours", tokens, tokenizer.vocab_size, tokenizer.hash)


def theirs(dataset: Dataset, tokenizer: PreTrainedTokenizerFast, folder: Path, processes: int) -> Dataset:
    def encode(rows: dict[str, list[str]]) -> Any:
        return tokenizer(rows["text"], return_attention_mask=False, return_token_type_ids=False)

    file = str(folder / "theirs.arrow")
    return dataset.map(
        encode,
        batched=True,
        num_proc=processes,
        remove_columns=["text"],
        load_from_cache_file=False,
        cache_file_name=file,
    )


def main(rounds: int, megabytes: int, vocab: int, settings: list[str]) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # in one process it works in threads, as ours does
    disable_progress_bars()
    documents = shuffled(book(settings), megabytes * 10**6)
    size = sum(len(document.encode()) for document in documents)
    tokenizer = TextTokenizer.train(documents[: len(documents) // 4], vocab)
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.to_json()))
    dataset = Dataset.from_dict({"text": documents})

    def timed(make: Callable[[Path], Any]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = perf_counter()
            make(Path(folder))
            return size / 1e6 / (perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder:
        mapped = theirs(dataset, fast, Path(folder), 1)
        expected = np.concatenate([[tokenizer.eot, *row] for row in mapped["input_ids"]])
        ours(documents, tokenizer, Path(folder))
        stream = TokenStream(Path(folder), "ours", tokenizer.hash)
        assert np.array_equal(expected, stream.read(0, len(stream))), "the tokens differ"
    print(f"{size / 1e6:.1f} MB in {len(documents):,} documents, {len(expected):,} tokens, the same in both")
    figures = take_turns(
        {
            "gengen": lambda: timed(lambda folder: ours(documents, tokenizer, folder)),
            "datasets.map": lambda: timed(lambda folder: theirs(dataset, fast, folder, 1)),
            "datasets.map num_proc=2": lambda: timed(lambda folder: theirs(dataset, fast, folder, 2)),
        },
        rounds,
    )
    print(f"\nMB/s (median; least and most of {rounds} rounds)")
    for name, speeds in figures.items():
        print(f"  {name:26}{spread(speeds, 1)}")
    for peer in list(figures)[1:]:
        print(ratio(figures, "gengen", peer))


if __name__ == "__main__":
    asked, rest = arguments(sys.argv[1:], rounds=3, megabytes=8, vocab=4096)
    main(**asked, settings=rest)
