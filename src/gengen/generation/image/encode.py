"""Prepared images as a diffusion model is trained on them: captions as a frozen text encoder reads them, latents."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from gengen.checkpoints.files import Damaged, read_json, sha256, to_json
from gengen.config.model import DiffusionConfig
from gengen.data.image import captions
from gengen.data.image.captions import CaptionFeatures
from gengen.data.image.latents import EncodedImages
from gengen.data.image.prepare import PreparedImages
from gengen.data.prepared import build_once
from gengen.generation.image import codec
from gengen.generation.image.sentences import FOLDER, SentenceEncoder, published
from gengen.io import Say, fsync, write_text

FORMAT = 1  # raise it when the same captions would be encoded differently


def encode(
    prepared: PreparedImages,
    config: DiffusionConfig,
    runs_dir: Path,
    run: Path | None,
    say: Say,
    allow_build: bool = True,
) -> PreparedImages | EncodedImages:
    """Return what other networks make of prepared images: see `register_model(encode=...)`. Each is encoded once."""
    if config.text and config.text_encoder != "own":
        prepared = replace(prepared, words=encoded_captions(prepared, config, run, say, allow_build))
    if config.needs_codec():
        return codec.encode(prepared, config, runs_dir, run, say, allow_build)  # type: ignore[arg-type]
    return prepared


def encoded_captions(
    prepared: PreparedImages, config: DiffusionConfig, run: Path | None, say: Say, allow_build: bool
) -> CaptionFeatures:
    """Return the captions as the encoder reads them that `run` holds, or, for a new run, the published one.

    Raises UserError for captions that cannot be trained on, and where the encoder cannot be had.
    """
    parts = {"train": prepared.train.descriptions, "val": prepared.val.descriptions}
    usable = any(row.captions for row in parts["train"])
    captions.check_captions(parts, prepared.config, usable)
    kept, data_dir = run / FOLDER if run else None, Path(prepared.config.dir)
    folder = kept if kept and kept.exists() else published(data_dir, say, allow_build)
    encoder = SentenceEncoder.load(folder)
    texts, numbers, counts = captions.numbered_captions(parts)
    tokens = encoder.tokens(texts, config.text_context, "a caption")
    longest = max(map(len, tokens))  # padding costs as much as words
    facts = {"format": FORMAT, "encoder": encoder.hash, "texts": texts}
    fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    name = f"{prepared.config.name}-{prepared.fingerprint[:16]}-captions-{fingerprint[:16]}"
    home = data_dir / "prepared" / name
    table = home / "captions.safetensors"

    def make(folder: Path, spool: Path) -> None:
        say(f"data: encoding {len(texts):,} different captions with {config.text_encoder}")
        if unknown := [text for text in texts if encoder.pieces.unknown(text)]:
            some = f"{len(unknown):,} of them, such as {unknown[0][:200]!r}"
            say(f"data: {config.text_encoder} reads English, and has no pieces for words in {some}")
        save_file({"features": encoder.encode(tokens, longest)}, path := folder / table.name)
        fsync(path)
        write_text(folder / "meta.json", to_json({"fingerprint": fingerprint, "sha256": sha256(path)}))

    def opened() -> CaptionFeatures:
        """Raises Damaged where the table is not as it was written."""
        meta = read_json(home / "meta.json")
        if meta != {"fingerprint": fingerprint, "sha256": sha256(table)}:
            raise Damaged(table, "not what was written")
        return CaptionFeatures(table, folder, numbers, counts)

    return build_once(home, opened, make, say, allow_build)
