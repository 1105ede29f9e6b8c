"""Images of a data set on the hub, streamed and as it is divided."""

import io
from collections.abc import Iterator
from typing import Any

from gengen.config.data import ImageConfig
from gengen.data.image.sources.base import HELD_OUT, Picture, captions_in, decode_or_skip
from gengen.data.sources.hub import hub_facts
from gengen.data.sources.skips import Skips
from gengen.errors import UserError
from gengen.io import Say


class HubPictures:
    """The first column of images of a data set, its first column of classes, and a column "text" if it has one."""

    def __init__(self, config: ImageConfig):
        self.config = config

    def asked(self) -> tuple[str, str]:
        """Return (revision, licence) of the data set; raise UserError, which names what else there is, if the hub does
        not answer."""
        try:
            return hub_facts(self.config.hub)
        except UserError as error:
            raise UserError(
                f"data={self.config.name}: {error}"
                "\n  it is on the hub only; without it, take data=animals, mnist or emoji, which come"
                " in packages, or your own images: data=imagefolder data.path=FOLDER"
            ) from error

    def describe(self) -> tuple[str, str]:
        revision, licence = self.asked()
        return f"hub {self.config.hub}@{revision}", licence

    def facts(self) -> dict[str, Any]:
        return {"hub": self.config.hub}

    def read(self, skips: Skips, say: Say) -> Iterator[Picture]:
        revision, _ = self.asked()
        try:
            from datasets import load_dataset

            parts = load_dataset(self.config.hub, revision=revision, streaming=True)
            held_out = next((name for name in HELD_OUT if name in parts), None)
            for name in [held_out, "train"] if held_out else ["train"]:
                split = ("val" if name == held_out else "train") if held_out else None
                yield from self.rows(parts[name], f"{self.config.hub}@{revision} {name}", split, skips)
        except UserError:
            raise
        except Exception as error:  # the library raises whatever its network, file and format layers raise
            raise UserError(
                f"data.hub={self.config.hub}: cannot be read to the end ({type(error).__name__}: {error})"
            ) from error

    def rows(self, rows: Any, where: str, split: str | None, skips: Skips) -> Iterator[Picture]:
        """Yield the pictures of one split, a `datasets.IterableDataset`."""
        from datasets import ClassLabel, Image

        features = rows.features
        column = next(c for c, feature in features.items() if isinstance(feature, Image))
        classes = next((c for c, feature in features.items() if isinstance(feature, ClassLabel)), None)
        for number, row in enumerate(rows.cast_column(column, Image(decode=False))):
            known = classes and row[classes] is not None and row[classes] >= 0
            label = features[classes].int2str(row[classes]) if known else None
            file = io.BytesIO(row[column]["bytes"] or b"")
            if (pixels := decode_or_skip(file, self.config, skips, f"{where} row {number}")) is not None:
                yield Picture(pixels, label, captions_in(row.get("text")), split=split)
