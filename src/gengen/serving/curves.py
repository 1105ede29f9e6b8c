"""metrics.csv as it grows: whole rows after a step, thinned where they are many."""

import csv
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_BYTES = 8 * 2**20  # read of a file, its newest ones
MAX_ROWS = 1500  # answered
MAX_COLUMNS, MAX_NAME = 64, 80  # those beyond are left out; characters of a column's name
MAX_HEAD = 2**16  # bytes of the line that names the columns


@dataclass
class Curves:
    """Rows of a metrics.csv by column.

    columns: name -> a value for each row, None where the row has none. last: the step of the last row of the file,
    -1 = there is none. writing: changes where rows before may have gone, as a run that goes on cuts its file back.
    thinned: every how many-th row is answered. complete: whether the file was read from its beginning, not only its
    newest rows. unreadable: lines that are no rows.
    """

    columns: dict[str, list[float | None]] = field(default_factory=dict)
    last: int = -1
    writing: str = ""
    thinned: int = 1
    complete: bool = True
    unreadable: int = 0

    def tree(self) -> dict[str, Any]:
        """Return them as JSON has them, which knows no NaN and no infinity: those are texts."""
        columns = {name: [spelled(value) for value in values] for name, values in self.columns.items()}
        return vars(self) | {"columns": columns}


def spelled(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


def read_curves(path: Path, after: int) -> Curves:
    """Return the rows of steps after one. A line that is not whole yet is left for the next time.

    The last row may still gain values: ask for it again.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            head = file.readline(MAX_HEAD)
            begin = max(len(head), status.st_size - MAX_BYTES)
            file.seek(begin)
            body = file.read(MAX_BYTES + 1)
    except OSError:
        return Curves()
    whole = body[: body.rfind(b"\n") + 1]
    if begin > len(head):  # in the middle of a line
        whole = whole[whole.find(b"\n") + 1 :]
    names = cells(head) if head.endswith(b"\n") else []
    lines = whole.splitlines()
    rows = [row for line in lines if (row := row_of(names, line))]
    later = [row for row in rows if row[0] > after]
    thinned = -(-len(later) // MAX_ROWS) or 1
    shown = later[::-thinned][::-1]  # the last row is always among them
    return Curves(
        {name[:MAX_NAME]: [values[i] for _, values in shown] for i, name in enumerate(names[:MAX_COLUMNS])},
        last=rows[-1][0] if rows else -1,
        writing=f"{status.st_ino:x}",
        thinned=thinned,
        complete=begin <= len(head),
        unreadable=len(lines) - len(rows),
    )


def cells(line: bytes) -> list[str]:
    """Return the cells of a line, none where it is not CSV."""
    try:
        return next(csv.reader([line.decode(errors="replace").rstrip("\r\n")]), [])
    except csv.Error:
        return []


def row_of(names: list[str], line: bytes) -> tuple[int, list[float | None]] | None:
    """Return the step of a line and its values, None where it is no row."""
    found = cells(line)
    if len(found) != len(names) or "step" not in names:
        return None
    try:
        step = int(found[names.index("step")])
        return (step, [float(cell) if cell else None for cell in found]) if 0 <= step < 2**53 else None
    except ValueError:
        return None
