"""The config of `detect`."""

from dataclasses import dataclass
from pathlib import Path

from gengen.config.commands import RunConfig
from gengen.config.fields import option
from gengen.errors import UserError


@dataclass
class DetectConfig(RunConfig):
    """Whether a text or a picture was drawn with a key, and what a picture's file says of itself. A text needs the
    run whose tokens it is made of.
    """

    key: str | None = option(None, "key file that it may have been marked with")
    image: list[str] = option([], "a picture's file; repeat for several")
    text: list[str] = option([], "a text; repeat for several", prose=True)
    file: str | None = option(None, "texts: a .txt, or a .jsonl that sample wrote")
    prompt: str = option("", "what the texts go on from, which is not counted")
    watermark_delta: float = option(2.0, "as it was drawn; changes only the z that a text would have, were it marked")
    new_key: str | None = option(None, "write a new key to this file, which its owner alone may read, and stop")

    def check(self) -> None:
        if self.new_key:
            return
        texts = bool(self.text or self.file)
        if not (texts or self.image):
            raise UserError('what is looked at? image=FILE, or text="..." or file=FILE of a run')
        if texts and not self.run:
            raise UserError("which run drew it? python scripts/detect.py runs/NAME key=FILE text=...")
        if texts and not self.key:
            raise UserError("key=FILE says which key the texts may have been marked with")
        if self.file and Path(self.file).suffix not in (".txt", ".jsonl"):
            raise UserError(f"file={self.file}: a .txt or a .jsonl is read")
