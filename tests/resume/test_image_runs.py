"""The image families, stopped and resumed: every file as if never stopped, the average of the weights and the codec
included.
"""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from gengen.cli import main
from helpers.runs import last_checkpoint, same_checkpoint

CADENCE = [
    "trainer.max_steps=14",
    "trainer.save_every=4",
    "trainer.eval_every=7",
    "trainer.sample_every=7",
    "trainer.log_every=3",
]
MACHINE = [
    "trainer.precision=fp32",
    "trainer.device=cpu",
    "trainer.threads=1",
    "data.batch_size=12",
    "data.micro_batch_size=6",
]
UNET = ["model.widths=[32]", "model.blocks=1", "model.attention=[0]", "model.dropout=0.1", "optim.ema=0.99"]
DIT = ["model.layers=2", "model.width=32", "model.heads=2", "model.dropout=0.1", "optim.ema=0.99"]
ON_LATENTS = ("ldm", "latent_dit")
TEXT = ["model.text=true", "model.text_width=32", "model.text_layers=1", "model.text_heads=2"]
AUTOENCODER = ["model.widths=[16,32]", "model.blocks=1", "model.patch=2", "model.latent_channels=2"]
FAMILIES = {
    "unet": [*UNET, "model.patch=4"],
    "unet, inpaint": [*UNET, "model.patch=4", "model.inpaint=true"],
    "ldm": [*UNET, "model.patch=1"],
    "dit": [*DIT, "model.patch=4"],
    "latent_dit": [*DIT, "model.patch=2", "model.activation_checkpointing=true"],
    "unet, text": [*UNET, "model.patch=4", *TEXT],
    "ldm, text": [*UNET, "model.patch=1", *TEXT],
    "dit, text": [*DIT, "model.patch=4", *TEXT],
    "vae": [*AUTOENCODER, "optim.ema=0.99"],
    "autoencoder_kl": AUTOENCODER,
    "vqvae": AUTOENCODER,
    "gan": [
        "model.widths=[8,16]",
        "model.patch=2",
        "model.latent_size=8",
        "model.penalty_every=3",
        "model.augment=color,translation,cutout",
    ],
    "gan, hinge": [
        "model.widths=[8]",
        "model.patch=4",
        "model.loss=hinge",
        "model.spectral_norm=true",
        "model.gamma=0",
    ],
    "dcgan": ["model.widths=[8,16]", "model.latent_size=8", "optim.ema=0.9"],
    "autoencoder_kl, adversarial": [
        *AUTOENCODER,
        "model.adversarial=0.1",
        "model.adversarial_from=0.3",
        "optim.ema=0.99",
    ],
}


@pytest.fixture(scope="session")
def codec_run(picture_data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small autoencoder to encode with."""
    runs = tmp_path_factory.mktemp("codec-runs")
    assert (
        main(
            [
                "train",
                "model=autoencoder_kl",
                *picture_data,
                *AUTOENCODER,
                *CADENCE,
                *MACHINE,
                f"runs_dir={runs}",
                "run=codec",
            ]
        )
        == 0
    )
    return runs / "codec"


def settings(family: str, picture_data: list[str], codec_run: Path) -> list[str]:
    model = family.split(",")[0]
    extra = [f"model.codec={codec_run}"] if model in ON_LATENTS else []
    return [
        f"model={model}",
        *picture_data,
        "data.flip=true",
        *FAMILIES[family],
        *CADENCE,
        *MACHINE,
        *extra,
    ]


@pytest.mark.fault("F1")
@pytest.mark.fault("F2")
@pytest.mark.fault("F5")
@pytest.mark.fault("F6")
@pytest.mark.parametrize("family", FAMILIES)
def test_stops_change_nothing(
    family: str,
    picture_data: list[str],
    captioned_data: list[str],
    codec_run: Path,
    tmp_path: Path,
    without_mfu: Callable[[], AbstractContextManager[None]],
) -> None:
    """Stopped within an epoch of 9 steps and in the next, with other workers; the curve and the pictures are the same
    too.
    """
    data = [*captioned_data, "data.channels=1"] if family.endswith("text") else picture_data
    argv = settings(family, data, codec_run)
    assert main(["train", *argv, f"runs_dir={tmp_path}", "run=straight"]) == 0
    with without_mfu():
        assert main(["train", *argv, f"runs_dir={tmp_path}", "run=r", "stop_at=5"]) == 0
        if (
            family.split(",")[0] in ON_LATENTS
        ):  # the run keeps what it needs, whatever becomes of its codec's run and the cache
            shutil.rmtree(next(Path(argv_value(argv, "data.dir")).glob("prepared/[!.]*latents*")))
        assert main(["train", "run=r", f"runs_dir={tmp_path}", "stop_at=11", "data.num_workers=1"]) == 0
        assert main(["train", "run=r", f"runs_dir={tmp_path}", "data.num_workers=0"]) == 0
    same_checkpoint(last_checkpoint(tmp_path / "straight"), last_checkpoint(tmp_path / "r"))
    pictures = [
        {p.name: p.read_bytes() for p in (tmp_path / name / "samples").iterdir()} for name in ("straight", "r")
    ]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 2


def argv_value(argv: list[str], key: str) -> str:
    return next(a.split("=", 1)[1] for a in reversed(argv) if a.startswith(key + "="))


def test_an_ldm_goes_on_without_its_codecs_run(picture_data: list[str], codec_run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "codec"
    shutil.copytree(codec_run, moved)
    argv = settings("ldm", picture_data, moved)
    assert main(["train", *argv, f"runs_dir={tmp_path}", "run=r", "stop_at=5"]) == 0
    shutil.rmtree(moved)
    assert main(["train", "run=r", f"runs_dir={tmp_path}"]) == 0
    assert main(["sample", str(tmp_path / "r"), "n=2", "steps=2", "labels=cross", f"out={tmp_path / 'drawn'}"]) == 0
    assert (tmp_path / "drawn" / "grid.png").exists()


@pytest.mark.fault("F22")
def test_a_run_whose_codec_was_exchanged_is_refused(
    picture_data: list[str], codec_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = settings("ldm", picture_data, codec_run)
    assert main(["train", *argv, f"runs_dir={tmp_path}", "run=r", "stop_at=5"]) == 0
    other = [a for a in settings("autoencoder_kl", picture_data, codec_run) if "flip" not in a]
    assert main(["train", *other, "seed=5", f"runs_dir={tmp_path}", "run=other", "stop_at=4"]) == 0
    with_other = settings("ldm", picture_data, tmp_path / "other")
    assert main(["train", *with_other, f"runs_dir={tmp_path}", "run=s", "stop_at=4"]) == 0
    shutil.rmtree(tmp_path / "r" / "codec")
    shutil.copytree(tmp_path / "s" / "codec", tmp_path / "r" / "codec")
    assert main(["train", "run=r", f"runs_dir={tmp_path}"]) == 2
    assert "fingerprint" in capsys.readouterr().err
