"""The codec of latent diffusion: latents of the whole data, whitened, kept on the disk, and the same after a
resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gengen.checkpoints.files import copy_folder
from gengen.checkpoints.layout import Checkpoint, unique_state, write
from gengen.config.compose import compose_train, read_command_line
from gengen.config.model import AutoencoderConfig, GPTConfig, LDMConfig
from gengen.config.schema import plain
from gengen.data.image import latents
from gengen.data.image.latents import EncodedImages, statistics
from gengen.data.image.prepare import PreparedImages, prepare
from gengen.errors import UserError
from gengen.generation.image import codec
from gengen.generation.image.codec import encode
from gengen.generation.load import load_generator
from gengen.models.autoencoder import Autoencoder
from gengen.models.gpt import GPT


def autoencoder(**settings: Any) -> Autoencoder:
    """Its latents are far from white, its posterior is wide."""
    torch.manual_seed(0)
    shape = {"widths": [16, 32], "blocks": 1, "patch": 2, "latent_channels": 4, "resolution": 16, "channels": 1}
    model = Autoencoder(AutoencoderConfig(name="autoencoder_kl", **(shape | settings)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def checkpoint_of(model: Any, folder: Path) -> Path:
    folder.mkdir(parents=True)
    write(folder, Checkpoint(7, {"model": plain(model.config)}, unique_state(model)))
    return folder


@pytest.fixture
def prepared(picture_data: list[str], tmp_path: Path) -> PreparedImages:
    """Pictures that are mirrored in training, prepared in a folder of this test's own."""
    line = read_command_line(
        [*picture_data, f"data.dir={tmp_path / 'data'}", "data.flip=true", "model=autoencoder_kl"]
    )
    return prepare(compose_train(line).data, lambda line: None)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return checkpoint_of(autoencoder(), tmp_path / "runs" / "ae")


def encoded(prepared: PreparedImages, where: Path, run: Path | None = None) -> EncodedImages:
    return encode(prepared, LDMConfig(codec=str(where)), where.parent, run, lambda line: None)


def drawn(data: EncodedImages, split: str = "train") -> Tensor:
    """A draw z = mean + std * noise of each image's whitened latents; in training of each mirrored one too."""
    everything = torch.arange(len(getattr(data, split)))
    sides = [torch.zeros(len(everything), dtype=torch.bool)] + [torch.ones(len(everything), dtype=torch.bool)] * (
        split == "train"
    )
    batches = [data.batch(split, everything, flipped) for flipped in sides]
    noise = torch.Generator().manual_seed(0)
    return torch.cat([b["mean"] + b["std"] * torch.randn(b["mean"].shape, generator=noise) for b in batches])


def whiteness(z: Tensor) -> float:
    """How far the channels are from mean 0 and variance 1, at worst."""
    return max(z.mean((0, 2, 3)).abs().max().item(), (z.var((0, 2, 3)) - 1).abs().max().item())


def test_latents_are_white_over_the_whole_training_set(prepared: PreparedImages, run: Path) -> None:
    data = encoded(prepared, run)
    assert data.model_facts == {
        "resolution": 4,
        "channels": 4,
        "classes": ["circle", "cross", "square"],
        "sigma_data": 1.0,
    }
    assert whiteness(drawn(data)) < 0.08  # 2 x 108 x 16 draws a channel
    assert (
        whiteness(
            autoencoder().encode(
                prepared.batch("train", torch.arange(100), torch.zeros(100, dtype=torch.bool))["images"]
            )[0]
        )
        > 0.3
    )


def one_batch(posteriors: Any) -> tuple[Tensor, Tensor]:
    mean, std = next(iter(posteriors))
    return statistics([(mean[:8], std[:8])])


def without_deviations(posteriors: Any) -> tuple[Tensor, Tensor]:
    return statistics((mean, torch.zeros_like(std)) for mean, std in posteriors)


