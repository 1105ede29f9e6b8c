"""Samples of a diffusion model drawn anew, in its own space, whatever the modality and the network."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gengen.config.commands import DiffusionSettings
from gengen.diffusion.editing import inpaint, noised_start
from gengen.diffusion.samplers import SAMPLERS, Callback
from gengen.generation.diffusion import Condition, guided_denoiser, path_of
from gengen.generation.noise import Noise
from gengen.models.diffusion_network import DiffusionNetwork


@dataclass(frozen=True)
class Edit:
    """What is changed of which samples.

    x0: (B or 1, *sample_shape), the samples as the model has them. is_open: (1, R, R) bool, True where they are drawn
    anew; None = everywhere. strength: the share of the way to noise that is gone back. resamples: rounds of each step;
    0 for a network that is told what is known. purpose: sets the noise of this edit apart from that of another of the
    same samples.
    """

    x0: Tensor
    is_open: Tensor | None
    strength: float
    resamples: int
    purpose: str = ""


@torch.inference_mode()
def redraw(
    model: DiffusionNetwork,
    condition: Condition,
    samples: Sequence[int],
    seed: int,
    settings: DiffusionSettings,
    edit: Edit,
    *,
    worse: DiffusionNetwork | None = None,
    callback: Callback = None,
) -> Tensor:
    """Return samples of these numbers, each an edit, (B, *sample_shape) fp32; at strength 1 without a mask what `draw`
    returns.

    All noise of sample i, that of the known part in each step included, is a function of (seed, i, step) alone.
    """
    path = path_of(model.config)
    device = condition.labels.device
    streams = partial(Noise, seed, samples, model.config.sample_shape(), device)
    noise, known_noise = streams(purpose=edit.purpose), streams(purpose=f"{edit.purpose}/known")
    times = path.times(settings.steps, edit.strength)
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        denoise = guided_denoiser(model, condition, settings, worse)
        x = noised_start(edit.x0, noise(), times, path, edit.strength)
        sampler = SAMPLERS[settings.sampler]
        if edit.is_open is None or not edit.resamples:
            return sampler(denoise, x, times, path, noise, callback)
        return inpaint(
            sampler, denoise, x, times, path, noise, known_noise, edit.x0, edit.is_open, edit.resamples, callback
        )
