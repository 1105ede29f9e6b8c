"""Data sets on the Hugging Face hub: asked once, for some seconds at most, and streamed."""

import os
import queue
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from gengen.errors import UserError

PROBE = 3.0  # seconds the hub has to answer


@lru_cache
def hub_facts(name: str | None) -> tuple[str, str]:
    """Return (revision, licence) of a data set on the hub, from one request.

    Raises UserError if the hub does not answer in 3 s.
    """
    if not name:
        raise UserError("data.hub is not set")
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        if os.environ.get(variable, "").upper() in {"1", "ON", "YES", "TRUE"}:
            raise UserError(f"the hub is not asked for {name} ({variable} is set)")
    answer: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        try:
            from huggingface_hub import HfApi

            answer.put(HfApi().dataset_info(name, timeout=PROBE))
        except Exception as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()  # no timeout of a request covers the look-up of the host's name
    try:
        info = answer.get(timeout=PROBE)
    except queue.Empty:
        info = TimeoutError(f"nothing in {PROBE:g} s")
    if isinstance(info, Exception):
        first_line = (str(info).strip().splitlines() or [""])[0]
        raise UserError(f"the hub does not answer for {name} ({type(info).__name__}: {first_line})")
    return info.sha, str((info.card_data or {}).get("license") or "unknown")


def hub_rows(name: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, row) of the train split, streamed."""
    revision, _ = hub_facts(name)
    try:
        from datasets import load_dataset

        yield from enumerate(load_dataset(name, split="train", revision=revision, streaming=True))
    except UserError:
        raise
    except Exception as error:  # the library raises whatever its network, file and format layers raise
        raise UserError(f"data.hub={name}: cannot be read to the end ({type(error).__name__}: {error})") from error


class HubSet:
    """What sources on the hub have in common. The revision is no part of the facts: it must not be needed to open what
    is prepared; meta.json records it."""

    def __init__(self, name: str | None):
        self.name = name

    def describe(self) -> tuple[str, str]:
        revision, licence = hub_facts(self.name)
        return f"hub {self.name}@{revision}", licence

    def facts(self) -> dict[str, Any]:
        return {"hub": self.name}
