"""Captions in diffusion's networks: what padding, order, depth and a missing caption do, and what a new network is."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gengen.config.compose import compose_train, read_command_line
from gengen.config.model import DiTConfig, UNetConfig
from gengen.config.model.diffusion import PADDING, START
from gengen.models import text_encoder
from gengen.models.dit import DiT
from gengen.models.layers import attend
from gengen.models.text_encoder import Block, CrossAttention, TextEncoder, TextFeatures, arc, empty_captions, mixed
from gengen.models.unet import UNet
from gengen.training.optim.groups import build_optimizer

TEXT: dict[str, Any] = {
    "resolution": 8, "channels": 1, "sigma_data": 0.5,
    "text": True, "text_width": 32, "text_heads": 2, "text_context": 24, "text_vocab_size": 40,
}  # fmt: skip
UNET = UNetConfig(widths=[32, 64], blocks=1, attention=[1], patch=2, **TEXT)
DIT = DiTConfig(layers=2, width=32, heads=4, patch=2, **TEXT)
Network = UNet | DiT
Config = UNetConfig | DiTConfig
BOTH = pytest.mark.parametrize("config", [UNET, DIT], ids=["unet", "dit"])

A, RED, BLUE, CAT, DOG, LEFT = range(1, 7)
CAPTIONS = [[START], [START, A, CAT], [START, A, RED, CAT, LEFT, A, BLUE, DOG], [START, A, RED, DOG]]


def network(config: Config) -> Network:
    torch.manual_seed(0)
    return DiT(config.resolved()) if isinstance(config, DiTConfig) else UNet(config.resolved())


def awake(config: Config) -> Network:
    """A network whose zero-initialised layers say something."""
    net = network(config)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return net.eval()


def rows(captions: list[list[int]], slots: int = 8) -> Tensor:
    return torch.tensor([ids + [PADDING] * (slots - len(ids)) for ids in captions])


def inputs(n: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 8, 8, generator=generator), torch.rand(n, generator=generator)


def text_of(net: Network) -> TextEncoder:
    assert net.text is not None
    return net.text.encoder


# --------------------------------------------------------------------------------------------------- padding and order


def of_all_slots(features: TextFeatures) -> TextFeatures:
    return features._replace(pooled=features.tokens.mean(1))


@BOTH
@torch.no_grad()
def test_slots_of_padding_change_nothing(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    net = awake(config)

    def difference() -> float:
        few, many = (net(*inputs(), text=rows(CAPTIONS, slots)) for slots in (8, 24))
        return (few - many).abs().max().item()

    assert difference() < 1e-5
    with monkeypatch.context() as bug:  # padding that is attended to
        bug.setattr(text_encoder, "attend", lambda q, k, v, mask: attend(q, k, v))
        assert difference() > 1e-3
    encode = TextEncoder.forward  # padding that is averaged
    monkeypatch.setattr(TextEncoder, "forward", lambda self, tokens: of_all_slots(encode(self, tokens)))
    assert difference() > 1e-3


@BOTH
@torch.no_grad()
def test_two_nouns_swapped_are_another_caption_but_not_for_a_bag_of_words(config: Config) -> None:
    net = awake(config)
    one, two = [START, A, RED, CAT, LEFT, A, BLUE, DOG], [START, A, RED, DOG, LEFT, A, BLUE, CAT]

    def difference() -> float:
        return (net(*inputs(1), text=rows([one])) - net(*inputs(1), text=rows([two]))).abs().max().item()

    assert difference() > 1e-3
    text_of(net).positions.weight.zero_()
    assert difference() < 1e-5


@BOTH
@torch.no_grad()
def test_each_row_reads_its_own_caption(config: Config) -> None:
    net = awake(config)
    (x, level), text = inputs(), rows(CAPTIONS)
    alone = torch.cat([net(x[i : i + 1], level[i : i + 1], text=text[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(net(x, level, text=text), alone, atol=1e-5, rtol=1e-5)
    said = net(x[:1].expand(4, -1, -1, -1), level[:1].expand(4), text=text)
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(said))


@BOTH
@torch.no_grad()
def test_no_caption_is_the_empty_one_in_tokens_and_encoded(config: Config) -> None:
    net = awake(config)
    empty = empty_captions(4, 24)
    assert torch.equal(empty, rows([[START]] * 4, 24))
    said = net(*inputs(), text=empty)
    assert torch.equal(net(*inputs()), said)
    assert net.text is not None and torch.equal(net(*inputs(), text=net.text(empty, 4)), said)


# ------------------------------------------------------------------------------------------------ levels and the start


def reading_levels(net: Network) -> list[int]:
    """Levels of the way down, or blocks, that read the caption."""
    if isinstance(net, DiT):
        return [i for i, block in enumerate(net.blocks) if block.reading is not None]
    return levels_with(net.down, "reading")


def levels_with(levels: nn.ModuleList, part: str) -> list[int]:
    """Numbers of the levels whose stages have this part, all or none of them."""
    found = [{getattr(stage, part) is not None for stage in cast(nn.ModuleList, stages)} for stages in levels]
    assert all(len(each) == 1 for each in found)
    return [i for i, each in enumerate(found) if True in each]


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (UNET, [1]),
        (replace(UNET, attention=[0, 1]), [0, 1]),
        (replace(UNET, attention=[1], text_attention=[0]), [0]),
        (replace(UNET, attention=[], text_attention=[0, 1]), [0, 1]),
        (replace(UNET, attention=[0, 1], text_attention=[]), []),
        (replace(UNET, text=False, text_attention=[0]), []),
        (DIT, [0, 1]),
        (replace(DIT, text_attention=[1]), [1]),
        (replace(DIT, text=False), []),
    ],
)
def test_levels_that_read_are_chosen_beside_those_that_attend(config: Config, wanted: list[int]) -> None:
    net = network(config)
    assert reading_levels(net) == wanted
    if isinstance(net, UNet):
        assert levels_with(net.down, "attention") == config.attention  # type: ignore[union-attr]
        assert sorted(1 - i for i in levels_with(net.up, "reading")) == wanted
        assert (net.middle[0].reading is not None) == config.text


@BOTH
@torch.no_grad()
def test_a_new_network_of_text_is_its_twin_without(config: Config) -> None:
    plain = awake(replace(config, text=False))
    net = network(config).eval()
    missing = net.load_state_dict(plain.state_dict(), strict=False)
    assert missing.unexpected_keys == [] and all("text" in name or "reading" in name for name in missing.missing_keys)
    assert torch.equal(net(*inputs(), text=rows(CAPTIONS)), plain(*inputs()))
    assert text_of(net)(rows(CAPTIONS)).tokens.std().item() == pytest.approx(1.0, abs=0.02)


@BOTH
def test_all_of_a_new_network_learns_within_four_steps(config: Config) -> None:
    """Its last layer wakes first, then the maps that read, then the encoder, whose branches begin at 0, too."""
    net = network(replace(config, classes=["a"]))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    (x, level), text = inputs(), rows(CAPTIONS)
    for step in range(4):
        loss = (net(x, level, torch.tensor([0, 0, 0, -1]), text=text) - x * torch.arange(4).view(-1, 1, 1, 1)).square()
        optimizer.zero_grad()
        loss.sum().backward()
        encoder = [p.grad is not None and bool(p.grad.any()) for p in text_of(net).parameters()]
        assert step < 3 or all(encoder)
        optimizer.step()
    # a softmax does not feel what is added to all its keys: their biases have gradients of rounding alone
    assert [name for name, p in net.named_parameters() if torch.equal(p, before[name])] == []


@BOTH
def test_recomputed_activations_change_neither_outputs_nor_gradients(config: Config) -> None:
    plain, recomputing = (awake(replace(config, activation_checkpointing=on)).train() for on in (False, True))
    for net in (plain, recomputing):
        net(*inputs(), text=rows(CAPTIONS)).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-5, msg=name)
    assert all(p.grad is not None and p.grad.any() for p in text_of(plain).parameters())


@pytest.mark.parametrize("model", ["unet", "dit"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_weight_is_in_one_group_and_muon_takes_the_encoders_maps(model: str, optimizer: str) -> None:
    config = compose_train(read_command_line([f"model={model}", "data=animals", f"optim={optimizer}"]))
    net = network(replace(UNET if model == "unet" else DIT, classes=["a"]))
    groups = build_optimizer(net, config.optim, config.model.hidden_maps).param_groups
    names = [name for group in groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in net.named_parameters())
    orthogonal = {name for group in groups if group.get("muon") for name in group["param_names"]}
    text = {name for name, p in net.named_parameters() if p.dim() == 2 and ("text." in name or "reading." in name)}
    maps = {name for name in text if "encoder.blocks" in name or "reading" in name}
    assert len(maps) > 8 and {"text.encoder.tokens.weight", "text.pooled.weight"} <= text - maps
    assert orthogonal & text == (maps if optimizer == "muon" else set())
    stacked = {name: getattr(p, "stacked_rows") for name, p in net.named_parameters() if hasattr(p, "stacked_rows")}
    assert stacked["text.encoder.blocks.0.qkv.weight"] == [32] * 3
    assert all(
        rows == [rows[0]] * 2 for name, rows in stacked.items() if name.endswith("kv.weight") and "reading" in name
    )


# -------------------------------------------------------------------------------- independent implementations, by hand


@torch.no_grad()
def test_the_encoders_block_is_pytorchs_pre_norm_layer() -> None:
    torch.manual_seed(3)
    ours = Block(32, 4)
    theirs = nn.TransformerEncoderLayer(
        32, 4, 128, dropout=0.0, activation=lambda x: F.gelu(x, approximate="tanh"), norm_first=True, batch_first=True
    )
    for parameter in ours.parameters():
        parameter.normal_(std=0.3)
    named = {
        "self_attn.in_proj_": ours.qkv, "self_attn.out_proj.": ours.out, "linear1.": ours.mlp[0],
        "linear2.": ours.mlp[2], "norm1.": ours.attention_norm, "norm2.": ours.mlp_norm,
    }  # fmt: skip
    weights = {name + kind: getattr(layer, kind) for name, layer in named.items() for kind in ("weight", "bias")}
    theirs.load_state_dict(weights)
    x, mask = torch.randn(4, 8, 32), rows(CAPTIONS) != PADDING
    expected = theirs.train()(x, src_key_padding_mask=~mask)  # .eval() would leave padding out of the output
    torch.testing.assert_close(ours(x, mask)[mask], expected[mask], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_cross_attention_is_pytorchs_with_other_keys() -> None:
    torch.manual_seed(4)
    ours = CrossAttention(32, 24, head_size=8)
    nn.init.normal_(ours.out.weight, std=0.3)  # type: ignore[arg-type]
    theirs = nn.MultiheadAttention(32, 4, kdim=24, vdim=24, batch_first=True)
    key, value = ours.kv.weight.chunk(2)
    theirs.load_state_dict({
        "q_proj_weight": ours.q.weight, "k_proj_weight": key, "v_proj_weight": value,
        "in_proj_bias": torch.cat([ours.q.bias, ours.kv.bias]),
        "out_proj.weight": ours.out.weight, "out_proj.bias": ours.out.bias,
    })  # fmt: skip
    x, tokens, mask = torch.randn(4, 16, 32), torch.randn(4, 8, 24), rows(CAPTIONS) != PADDING
    expected, _ = theirs(x, tokens, tokens, key_padding_mask=~mask)
    torch.testing.assert_close(ours(x, TextFeatures(tokens, mask, tokens[:, 0])), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_mean_is_over_the_tokens_of_a_caption() -> None:
    features = text_of(awake(UNET))(rows(CAPTIONS))
    for tokens, pooled, ids in zip(features.tokens, features.pooled, CAPTIONS, strict=True):
        torch.testing.assert_close(pooled, tokens[: len(ids)].mean(0))


# ------------------------------------------------------------------------------------------------------------- remixes


def test_an_arc_keeps_its_radius_and_its_speed() -> None:
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    for share in (0.0, 1 / 3, 0.5, 1.0):
        angle = torch.tensor(share * torch.pi / 2)
        expected = 3 * torch.stack([angle.cos(), angle.sin()])
        torch.testing.assert_close(arc(a, b, torch.tensor([share])), expected)
    torch.testing.assert_close(arc(a, a, torch.tensor([0.4])), a, atol=1e-3, rtol=0)  # no angle to divide by
    assert arc(a, -a, torch.tensor([0.5])).isfinite().all()
    rough = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    torch.testing.assert_close(arc(rough, rough, torch.tensor([0.5])), rough)


@BOTH
@torch.no_grad()
def test_a_remix_ends_exactly_and_passes_between(config: Config) -> None:
    net = awake(config)
    assert net.text is not None
    a, b = (net.text(rows([caption] * 3), 3) for caption in (CAPTIONS[1], CAPTIONS[2]))
    mix = mixed(a, b, torch.tensor([0.0, 0.5, 1.0]))
    for found, end, row in ((mix, a, 0), (mix, b, 2)):
        mask = end.mask[row]
        assert torch.equal(found.mask[row], mask) and torch.equal(found.pooled[row], end.pooled[row])
        assert torch.equal(found.tokens[row][mask], end.tokens[row][mask])
    x, level = (tensor.expand(3, *tensor.shape[1:]) for tensor in inputs(1))
    said, first, last = (net(x, level, text=text) for text in (mix, a, b))
    assert torch.equal(said[0], first[0]) and torch.equal(said[2], last[2])
    assert min((said[1] - first[1]).abs().max(), (said[1] - last[1]).abs().max()) > 1e-3


def test_zero_shares_of_a_longer_caption_leave_no_word_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 0 the mask is the first caption's: with both masks the second's surplus words would be read."""
    encode: Callable[[Tensor], TextFeatures] = text_of(awake(UNET))
    short, long = encode(rows([CAPTIONS[1]])), encode(rows([CAPTIONS[2]]))
    assert mixed(short, long, torch.zeros(1)).mask.sum() == len(CAPTIONS[1])
    assert mixed(short, long, torch.tensor([0.5])).mask.sum() == len(CAPTIONS[2])
