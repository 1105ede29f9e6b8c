"""report.html of a run: its curves, its samples over time, its data and its config, in one file that needs no network."""

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

from gengen.checkpoints.files import read_json, replace_text, to_json
from gengen.config.redact import redact
from gengen.training.metrics import read_metrics

STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
pre { background: #f6f6f4; padding: .8rem; overflow-x: auto; white-space: pre-wrap } img { max-width: 100% }
table { border-collapse: collapse } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }"""


def curves(rows: list[dict[str, Any]]) -> bytes:
    """A PNG: every loss and bits-per-byte of metrics.csv against steps and against seconds of training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
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
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return png.getvalue()


def samples(folder: Path) -> str:
    """The sample files, in order of their steps."""
    parts = []
    for path in sorted(folder.glob("step-*")):
        if path.suffix == ".txt":
            parts.append(f"<h3>step {int(path.stem.removeprefix('step-'))}</h3><pre>{escape(path.read_text(encoding='utf8'))}</pre>")
        elif path.suffix == ".png":
            image = base64.b64encode(path.read_bytes()).decode()
            parts.append(f"<h3>step {int(path.stem.removeprefix('step-'))}</h3><img src='data:image/png;base64,{image}'>")
    return "".join(parts) or "<p>none yet</p>"


def facts(run: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    """What a reader wants to know first."""
    config = read_json(run / "config.json")
    last = {name: value for row in rows for name, value in row.items() if value is not None}
    speeds = sorted(row[name] for row in rows for name in row if name.endswith("_per_second") and row[name] is not None)
    described = {
        "model": f"{config['model']['name']} {config['model'].get('size') or ''}",
        "data": config["data"]["name"],
        "steps": f"{last['step']} of {config['trainer']['max_steps']}",
        "training time": f"{last['seconds']:.0f} s",
        "throughput": f"{speeds[len(speeds) // 2]:,.0f} a second (median of the logged steps)" if speeds else "not measured",
    }
    return described | {name: f"{value:.4f}" for name, value in last.items() if "/" in name}


def write_report(run: Path, data: list[str]) -> Path:
    """Write run/report.html from what the run has on disk and the lines that describe its data; return its path."""
    rows = read_metrics(run / "metrics.csv")
    table = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts(run, rows).items()) if rows else ""
    image = f"<img src='data:image/png;base64,{base64.b64encode(curves(rows)).decode()}'>" if rows else ""
    html = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(run.name)}</title><style>{STYLE}</style>"
        f"<h1>{escape(run.name)}</h1><table>{table}</table><h2>Curves</h2>{image}"
        f"<h2>Data</h2><pre>{escape(chr(10).join(data))}</pre><h2>Samples</h2>{samples(run / 'samples')}"
        f"<h2>Config</h2><pre>{escape(to_json(read_json(run / 'config.json')))}</pre></html>\n"
    )
    replace_text(run / "report.html", redact(html))
    return run / "report.html"
