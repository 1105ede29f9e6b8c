"""Whether a text can be the same bits whatever is drawn beside it on this machine, and what that costs.

Kernels add up in an order that depends on how many rows they are given. On the CPUs measured the order is one and the
same for all numbers of rows from some small number on (4 without AVX512, up to 16 with AMX), so an engine that never
goes below it is exact. It is found by trying, once a process for each shape of model.
"""

import torch
from torch import Tensor

from gengen.generation.text.engine import CHUNK, Engine, chunk_of
from gengen.models.gpt import GPT

CANDIDATES = (4, 8, 16, 32)
TOKENS = 44  # of the text that is compared
FOUND: dict[tuple[object, ...], int | None] = {}


def build_engine(model: GPT, precision: str = "fp32", compile: bool = False, exact: bool = True) -> Engine:
    """Return an engine; an exact one, by the fewest rows that this takes, if that is wanted, the weights are fp32, the
    step is not compiled, and CANDIDATES are enough."""
    weight = model.embedding.weight
    if not exact or compile or precision != "fp32" or weight.dtype != torch.float32:
        return Engine(model, precision, compile)
    key = (repr(model.config), str(weight.device), torch.get_num_threads())
    if key not in FOUND:
        FOUND[key] = next((rows for rows in CANDIDATES if is_exact(Engine(model, least_rows=rows))), None)
    return Engine(model, least_rows=FOUND[key])


def is_exact(engine: Engine) -> bool:
    """Return whether a text alone, read at once, and the same text among others, read in pieces, have the same
    logits."""
    vocabulary, context = engine.model.vocab_size, engine.model.config.context
    assert context
    length = min(TOKENS, context)
    text = [(7919 * i + 13) % vocabulary for i in range(length)]
    longer, shorter = [*text[::-1], *text][:context], text[5:21] or text
    some = [shorter] * (engine.least_rows or 1)  # with them there are more rows than the engine pads to
    with engine.decoding():
        alone = last_logits(engine, [text], 0, CHUNK)
        return all(
            torch.equal(alone, last_logits(engine, texts, place, chunk))
            for texts, place, chunk in (
                ([longer, text], 1, 16),
                ([*some, text, *[shorter] * 6], len(some), 16),
            )
        )


def last_logits(engine: Engine, texts: list[list[int]], place: int, chunk: int) -> Tensor:
    """Read all texts at once, at most `chunk` tokens of each at a time, the last one by a step. Returns the logits
    after the text at a place, (V,)."""
    memory, lengths = engine.memory(len(texts), max(map(len, texts))), [0] * len(texts)
    context = engine.model.config.context
    assert context
    while unread := [i for i, text in enumerate(texts) if lengths[i] < len(text) - 1]:
        T = min(chunk, min(chunk_of(len(texts[i]) - 1 - lengths[i], context - lengths[i]) for i in unread))
        parts = [texts[i][lengths[i] : -1][:T] for i in unread]
        padded = [[*part, *[0] * (T - len(part))] for part in parts]
        engine.read(padded, unread, [lengths[i] for i in unread], memory)
        for i, part in zip(unread, parts, strict=True):
            lengths[i] += len(part)
    return engine.step([text[-1] for text in texts], lengths, memory)[place]
