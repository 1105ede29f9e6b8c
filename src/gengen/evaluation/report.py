"""report.html of a run: its curves, its samples over time, its data and its config, in one file that needs no network."""

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

from gengen.checkpoints.files import read_json, replace_text, to_json
from gengen.checkpoints.metrics_csv import read_metrics
from gengen.config.redact import redact

STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
pre { background: #f6f6f4; padding: .8rem; overflow-x: auto; white-space: pre-wrap } img { max-width: 100% }
table { border-collapse: collapse } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }"""


SHOWN = (".png", ".txt", ".csv", ".json")
"""Sample files that the report shows: images, and what can be read as text."""


def in_line(name: str, figures: dict[str, Any]) -> str:
    """Figures for the screen."""
    return f"{name:<15}" + "  ".join(
        f"{key} {value:.4g}" for key, value in figures.items() if isinstance(value, float)
    )


def page(title: str, *parts: str) -> str:
    """One file that needs no network."""
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>"
    return "\n".join([f"<!doctype html><html lang='en'>{head}", *parts, "</html>\n"])


def image(png: bytes) -> str:
    return f"<img src='data:image/png;base64,{base64.b64encode(png).decode()}'>"


def drawn(figure: Any) -> str:
    """A matplotlib figure as an image."""
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return image(png.getvalue())


def curves(rows: list[dict[str, Any]]) -> str:
    """Every loss and bits-per-byte of metrics.csv against steps and against seconds of training."""
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
    """The sample files, in order of their steps."""
    parts = []
    for path in sorted(path for path in folder.glob("step-*") if path.suffix in SHOWN):
        shown = (
            image(path.read_bytes())
            if path.suffix == ".png"
            else f"<pre>{escape(path.read_text(encoding='utf8'))}</pre>"
        )
        parts.append(f"<h3>step {int(path.stem.removeprefix('step-'))}</h3>{shown}")
    return "".join(parts) or "<p>none yet</p>"


def facts(run: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    """What a reader wants to know first."""
    config = read_json(run / "config.json")
    last = {name: value for row in rows for name, value in row.items() if value is not None}
    speeds = sorted(
        row[name] for row in rows for name in row if name.endswith("_per_second") and row[name] is not None
    )
    described = {
        "model": f"{config['model']['name']} {config['model'].get('size') or ''}",
        "data": config["data"]["name"],
        "steps": f"{last['step']} of {config['trainer']['max_steps']}",
        "training time": f"{last['seconds']:.0f} s",
        "throughput": f"{speeds[len(speeds) // 2]:,.0f} a second (median of the logged steps)"
        if speeds
        else "not measured",
    }
    return described | {name: f"{value:.4f}" for name, value in last.items() if "/" in name}


def write_report(run: Path, data: list[str]) -> Path:
    """Write run/report.html from what the run has on disk and the lines that describe its data; return its path."""
    rows = read_metrics(run / "metrics.csv")
    table = (
        "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts(run, rows).items())
        if rows
        else ""
    )
    config = escape(to_json(read_json(run / "config.json")))
    html = page(
        run.name,
        f"<table>{table}</table><h2>Curves</h2>{curves(rows) if rows else ''}<h2>Data</h2><pre>{escape(chr(10).join(data))}</pre>",
        f"<h2>Samples</h2>{samples(run / 'samples')}<h2>Config</h2><pre>{config}</pre>",
    )
    replace_text(run / "report.html", redact(html))
    return run / "report.html"
