"""What `evaluate` measures of a language model: how well it predicts, how its samples read beside real text, what they
copy, its speed.
"""

import math
import resource
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gengen.checkpoints.files import replace_text
from gengen.config.commands import DecodingSettings, TextEvaluation
from gengen.config.redact import redact
from gengen.data.text.prepare import PreparedText
from gengen.data.text.shards import TokenStream
from gengen.data.text.tokenizer import TextTokenizer
from gengen.data.text.windows import NO_LABEL, batch, shifted
from gengen.evaluation import html
from gengen.evaluation.copying import copied_share, matching_lengths
from gengen.generation.base import Sample
from gengen.generation.text.generator import TextGenerator
from gengen.io import Say

SCORED, LOGITS = 2**16, 2**24  # validation tokens at most that are looked at one by one; logits held at once
BINS, BLOCKS = 15, 8  # of confidence; of places in the window
COPIED = (4, 8, 16)  # tokens of the n-grams that are looked for in the training text
TIMED, TIMED_TOKENS = 5, 32  # draws whose latency is measured, after one that is not; tokens of each

Figures = dict[str, Any]
Tokens = Sequence[int]


@torch.inference_mode()
def predictions(
    model: nn.Module, stream: TokenStream, context: int, vocab_size: int, limit: int = SCORED
) -> list[Tensor]:
    """Predict N held-out tokens. Returns, (N,) each: nats; probability of the likeliest token; whether that was right;
    place in the window.

    They are those of the windows that bits-per-byte is measured on; of every k-th window where these hold more than
    `limit` tokens.
    """
    starts = range(0, len(stream) - 1, context)
    starts = starts[:: math.ceil(len(starts) * context / limit)]
    rows = max(1, LOGITS // (context * vocab_size))
    device = next(model.parameters()).device
    parts = []
    for some in (starts[i : i + rows] for i in range(0, len(starts), rows)):
        windows = batch(
            [shifted(stream.read(start, context + 1), min(context, len(stream) - 1 - start)) for start in some]
        )
        labels = windows["labels"].to(device)
        counted = labels != NO_LABEL
        logits, labels = model(windows["tokens"].to(device))[counted].float(), labels[counted]  # (n, V), (n,)
        (top, likeliest), normalizer = logits.max(-1), logits.logsumexp(-1)
        nats = normalizer - logits.gather(-1, labels[:, None])[:, 0]
        place = torch.arange(context, device=device).expand_as(counted)[counted]
        parts.append(
            (nats.double().cpu(), (top - normalizer).exp().double().cpu(), (likeliest == labels).cpu(), place.cpu())
        )
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def calibration(confidence: Tensor, correct: Tensor) -> Figures:
    """Return the reliability curve of the likeliest token, in bins of equal width, and its expected calibration error
    (Guo et al. 2017, eq. 3): the sum over bins of (share of the tokens) |accuracy - mean confidence|.

    confidence, correct: (N,)."""
    bins = (confidence * BINS).long().clamp(0, BINS - 1)
    tokens, sure, right = (bins.bincount(x, BINS) for x in (torch.ones_like(confidence), confidence, correct.double()))
    return {
        "accuracy": correct.double().mean().item(),
        "ece": (sure - right).abs().sum().item() / len(bins),
        "reliability": [
            {
                "confidence": (sure[b] / tokens[b]).item(),
                "accuracy": (right[b] / tokens[b]).item(),
                "tokens": int(tokens[b]),
            }
            for b in bins.unique()
        ],
    }


def loss_by_place(nats: Tensor, place: Tensor, context: int) -> list[Figures]:
    """Return the mean loss of the tokens in each of BLOCKS equal stretches of the window. nats, place: (N,)."""
    blocks = place * BLOCKS // context
    stretches = (blocks == block for block in blocks.unique())
    return [{"from": int(place[s].min()), "to": int(place[s].max()), "loss": nats[s].mean().item()} for s in stretches]


def ngrams(text: Tokens, n: int) -> list[tuple[int, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def distinct(texts: Sequence[Tokens], n: int) -> float | None:
    """Return different n-grams / all n-grams of the texts together (Li et al. 2016); falls with the amount of text."""
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def repeated(texts: Sequence[Tokens], n: int) -> float | None:
    """Return the share of a text's n-grams that it has had before (Welleck et al. 2020), mean over the texts."""
    shares = [1 - len(set(grams)) / len(grams) for text in texts if (grams := ngrams(text, n))]
    return mean(shares) if shares else None


def copies(texts: Sequence[Tokens], matching: Sequence[np.ndarray], tokenizer: TextTokenizer) -> Figures:
    """Return how much of the texts stands word for word in the training text, as `matching_lengths` found it."""
    longest = []  # of each text: in tokens, in bytes
    for text, lengths in zip(texts, matching, strict=True):
        ends = np.cumsum([0, *(len(tokenizer.decode_bytes([token])) for token in text)])
        spelt = ends[np.arange(len(text)) + lengths] - ends[:-1]
        longest.append((int(lengths.max(initial=0)), int(spelt.max(initial=0))))
    which = max(range(len(texts)), key=longest.__getitem__)
    start = int(matching[which].argmax()) if len(texts[which]) else 0
    return {f"copied_{n}": copied_share(matching, n) for n in COPIED} | {
        "mean_longest_copy": mean(float(tokens) for tokens, _ in longest),
        "longest_copy": longest[which][0],
        "longest_copy_bytes": max(size for _, size in longest),
        "longest_copies": longest,
        "longest_passage": tokenizer.decode(texts[which][start : start + longest[which][0]]),
    }


def real_passages(stream: TokenStream, lengths: Sequence[int], eot: int) -> list[list[int]]:
    """Return a held-out passage of each length: from where a document begins, as samples do, if enough are as long;
    else at even distances."""
    tokens, longest = stream.read(0, len(stream)), max(lengths)
    begins = np.flatnonzero(tokens == eot) + 1
    begins = begins[np.diff(begins, append=len(tokens) + 1) > longest]
    if len(begins) < len(lengths):
        begins = np.arange(max(len(tokens) - longest, 1))
    chosen = begins[np.arange(len(lengths)) * len(begins) // len(lengths)]
    return [tokens[begin : begin + length].tolist() for begin, length in zip(chosen, lengths, strict=True)]


def text_figures(samples: Sequence[Sample], prepared: PreparedText) -> dict[str, Figures]:
    """Return the figures of the samples, and, as their scale, of as many equally long `real` passages of held-out
    text."""
    drawn = [sample.tokens for sample in samples]
    real = real_passages(prepared.val, [len(text) for text in drawn], prepared.tokenizer.eot)
    matching = matching_lengths(prepared.train, drawn + real)
    result: dict[str, Figures] = {}
    for name, texts, found in (("samples", drawn, matching[: len(drawn)]), ("real", real, matching[len(drawn) :])):
        result[name] = {f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)} | {"repeated_4": repeated(texts, 4)}
        result[name] |= copies(texts, found, prepared.tokenizer) | {
            "mean_tokens": mean(float(len(text)) for text in texts)
        }
    result["samples"]["finish_reasons"] = dict(Counter(sample.finish_reason for sample in samples))
    return result


def latency(generator: TextGenerator, prompt: str, settings: DecodingSettings) -> Figures:
    """Return the median milliseconds from a prompt to its first token, and from one token to the next, of one text at
    a time."""
    first, later = [], []
    for draw in range(1 + TIMED):
        ticks = [time.perf_counter()]

        def tick(ticks: list[float] = ticks) -> bool:  # polled before each token
            ticks.append(time.perf_counter())
            return False

        timed = replace(settings, max_tokens=TIMED_TOKENS, seed=draw)
        list(generator.samples(prompt, timed, interrupted=tick))
        ticks.append(time.perf_counter())
        if draw:
            first.append(1000 * (ticks[2] - ticks[0]))
            later += [1000 * (after - before) for before, after in pairwise(ticks[2:])]
    return {"first_token_ms": median(first), "next_token_ms": median(later) if later else None}


def evaluate_text(
    generator: TextGenerator,
    prepared: PreparedText,
    validation: Figures,
    config: TextEvaluation,
    folder: Path,
    say: Say,
    autocast: AbstractContextManager[object] | None = None,
) -> Figures:
    """Return every figure of a language model beyond its `validation` metrics; in `folder`, write a page that shows
    them all.

    autocast: the precision that held-out text is predicted in, which the validation metrics were measured in.
    """
    model, context = generator.model, generator.context
    with autocast or nullcontext():
        nats, confidence, correct, place = predictions(model, prepared.val, context, model.vocab_size)
    result: Figures = {
        "validation": {
            "perplexity": math.exp(validation["val/loss"]),
            "tokens": len(prepared.val) - 1,
            "bytes": prepared.val_bytes,
        },
        "calibration": calibration(confidence, correct),
        "loss_by_place": loss_by_place(nats, place, context),
    }
    speed = latency(generator, prepared.tokenizer.decode(prepared.val.read(0, context // 2)), config)
    samples: list[Sample] = []
    if config.samples:
        start = time.perf_counter()
        samples = list(generator.samples("", config, n=config.samples))
        speed["tokens_per_second"] = sum(len(sample.tokens) for sample in samples) / (time.perf_counter() - start)
        result["settings"] = {f.name: getattr(config, f.name) for f in fields(DecodingSettings)}
        result |= text_figures(samples, prepared)
    speed["peak_memory_mb"] = peak_memory(generator.engine.device) / 1e6
    result["speed"] = speed | {"parameters": sum(p.numel() for p in model.parameters())}
    show(result, say)
    folder.mkdir(exist_ok=True)
    replace_text(folder / "evaluation.html", redact(page(validation | result, samples)))
    say(f"page: {folder}/evaluation.html")
    return result


def peak_memory(device: torch.device) -> int:
    """Return the most memory that was in use so far, in bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def show(result: Figures, say: Say) -> None:
    """Show a line for each group of figures."""
    for name in ("validation", "calibration", "samples", "real", "speed"):
        if name in result:
            say(html.in_line(name, result[name]))
    if "samples" in result:
        say(f"longest copy   {result['samples']['longest_copy']} tokens: {result['samples']['longest_passage']!r}")


def page(result: Figures, samples: Sequence[Sample]) -> str:
    """Return all figures and the samples in one file that needs no network."""
    facts = result | result["validation"] | result["calibration"] | result["speed"]
    pictures = curves(result["calibration"]["reliability"], result["loss_by_place"])
    parts = [side_by_side({result["checkpoint"]: facts}), f"<h2>Predictions of held-out text</h2>{pictures}"]
    if samples:
        columns = {name: result[name] for name in ("samples", "real")}
        parts.append(f"<h2>Samples beside as much held-out text</h2>{side_by_side(columns)}")
        parts.append("<h3>Longest passages that training text holds</h3>")
        parts += [f"<p>{name}</p>{html.preformatted(column['longest_passage'])}" for name, column in columns.items()]
        for sample, (tokens, size) in zip(samples, result["samples"]["longest_copies"], strict=True):
            title = f"{sample.index}: {sample.finish_reason}, longest copy {tokens} tokens, {size} bytes"
            parts.append(f"<h3>{title}</h3>{html.preformatted(sample.text)}")
    return html.page("Evaluation", *parts)


def side_by_side(columns: dict[str, Figures]) -> str:
    """Return the numbers of each column in rows by their names."""
    names = [name for name, value in next(iter(columns.values())).items() if isinstance(value, (int, float))]
    cells = ([name, *(html.number(column[name]) for column in columns.values())] for name in names)
    return html.table([["", *columns], *cells])


def curves(reliability: list[Figures], by_place: list[Figures]) -> str:
    """Draw accuracy and number of predictions by confidence, and loss by place in the window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    accuracy, number, loss = figure.subplots(1, 3)
    confidence, right, tokens = zip(*(point.values() for point in reliability), strict=True)
    accuracy.plot([0, 1], [0, 1], "--", color="0.6")
    accuracy.plot(confidence, right, "o-")
    number.bar(confidence, tokens, width=0.8 / BINS)
    loss.plot([(block["from"] + block["to"]) / 2 for block in by_place], [block["loss"] for block in by_place], "o-")
    accuracy.set(xlabel="confidence in the likeliest token", ylabel="share that was right")
    number.set(xlabel="confidence in the likeliest token", ylabel="predictions")
    loss.set(xlabel="place in the window", ylabel="loss, nats a token")
    return html.drawn(figure)
