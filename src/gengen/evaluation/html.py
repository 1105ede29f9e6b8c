"""Pages that need no network: one HTML file with its style, its tables and its images inside."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
pre { background: #f6f6f4; padding: .8rem; overflow-x: auto; white-space: pre-wrap } img { max-width: 100% }
table { border-collapse: collapse } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }"""


def page(title: str, *parts: str) -> str:
    """Return a whole page of these parts, which are HTML."""
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>"
    return "\n".join([f"<!doctype html><html lang='en'>{head}", *parts, "</html>\n"])


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Return a table of texts, which are escaped; head: the names of its columns."""
    lines = [row_of(head, "th")] if head else []
    return f"<table>{''.join([*lines, *(row_of(row, 'td') for row in rows)])}</table>"


def row_of(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def number(value: float | None) -> str:
    """Return a figure as a cell shows it; empty for None."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def preformatted(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def image(png: bytes) -> str:
    return f"<img src='data:image/png;base64,{base64.b64encode(png).decode()}'>"


def drawn(figure: "Figure") -> str:
    """Return a matplotlib figure as an image."""
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return image(png.getvalue())


def in_line(name: str, figures: Mapping[str, Any]) -> str:
    """Return figures as one line for the screen."""
    shown = [f"{key} {value:.4g}" for key, value in figures.items() if isinstance(value, float)]
    return f"{name:<15}" + "  ".join(shown)
