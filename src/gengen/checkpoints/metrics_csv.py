"""metrics.csv: a row for each logged step, cut back to the checkpoint on resume."""

import csv
import io
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from gengen.checkpoints.files import replace_text


class Logger(Protocol):
    """What else takes metrics, such as Lightning's loggers."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Take the new columns of a step's row."""


class Metrics:
    """The run's curve. `columns` begin with step and seconds; a row may leave others empty."""

    def __init__(self, path: Path, columns: list[str]):
        self.path, self.columns = path, columns
        self.last: dict[str, Any] = {}
        self._length = 0  # bytes before the last row

    def start(self, step: int) -> None:
        """Begin at a step: keep the rows up to it, drop the rest."""
        rows = [row for row in read_metrics(self.path) if row["step"] <= step]
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({key: value for key, value in row.items() if value is not None} for row in rows[:-1])
        self._length = len(text.getvalue().encode())
        last = rows[-1] if rows else {}
        self.last = {key: value for key, value in last.items() if value is not None and key in self.columns}
        writer.writerows([self.last] if rows else [])
        replace_text(self.path, text.getvalue())

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; one for the same step as the last is merged into it."""
        with self.path.open("r+", encoding="utf8", newline="") as file:
            if row["step"] == self.last.get("step"):
                row = self.last | row
                file.truncate(self._length)
            file.seek(0, io.SEEK_END)
            self._length, self.last = file.tell(), row
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow({k: _short(v) for k, v in row.items()})


def _short(value: object) -> object:
    return f"{value:.7g}" if isinstance(value, float) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.csv: step as int, the rest as float, None where empty.

    An incomplete row, such as a torn last one, and what follows it are left out.
    """
    if not path.exists():
        return []
    rows = []
    unfit = suppress(TypeError, ValueError, KeyError, csv.Error)
    with unfit, path.open(encoding="utf8", errors="replace", newline="") as file:
        for row in csv.DictReader(file):
            rows.append(
                {key: float(value) if value else None for key, value in row.items()} | {"step": int(row["step"])}
            )
    return rows


def latest_metrics(path: Path) -> dict[str, float]:
    """Return the last value of each column that has one."""
    latest: dict[str, float] = {}
    for row in read_metrics(path):
        latest |= {name: value for name, value in row.items() if value is not None}
    return latest
