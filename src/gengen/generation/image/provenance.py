"""What a picture's file says of where it comes from: how it was drawn, and, to all who read XMP, that a model drew it.

It is as easily removed as read: it tells those who want to know, and proves nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gengen.checkpoints.files import read_json, with_special_floats, without_special_floats
from gengen.checkpoints.run import find
from gengen.checkpoints.store import choose
from gengen.config.commands import PictureSampling
from gengen.config.limits import parse_json
from gengen.config.schema import plain
from gengen.data.image.decode import FORMATS
from gengen.errors import UserError

KEYWORD, XMP = "gengen", "XML:com.adobe.xmp"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
"""IPTC's word for "made by a trained model", as XMP packs it."""
NOT_OF_A_PICTURE = {
    *("run", "runs_dir", "checkpoint", "device", "plugins", "n", "out", "batch_size", "animation", "pictures"),
    *("provenance", "mark"),
}
"""Fields of a `sample` command that change no picture, or that the record names otherwise."""
PATHS = {"image", "images", "mask", "guide"}
"""Fields that name files of this machine, of which the record keeps the last part alone."""


@dataclass(frozen=True)
class Origin:
    """How a command draws pictures: of which checkpoint, by which settings. The same command says the same: there is
    no time in it, and no name of a machine, a user or a folder."""

    run: str
    step: int
    sha256: str
    """Of the checkpoint's manifest, which holds that of every file."""
    settings: dict[str, Any] = field(default_factory=dict)

    def record(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the file of a picture says; facts: what samples.json says of it, its seed and index among it."""
        return {"format": 1, **vars(self), **facts}


def origin_of(config: PictureSampling) -> Origin | None:
    """Return where the pictures of a command come from; None for a generator that was made in Python, whose config
    names no run that there is. It is the command's checkpoint as long as config.checkpoint is a number, which does not
    change its meaning while the run is trained on."""
    try:
        path = find(str(config.run), Path(config.runs_dir))
    except UserError:
        return None
    if not (path / "manifest.json").exists():
        path = choose(path / "checkpoints", config.checkpoint)
    manifest = read_json(path / "manifest.json")
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    settings = {key: short(key, value) for key, value in plain(config).items() if key not in NOT_OF_A_PICTURE}
    said = {key: value for key, value in settings.items() if value not in (None, "", [])}
    return Origin(run.absolute().name, manifest["step"], manifest["sha256"], said)


def short(key: str, value: object) -> object:
    """Return a setting's value without folders of this machine."""
    if key not in PATHS or not value:
        return value
    return [Path(path).name for path in value] if isinstance(value, list) else Path(str(value)).name


def chunks(origin: Origin | None, facts: Mapping[str, Any]) -> PngInfo | None:
    """Return the text chunks of a picture's PNG: its record, and the XMP packet. None without an origin."""
    if origin is None:
        return None
    info = PngInfo()
    record = without_special_floats(origin.record(facts))
    info.add_itxt(KEYWORD, json.dumps(record, ensure_ascii=False, sort_keys=True, allow_nan=False))
    info.add_itxt(XMP, PACKET)
    return info


def read_provenance(path: Path | BytesIO) -> tuple[dict[str, Any] | None, bool]:
    """Return the record in a picture's file, None where there is none, and whether its XMP says that a model drew it.
    Raises ValueError for a record that is none. To be called within `one_line_errors`."""
    with Image.open(path, formats=FORMATS) as image:
        image.load()  # text may stand behind the pixels
        texts = {key: value for key, value in image.info.items() if isinstance(value, str)}
        packet = image.info.get("xmp", texts.get(XMP, b""))
    record = with_special_floats(parse_json(texts[KEYWORD])) if KEYWORD in texts else None
    if record is not None and not isinstance(record, dict):
        raise ValueError("its gengen record is no object")
    packet = packet.encode() if isinstance(packet, str) else packet
    return record, SOURCE_TYPE.encode() in packet
