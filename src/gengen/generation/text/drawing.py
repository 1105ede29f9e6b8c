"""From logits to the next token of each row: its own controls, its own random number."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gengen.errors import UserError
from gengen.generation.text.processor import name_of, processed
from gengen.generation.text.row import Row
from gengen.generation.text.sampling import draw, next_token_probabilities, penalized


def add_tokens(logits: Tensor, rows: Sequence[Row]) -> None:
    """Draw a token for each row by its logits (n, V) fp32, and add it. A row for which none can be drawn ends with
    "error", and no other row with it."""
    logprobs = logits.log_softmax(dim=-1)
    alike: dict[object, list[int]] = {}
    for i, row in enumerate(rows):
        row.look_up_allowed()
        if not row.text.finish_reason:
            alike.setdefault(row.alike, []).append(i)
    for places in alike.values():
        some = [rows[i] for i in places]
        every = len(some) == len(rows)
        try:
            tokens, probabilities = draw_alike(logits if every else logits[places], some)
        except UserError as error:  # a processor's
            for row in some:
                row.text.fail(str(error))
            continue
        told = logprobs if every else logprobs[places]
        asked = [row.request.settings.logprobs_of == "drawn" for row in some]
        if any(asked):
            drawn_from = torch.tensor(asked, device=told.device)[:, None]
            told = torch.where(drawn_from, probabilities.log().to(told), told)
        drawn = torch.tensor(tokens, device=told.device).clamp(max=told.shape[-1] - 1)
        for i, (row, token, logprob) in enumerate(
            zip(some, tokens, told.gather(1, drawn[:, None])[:, 0].tolist(), strict=True)
        ):
            if token == told.shape[-1]:
                row.text.fail(f"the logits are not finite, or no token is allowed: {why_none(logits[places[i]], row)}")
            else:
                row.add(token, logprob, likeliest(told[i], row.request.top_logprobs))


def add_prompt_logprobs(logits: Tensor, row: Row) -> None:
    """Keep the log-probabilities of the tokens of a prompt that follow those a row reads next, by logits (n, V) after
    each of the latter."""
    logprobs = logits.log_softmax(dim=-1)
    following = row.tokens[row.cached + 1 : row.cached + 1 + len(logits)]
    for own, token in zip(logprobs, following, strict=True):
        row.text.prompt_logprobs.append(float(own[token]))
        row.text.prompt_top_logprobs.append(likeliest(own, row.request.top_logprobs))


def draw_alike(logits: Tensor, rows: Sequence[Row]) -> tuple[list[int], Tensor]:
    """Return a token for each of some rows with the same controls, by their logits (n, V); V where none is possible.
    And what they were drawn from, probabilities (n, V). Raises UserError where their processor does."""
    c = rows[0].request.settings
    wanted = constrained(controlled(logits, rows), rows)
    numbers = torch.tensor([row.next_number() for row in rows], dtype=torch.float64, device=logits.device)
    probabilities = next_token_probabilities(wanted, c.temperature, c.top_k, c.top_p, c.min_p)
    return draw(probabilities, numbers).tolist(), probabilities


def controlled(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Return logits (n, V) with the bias, the penalties and the processor that some rows share."""
    first, c = rows[0], rows[0].request.settings
    if first.bias is not None:
        logits = logits + first.bias
    if first.counts is not None:
        prompted = torch.stack([row.prompted for row in rows if row.prompted is not None])
        counts = torch.stack([row.counts for row in rows if row.counts is not None])
        logits = penalized(logits, prompted, counts, c.repetition_penalty, c.presence_penalty, c.frequency_penalty)
    if (processor := first.request.processor) is not None:
        logits = processed(processor, logits.clone(), [row.tokens for row in rows])
    return logits


def constrained(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Return logits (n, V) in which what a row's constraint forbids is -inf."""
    if all(row.allowed is None for row in rows):
        return logits
    everything = torch.ones(logits.shape[-1], dtype=torch.bool)
    masks = [everything if row.allowed is None else row.allowed for row in rows]
    return logits.masked_fill(~torch.stack(masks).to(logits.device), float("-inf"))


def likeliest(logprobs: Tensor, count: int) -> list[tuple[int, float]]:
    """Return the `count` likeliest tokens by log-probabilities (V,), each with its own."""
    if not count:
        return []
    values, tokens = logprobs.topk(min(count, len(logprobs)))
    return list(zip(tokens.tolist(), values.tolist(), strict=True))


def why_none(logits: Tensor, row: Row) -> str:
    """Return why no token can be drawn for a row, by its logits (V,)."""
    finite = bool(logits.isfinite().all())
    if finite and row.allowed is not None and not bool(row.allowed.any()):
        return "the constraint allows none"
    if (processor := row.request.processor) is not None:
        plain = logits if row.bias is None else logits + row.bias
        if bool(next_token_probabilities(plain[None]).isfinite().all()):
            return f"processor {name_of(processor)} forbids everything, or made them so"
    return "the training diverged, the weights are damaged, or logit_bias forbids everything"
