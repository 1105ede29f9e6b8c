"""Networks that are told what is known of a sample."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gengen.config.model import DiTConfig, UNetConfig
from gengen.models.dit import DiT
from gengen.models.unet import UNet

IMAGE: dict[str, Any] = {"resolution": 8, "channels": 2, "patch": 2, "sigma_data": 0.5}
NETWORKS = {
    "unet": lambda **more: UNet(UNetConfig(**IMAGE, widths=[32], blocks=1, attention=[0], **more)),
    "dit": lambda **more: DiT(DiTConfig(**IMAGE, layers=1, width=32, heads=2, **more)),
}


def awake(net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return net.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_it_hears_the_mask_and_the_picture_and_nothing_known_is_zeros(name: str) -> None:
    net = awake(NETWORKS[name](inpaint=True))
    draw = torch.Generator().manual_seed(0)
    x, level = torch.randn(3, 2, 8, 8, generator=draw), torch.tensor([0.1, 0.5, 0.9])
    known = torch.cat([torch.ones(3, 1, 8, 8), torch.randn(3, 2, 8, 8, generator=draw)], dim=1)

    def said(known: Tensor | None) -> Tensor:
        return net(x, level, known=known)

    assert said(known).shape == x.shape and torch.equal(said(None), said(torch.zeros_like(known)))
    other_mask, other_picture = known.clone(), known.clone()
    other_mask[:, 0, 0, 0], other_picture[:, 1, 5, 5] = 0, 3.0
    for other in (other_mask, other_picture):
        assert (said(other) - said(known)).abs().amax((1, 2, 3)).min() > 1e-4
    alone = torch.cat([net(x[i : i + 1], level[i : i + 1], known=known[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, said(known), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_it_the_network_is_the_one_it_was(name: str) -> None:
    plain, told = (sum(p.numel() for p in NETWORKS[name](inpaint=i).parameters()) for i in (False, True))
    first = {"unet": 32 * 9, "dit": 32}[name]  # weights for each value of a patch
    assert told - plain == first * 3 * 2**2
