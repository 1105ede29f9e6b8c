"""Figures in Prometheus' text format (version 0.0.4)."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Labels = Mapping[str, str]


class Histogram:
    """Counts of observations by upper bound."""

    def __init__(self, bounds: Sequence[float]):
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        place = next((i for i, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        self.counts[place] += 1
        self.total += value


class Exposition:
    """A page of metrics, written family by family."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def family(self, name: str, kind: str, doc: str, samples: Iterable[tuple[Labels, float]]) -> None:
        """Write a counter or a gauge, a line for each set of labels."""
        self.lines += [f"# HELP {name} {doc}", f"# TYPE {name} {kind}"]
        self.lines += [f"{name}{written(labels)} {value}" for labels, value in samples]

    def histogram(self, name: str, doc: str, samples: Iterable[tuple[Labels, Histogram]]) -> None:
        self.lines += [f"# HELP {name} {doc}", f"# TYPE {name} histogram"]
        for labels, found in samples:
            bounds = [*(f"{bound:g}" for bound in found.bounds), "+Inf"]
            counts = list(accumulate(found.counts))
            for bound, count in zip(bounds, counts, strict=True):
                self.lines.append(f"{name}_bucket{written({**labels, 'le': bound})} {count}")
            self.lines += [
                f"{name}_sum{written(labels)} {found.total}",
                f"{name}_count{written(labels)} {counts[-1]}",
            ]

    def text(self) -> str:
        return "\n".join([*self.lines, ""])


def written(labels: Labels) -> str:
    if not labels:
        return ""
    escapes = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    return "{" + ",".join(f'{name}="{value.translate(escapes)}"' for name, value in labels.items()) + "}"
