"""An autoencoder as the codec of latent diffusion: a data set encoded once, as latents of mean 0 and variance 1 in
each channel.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gengen.checkpoints.files import fsync, to_json, write_text
from gengen.checkpoints.layout import Checkpoint, unique_state, verify, write
from gengen.checkpoints.migrate import read_config
from gengen.config.model import AutoencoderConfig, LDMConfig, ModelConfig
from gengen.config.schema import build
from gengen.data.image.latents import EncodedImages, Posterior, statistics, write_latents
from gengen.data.prepared import made_once
from gengen.errors import UserError
from gengen.generation.image.autoencoder import AutoencoderGenerator
from gengen.generation.load import find_checkpoint, load_as
from gengen.hardware import pick_device
from gengen.models.autoencoder import Autoencoder

Say = Callable[[str], None]

FORMAT = 1  # raise it when the same images would be encoded differently
STATISTICS = ("latent_mean", "latent_std")  # of a model's buffers: about the data it encoded, not about the model
BATCH = 256  # images encoded at once


LATER = ("adversarial", "adversarial_from")
"""Fields of an autoencoder's config that came after latents were cached under such hashes, and do not shape a codec.
"""


def codec_hash(model: Autoencoder) -> str:
    """sha256 of an autoencoder's config and weights; not of the statistics, which follow from these and the data."""
    facts = {name: value for name, value in asdict(model.config).items() if name not in LATER}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(unique_state(model).items()):
        if name not in STATISTICS:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def encode(prepared: Any, config: LDMConfig, runs_dir: Path, run: Path | None, say: Say) -> EncodedImages:
    """The prepared images as a codec's latents, encoded once for each codec, data set and transform.

    The codec is the one that `run` holds, or, for a new run, the newest checkpoint of config.codec, its EMA weights
    where it has them. Raises UserError where that is no autoencoder, or one of other images.
    """
    kept = run / "codec" if run else None
    source = kept if kept and kept.exists() else find_checkpoint(str(config.codec), runs_dir, "latest", say)
    told = build(ModelConfig, read_config(source)["model"])
    if not isinstance(told, AutoencoderConfig):
        raise UserError(
            f"model.codec={config.codec} is a {told.name}, no autoencoder: model=vae, autoencoder_kl or vqvae trains one"
        )
    wanted = {key: prepared.model_facts[key] for key in ("resolution", "channels")}
    if (found := {key: getattr(told, key) for key in wanted}) != wanted:
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
    home = (
        Path(prepared.config.dir)
        / "prepared"
        / f"{prepared.config.name}-{prepared.fingerprint[:16]}-latents-{fingerprint[:16]}"
    )

    def make(folder: Path, spool: Path) -> None:
        say(
            f"data: encoding {len(prepared.train):,} training and {len(prepared.val):,} validation images with {source}"
        )
        generator.model.to(pick_device("auto"))
        _build(folder, generator, prepared, verify(source)["step"], facts | {"fingerprint": fingerprint})

    return made_once(home, lambda: _open(home, prepared, fingerprint), make, say)


def in_words(facts: dict[str, Any]) -> str:
    return f"{facts['resolution']} x {facts['resolution']} pixels and {facts['channels']} channel{'s' * (facts['channels'] != 1)}"


def _build(folder: Path, generator: AutoencoderGenerator, prepared: Any, step: int, meta: dict[str, Any]) -> None:
    """Encode every split, take the statistics of what was written, and keep them with the codec."""

    def posteriors(split: str, flip: bool) -> Iterator[Posterior]:
        for index in torch.arange(len(getattr(prepared, split))).split(BATCH):
            yield generator.encode(
                prepared.batch(split, index, torch.full_like(index, flip, dtype=torch.bool))["images"]
            )

    parts = {"train": ("train", False), "val": ("val", False)} | (
        {"mirrored": ("train", True)} if prepared.config.flip else {}
    )
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


def _open(home: Path, prepared: Any, fingerprint: str) -> EncodedImages:
    """What lies in a finished folder; a UserError that names what is damaged."""
    if not (home / "meta.json").exists():
        raise UserError(f"{home}: no latents yet")
    verify(home / "codec")
    model = load_as(AutoencoderGenerator, str(home / "codec"), device="cpu").model
    return EncodedImages(home, prepared, fingerprint, model.latent_mean, model.latent_std)
