"""Declaring a config field: its default, what it is for, what it may be, and whether a resume may change it."""

import math
import operator
from collections.abc import Sequence
from dataclasses import Field, field
from typing import Any, Literal

from gengen.io import Json

OnResume = Literal["free", "warned", "fixed"]
"""free: taken silently; warned: taken, with the change printed; fixed: refused."""
BOUNDS = {
    "low": (">=", operator.ge),
    "above": (">", operator.gt),
    "high": ("<=", operator.le),
    "below": ("<", operator.lt),
}


def option(
    default: Json,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
    prose: bool = False,
    on_resume: OnResume = "fixed",
) -> Any:
    """A field with its one-line doc; bounds low <= value <= high, above < value < below; or the only values allowed.
    prose: a list of texts of any kind, each of which is given by itself."""
    metadata = {"doc": doc, "low": low, "high": high, "above": above, "below": below, "choices": choices}
    metadata |= {"prose": prose, "on_resume": on_resume}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def positive(default: int | float | None, doc: str, on_resume: OnResume = "fixed") -> Any:
    return option(default, doc, above=0, on_resume=on_resume)


def choice(default: str | None, choices: Sequence[str], doc: str, on_resume: OnResume = "fixed") -> Any:
    return option(default, doc, choices=choices, on_resume=on_resume)


def run_of(doc: str) -> Any:
    """A field that names a run, which must exist when a new run begins; that is looked up before anything slow."""
    return field(default=None, metadata={"doc": doc, "run": True, "on_resume": "fixed"})


def allowed(f: "Field[Json]") -> str:
    """What a field accepts, in words; empty if its type says it all."""
    m = f.metadata
    if m.get("choices"):
        return "one of " + ", ".join(m["choices"])
    return " and ".join(f"{sign} {m[name]:g}" for name, (sign, _) in BOUNDS.items() if m.get(name) is not None)


def within(f: "Field[Json]", value: Json) -> bool:
    """Whether a value of the right type is one the field accepts; of a list, each item."""
    if isinstance(value, list):
        return all(within(f, item) for item in value)
    m = f.metadata
    if m.get("choices"):
        return value in m["choices"]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    return math.isfinite(value) and all(
        holds(value, m[name]) for name, (_, holds) in BOUNDS.items() if m.get(name) is not None
    )
