"""For mkdocs: pages at the root of the repository join the site; links to its other files become their names."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
PAGES |= {"SECURITY.md": "SECURITY.md"}


def on_files(files: Files, config: Any) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)#:]+)\)|!\[([^\]]*)\]\(docs/([^)]+)\)", moved, markdown)


def moved(link: re.Match[str]) -> str:
    """A link as the site has it: pages by their names there, other files of the repository as code."""
    text, target, alternative, picture = link.groups()
    if picture:
        return f"![{alternative}]({picture})"
    path = target.removeprefix("../").removeprefix("docs/")
    if path in PAGES:
        return f"[{text}]({PAGES[path]})"
    return f"[{text}]({path})" if (ROOT / "docs" / path).exists() else f"`{text}`".replace("``", "`")
