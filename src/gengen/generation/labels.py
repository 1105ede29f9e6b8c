"""Which class each image is to be of."""

from collections.abc import Sequence
from typing import Any

from gengen.config.errors import UserError, did_you_mean
from gengen.models.unet import NULL


def labels_of(wanted: Sequence[str | int], classes: Sequence[str], n: int) -> list[int]:
    """n labels: the wanted classes in turn, by name or number; without a wish all classes in turn, NULL where there are none."""
    names = {name.lower(): number for number, name in enumerate(classes)}

    def number(label: str | int) -> int:
        text = str(label).strip().lower()
        if text in names:
            return names[text]
        if text.isdigit() and int(text) < len(classes):
            return int(text)
        known = did_you_mean(text, names) if names else "; this model was trained without classes"
        raise UserError(f"labels={label}: no such class{known}")

    parts = [part for label in wanted for part in ([label] if str(label).lower() in names else str(label).split(","))]
    turn = [number(part) for part in parts] or list(range(len(classes))) or [NULL]
    return [turn[i % len(turn)] for i in range(n)]


def named(label: int, classes: Sequence[str]) -> dict[str, Any]:
    """What samples.json says of an image's class: nothing, where it has none."""
    return {"label": label, "class": classes[label]} if label >= 0 else {}