@pytest.mark.parametrize("bug", [one_batch, without_deviations])
def test_statistics_of_less_would_be_noticed(
    bug: Any, prepared: PreparedImages, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bugs put back: statistics of one batch (images come sorted by class), or of means alone."""
    monkeypatch.setattr(codec, "statistics", bug)
    assert whiteness(drawn(encoded(prepared, run))) > 0.12


def test_statistics_are_those_of_all_values_at_once() -> None:
    """In fp64, whatever the shards: a channel far from 0 keeps its small variance, which fp32 sums would lose."""
    generator = torch.Generator().manual_seed(0)
    mean, std = (
        torch.randn(1000, 2, 2, 2, generator=generator) * 0.01 + 30,
        torch.rand(1000, 2, 2, 2, generator=generator) * 0.01,
    )
    z_mean, z_std = statistics(zip(mean.split(300), std.split(300), strict=True))
    exact = (mean.double().var((0, 2, 3), correction=0) + std.double().square().mean((0, 2, 3))).sqrt()
    torch.testing.assert_close(z_mean.double(), mean.double().mean((0, 2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(z_std.double(), exact, rtol=1e-5, atol=0)
    in_fp32 = ((mean**2 + std**2).mean((0, 2, 3)) - mean.mean((0, 2, 3)) ** 2).clamp(min=0).sqrt()
    assert not torch.allclose(in_fp32.double(), exact, rtol=1e-2)


def test_both_means_and_deviations_are_kept_and_mirrored_images_are_encoded_anew(
    prepared: PreparedImages, run: Path
) -> None:
    """Latents of a mirrored image are not mirrored latents."""
    data, model = encoded(prepared, run), autoencoder()
    index, flipped = torch.tensor([5, 80, 5]), torch.tensor([False, True, True])
    batch = data.batch("train", index, flipped)
    with torch.no_grad():
        mean, std = model.encode(prepared.batch("train", index, flipped)["images"])
    torch.testing.assert_close(batch["mean"] * data.std + data.mean, mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(batch["std"] * data.std, std, atol=1e-4, rtol=1e-4)
    assert batch["labels"].tolist() == prepared.train.labels[index].tolist() and batch["index"].tolist() == [5, 80, 5]
    assert not torch.allclose(batch["mean"][0].flip(-1), batch["mean"][2], atol=0.1)


def test_decoding_takes_whitened_latents_back_to_the_picture(prepared: PreparedImages, run: Path) -> None:
    """decode(unscale(scale(z))) = decode(z), with the statistics that lie with the codec."""
    data = encoded(prepared, run)
    opened, model = load_generator(str(data.dependencies["codec"]), device="cpu"), autoencoder()
    images = prepared.batch("val", torch.arange(6), torch.zeros(6, dtype=torch.bool))["images"]
    with torch.no_grad():
        expected = model.decode(model.encode(images)[0])
    mean, std = opened.encode(images)
    whitened, back = opened.model.whitened(mean), opened.model.unwhitened
    torch.testing.assert_close(opened.decode(back(whitened)), expected, atol=1e-4, rtol=0)
    batch = data.batch("val", torch.arange(6), torch.zeros(6, dtype=torch.bool))
    torch.testing.assert_close(batch["mean"], whitened, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(batch["std"] * data.std, std, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(opened.decode(whitened), expected, atol=1e-2)  # the bug: whitened and never undone
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(opened.decode(back(whitened)), expected, atol=1e-4, rtol=0)


def test_a_copy_in_the_run_needs_neither_the_codecs_run_nor_new_latents(
    prepared: PreparedImages, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(prepared, run)
    ldm = tmp_path / "runs" / "ldm"
    ldm.mkdir()
    copy_folder(data.dependencies["codec"], ldm / "codec")
    shutil.rmtree(run)
    monkeypatch.setattr(codec, "_build", None)  # calling it now would fail
    again = encoded(prepared, run, ldm)
    assert (again.fingerprint, again.folder) == (data.fingerprint, data.folder)
    assert torch.equal(drawn(again, "val"), drawn(data, "val"))
    generator = load_generator(str(ldm / "codec"), tmp_path)
    assert torch.equal(generator.model.latent_std, data.std.flatten())


def test_lost_latents_are_made_again_byte_for_byte(prepared: PreparedImages, run: Path) -> None:
    data = encoded(prepared, run)
    files = {path: path.read_bytes() for path in sorted(data.folder.rglob("*.safetensors"))}
    assert {path.name for path in files} >= {
        "train-00000.safetensors",
        "mirrored-00000.safetensors",
        "val-00000.safetensors",
    }
    for name in ("mirrored-00000.safetensors", "codec/model.safetensors", "meta.json"):
        (data.folder / name).unlink()
        encoded(prepared, run)
        assert {path: path.read_bytes() for path in sorted(data.folder.rglob("*.safetensors"))} == files


def test_other_weights_data_or_flips_have_other_latents(prepared: PreparedImages, run: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    model = autoencoder()
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    fingerprints = [
        encoded(prepared, run).fingerprint,
        encoded(prepared, checkpoint_of(model, tmp_path / "runs" / "nudged")).fingerprint,
        encoded(replace(prepared, config=replace(prepared.config, flip=False)), run).fingerprint,
        encoded(replace(prepared, meta=prepared.meta | {"fingerprint": "f" * 64}), run).fingerprint,
    ]
    assert len(set(fingerprints)) == 4
    assert (
        encoded(replace(prepared, config=replace(prepared.config, batch_size=3)), run).fingerprint == fingerprints[0]
    )


def test_many_shards_read_as_one(tmp_path: Path) -> None:
    mean, std = torch.randn(2, 25, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert latents.write_latents(tmp_path, "val", zip(mean.split(4), std.split(4), strict=True), shard=8) == 25
    assert len(list(tmp_path.iterdir())) == 4
    read = latents.Latents(tmp_path, "val")
    assert len(read) == 25 and all(
        torch.equal(read[i][0], mean[i]) and torch.equal(read[i][1], std[i]) for i in range(25)
    )


@pytest.mark.parametrize(
    "model,message",
    [
        (lambda: GPT(GPTConfig(size="nano", layers=1)), "is a gpt, no autoencoder"),
        (
            lambda: autoencoder(resolution=32),
            "encodes images of 32 x 32 pixels and 1 channel, data=imagefolder has 16 x 16 pixels",
        ),
        (
            lambda: autoencoder(channels=3),
            "16 x 16 pixels and 3 channels, data=imagefolder has 16 x 16 pixels and 1 channel",
        ),
    ],
)
def test_what_cannot_encode_this_data_is_refused(
    model: Any, message: str, prepared: PreparedImages, tmp_path: Path
) -> None:
    where = checkpoint_of(model(), tmp_path / "runs" / "other")
    with pytest.raises(UserError, match=message):
        encoded(prepared, where)


def test_ema_weights_are_taken_where_there_are_any(prepared: PreparedImages, tmp_path: Path) -> None:
    model = autoencoder()
    average = {name: tensor * 1.1 for name, tensor in unique_state(model).items()}
    folder = tmp_path / "runs" / "averaged"
    folder.mkdir(parents=True)
    write(folder, Checkpoint(7, {"model": plain(model.config)}, unique_state(model), ema=average))
    kept = load_generator(str(encoded(prepared, folder).dependencies["codec"]), tmp_path).model
    name = "encoder.0.weight"
    assert torch.equal(dict(kept.named_parameters())[name], average[name])
    assert json.loads((encoded(prepared, folder).folder / "codec" / "manifest.json").read_text())["step"] == 7


def test_the_hash_of_a_codec_stays_what_it_was() -> None:
    """Runs and caches hold it. A new field of the config that does not shape a codec belongs in codec.LATER."""
    for settings in ({}, {"adversarial": 0.1, "adversarial_from": 0.2}):
        model = autoencoder(**settings)
        with torch.no_grad():
            for i, parameter in enumerate(model.parameters()):
                parameter.copy_((torch.arange(parameter.numel()) % 64).view(parameter.shape) / 64 + i)
        assert codec.codec_hash(model) == "68d8ddcc2a397e7c7d4f2faeccc02b656670a03f5910d2a79cceaba0afeb13ca"
