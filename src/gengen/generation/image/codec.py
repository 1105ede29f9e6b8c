"""An autoencoder as the codec of latent diffusion: a data set encoded once, as latents of mean 0 and variance 1 in
each channel.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from gengen.checkpoints.files import to_json
from gengen.checkpoints.layout import Checkpoint, unique_state, verify, write
from gengen.checkpoints.migrate import read_config
from gengen.config.model import AutoencoderConfig, ModelConfig
from gengen.config.schema import build
from gengen.data.image.latents import EncodedImages, Posterior, statistics, write_latents
from gengen.data.image.prepare import PreparedImages
from gengen.data.prepared import build_once
from gengen.errors import UserError
from gengen.generation.image.autoencoder import AutoencoderGenerator
from gengen.generation.load import find_checkpoint, load_as
from gengen.hardware import pick_device
from gengen.io import Say, fsync, write_text
from gengen.models.autoencoder import Autoencoder

FORMAT = 1  # raise it when the same images would be encoded differently
STATISTICS = ("latent_mean", "latent_std")  # of a model's buffers: about the data it encoded, not about the model
BATCH = 256  # images encoded at once


LATER = ("adversarial", "adversarial_from")
"""Fields of an autoencoder's config that were added after latents had been cached under such hashes. They do not shape
a codec, and are left out of its hash.
"""


def codec_hash(model: Autoencoder) -> str:
    """Return the sha256 of an autoencoder's config and weights; the statistics follow from these and the data."""
    facts = {name: value for name, value in asdict(model.config).items() if name not in LATER}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(unique_state(model).items()):
        if name not in STATISTICS:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class OnLatents(Protocol):
    """The config of a model that is trained on latents."""

    @property
    def codec(self) -> str | None:
        """The run of an autoencoder."""


def encode(
    prepared: PreparedImages,
    config: OnLatents,
    runs_dir: Path,
    run: Path | None,
    say: Say,
    allow_build: bool = True,
) -> EncodedImages:
    """Return the prepared images as a codec's latents, encoded once for each codec, data set and transform.

    The codec is the one that `run` holds, or, for a new run, the newest checkpoint of config.codec, its EMA weights
    where it has them. Raises UserError where that is no autoencoder, or one of other images.
    """
    kept = run / "codec" if run else None
    source = kept if kept and kept.exists() else find_checkpoint(str(config.codec), runs_dir, "latest", say)
    autoencoder = build(ModelConfig, read_config(source)["model"])
    if not isinstance(autoencoder, AutoencoderConfig):
        raise UserError(
            f"model.codec={config.codec} is a {autoencoder.name}, no autoencoder: model=vae, autoencoder_kl or vqvae "
            "trains one"
        )
    wanted = {key: prepared.model_facts[key] for key in ("resolution", "channels")}
    found = {key: getattr(autoencoder, key) for key in wanted}
    if found != wanted:
        data = f"data={prepared.config.name} has {in_words(wanted)}"
        raise UserError(f"model.codec={config.codec} encodes images of {in_words(found)}, {data}")
    # by every rank; one of them encodes
    generator = load_as(AutoencoderGenerator, str(source), runs_dir, device="cpu")
    facts = {
        "format": FORMAT,
        "codec": codec_hash(generator.model),
        "data": prepared.fingerprint,
        "flip": prepared.config.flip,
    }
    fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    name = f"{prepared.config.name}-{prepared.fingerprint[:16]}-latents-{fingerprint[:16]}"
    home = Path(prepared.config.dir) / "prepared" / name

    def make(folder: Path, spool: Path) -> None:
        counts = f"{len(prepared.train):,} training and {len(prepared.val):,} validation images"
        say(f"data: encoding {counts} with {source}")
        generator.model.to(pick_device("auto"))
        _build(folder, generator, prepared, verify(source)["step"], facts | {"fingerprint": fingerprint})

    return build_once(home, lambda: _open(home, prepared, fingerprint), make, say, allow_build)


def in_words(facts: dict[str, Any]) -> str:
    side, channels = facts["resolution"], facts["channels"]
    return f"{side} x {side} pixels and {channels} channel{'s' * (channels != 1)}"


def _build(
    folder: Path, generator: AutoencoderGenerator, prepared: PreparedImages, step: int, meta: dict[str, Any]
) -> None:
    """Encode every split, take the statistics of what was written, and keep them with the codec."""

    def posteriors(split: str, flip: bool) -> Iterator[Posterior]:
        for index in torch.arange(len(getattr(prepared, split))).split(BATCH):
            batch = prepared.batch(split, index, torch.full_like(index, flip, dtype=torch.bool))
            yield generator.encode(batch["images"])

    parts = {"train": ("train", False), "val": ("val", False)}
    if prepared.config.flip:
        parts["mirrored"] = ("train", True)
    for part, (split, flip) in parts.items():
        write_latents(folder, part, posteriors(split, flip))
    encoded = EncodedImages(folder, prepared, meta["fingerprint"], torch.zeros(1), torch.ones(1))
    model = generator.model
    mean, std = statistics(shard for part in (encoded.train, encoded.mirrored) for shard in part.shards)
    weights = unique_state(model) | {"latent_mean": mean, "latent_std": std}
    (folder / "codec").mkdir()
    write(
        folder / "codec",
        Checkpoint(step, {"model": asdict(model.config)}, weights, facts={"data": prepared.fingerprint}),
    )
    for path in folder.glob("*.safetensors"):
        fsync(path)
    write_text(folder / "meta.json", to_json(meta))


def _open(home: Path, prepared: PreparedImages, fingerprint: str) -> EncodedImages:
    """Open a finished folder. Raises UserError, which names what is damaged."""
    if not (home / "meta.json").exists():
        raise UserError(f"{home}: no latents yet")
    verify(home / "codec")
    model = load_as(AutoencoderGenerator, str(home / "codec"), device="cpu").model
    return EncodedImages(home, prepared, fingerprint, model.latent_mean, model.latent_std)
