"""report.html of a run: its curves, its samples over time, its data and its config."""

from pathlib import Path
from typing import Any

from gengen.checkpoints.files import read_json, replace_text, to_json
from gengen.checkpoints.metrics_csv import read_metrics
from gengen.config.redact import redact
from gengen.evaluation.html import drawn, image, page, preformatted, table

Row = dict[str, Any]
"""A row of metrics.csv: column -> its value, None where the row has none."""


SHOWN = (".png", ".txt", ".csv", ".json")
"""Sample files that the report shows: images, and what can be read as text."""


def curves(rows: list[Row]) -> str:
    """Draw every loss and bits-per-byte of metrics.csv against steps and against seconds of training."""
    from matplotlib.figure import Figure

    names = [n for n in rows[0] if "/" in n and any(row[n] is not None for row in rows)]
    kinds = sorted({name.split("/")[1] for name in names})
    figure = Figure(figsize=(11, 3.6 * len(kinds)), layout="constrained")
    axes = figure.subplots(len(kinds), 2, squeeze=False)
    for kind, pair in zip(kinds, axes, strict=True):
        for x, axis in zip(("step", "seconds"), pair, strict=True):
            for name in (n for n in names if n.endswith("/" + kind)):
                points = [(row[x], row[name]) for row in rows if row[name] is not None]
                axis.plot(*zip(*points, strict=True), "." if len(points) < 3 else "-", label=name)
            axis.set(xlabel=x, ylabel={"bpb": "bits per byte"}.get(kind, kind))
            axis.grid(alpha=0.3)
            axis.legend(frameon=False)
    return drawn(figure)


def samples(folder: Path) -> str:
    """Return the sample files, in order of their steps."""
    parts = []
    for path in sorted(path for path in folder.glob("step-*") if path.suffix in SHOWN):
        is_image = path.suffix == ".png"
        shown = image(path.read_bytes()) if is_image else preformatted(path.read_text(encoding="utf8"))
        parts.append(f"<h3>step {int(path.stem.removeprefix('step-'))}</h3>{shown}")
    return "".join(parts) or "<p>none yet</p>"


def facts(run: Path, rows: list[Row]) -> dict[str, str]:
    """Return what a reader wants to know first."""
    config = read_json(run / "config.json")
    last = {name: value for row in rows for name, value in row.items() if value is not None}
    known = {
        "model": f"{config['model']['name']} {config['model'].get('size') or ''}",
        "data": config["data"]["name"],
        "steps": f"{last['step']} of {config['trainer']['max_steps']}",
        "training time": f"{last['seconds']:.0f} s",
        "throughput": throughput(rows),
    }
    return known | {name: f"{value:.4f}" for name, value in last.items() if "/" in name}


def throughput(rows: list[Row]) -> str:
    """Return the median speed of the logged steps."""
    speeds = sorted(
        row[name] for row in rows for name in row if name.endswith("_per_second") and row[name] is not None
    )
    return f"{speeds[len(speeds) // 2]:,.0f} a second (median of the logged steps)" if speeds else "not measured"


def write_report(run: Path, data: list[str]) -> Path:
    """Write run/report.html from what the run has on disk and the lines that describe its data; return its path."""
    rows = read_metrics(run / "metrics.csv")
    parts = [
        table(facts(run, rows).items() if rows else []),
        f"<h2>Curves</h2>{curves(rows) if rows else ''}",
        f"<h2>Data</h2>{preformatted(chr(10).join(data))}",
        f"<h2>Samples</h2>{samples(run / 'samples')}",
        f"<h2>Config</h2>{preformatted(to_json(read_json(run / 'config.json')))}",
    ]
    replace_text(run / "report.html", redact(page(run.name, *parts)))
    return run / "report.html"
