"""What each control makes of the next token's distribution."""

from typing import Any

from torch import Tensor

from gengen.generation.text.row import Row
from gengen.generation.text.sampling import next_token_probabilities, penalized

NEUTRAL = {"temperature": 1, "top_k": None, "top_p": None, "min_p": None}
"""Controls in the order in which they are applied, and how they are where they do nothing."""


def stages(row: Row, logits: Tensor) -> dict[str, Tensor]:
    """Return the distribution of a row's next token by its logits (V,), under the model itself and after each control
    that its settings have, in order: name -> (V,). The last one is what is drawn from."""
    c, rows = row.request.settings, logits[None]
    found = {"model": next_token_probabilities(rows)[0]}
    if row.bias is not None:
        rows = rows + row.bias
        found["logit_bias"] = next_token_probabilities(rows)[0]
    if row.counts is not None and row.prompted is not None:
        penalties = (c.repetition_penalty, c.presence_penalty, c.frequency_penalty)
        rows = penalized(rows, row.prompted[None], row.counts[None], *penalties)
        found["penalties"] = next_token_probabilities(rows)[0]
    applied: dict[str, Any] = {}
    for name, neutral in NEUTRAL.items():
        if (value := getattr(c, name)) != neutral:
            applied[name] = value
            found[name] = next_token_probabilities(rows, **applied)[0]
    return found
