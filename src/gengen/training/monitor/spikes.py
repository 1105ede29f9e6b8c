"""Spikes of loss and gradient, found without a word from the device to the host."""

import torch
from torch import Tensor

WINDOW = 128  # updates that a spike is measured against


class Spikes:
    """Loss and gradient norm of each network's last WINDOW finite updates, kept on the device.

    After OLMo's skip-step optimizer.
    """

    def __init__(self, sigmas: float):
        self.sigmas = sigmas
        self.windows: dict[str, Tensor] = {}  # network -> (WINDOW, 2) fp64, NaN where there was no update yet

    def beyond(self, network: str, loss: Tensor, norm: Tensor) -> Tensor:
        """Return whether loss or norm lies more than `sigmas` deviations above its mean: a boolean scalar.

        It is False until half of the window is filled.
        """
        new = torch.stack([loss.detach(), norm.detach()]).double()
        window = self.windows.get(network, torch.full((WINDOW, 2), torch.nan)).to(new)
        n = (~window[:, 0].isnan()).sum()
        mean = window.nanmean(0)
        deviation = (window - mean).square().nanmean(0).sqrt()
        self.windows[network] = torch.where(new.isfinite().all(), torch.cat([window[1:], new[None]]), window)
        return (new > mean + self.sigmas * deviation).any() & (n >= WINDOW // 2)
