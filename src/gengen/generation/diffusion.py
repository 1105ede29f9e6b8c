"""Draw from a diffusion model in its own space, whatever the modality and the network."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gengen.config.commands import DiffusionSettings
from gengen.config.model import DiffusionProcess
from gengen.diffusion.guidance import Denoiser, guide
from gengen.diffusion.network import DiffusionNetwork
from gengen.diffusion.parameterizations import denoiser
from gengen.diffusion.paths import PATHS, NoisePath
from gengen.diffusion.samplers import SAMPLERS, Callback
from gengen.errors import UserError
from gengen.generation.noise import Noise
from gengen.models.layers import NO_CLASS

GUIDANCE = 2.0  # the scale that measured best on the animals (docs/results.md)


def path_of(config: DiffusionProcess) -> NoisePath:
    """Return the path a model was trained on."""
    return PATHS[config.path](**({"shift": config.shift} if config.path == "flow" else {}))


def denoiser_of(model: DiffusionNetwork, labels: Tensor) -> Denoiser:
    """Return the model as a function (x_t, t) -> x_0 for samples of these classes (B,)."""
    c = model.config
    assert c.sigma_data, "a run records what its data says (with_data)"
    return denoiser(lambda x, level: model(x, level, labels), path_of(c), c.prediction, c.sigma_data)


def guidance_scale(config: DiffusionProcess, wanted: float | None, has_guide: bool) -> float:
    """Return the scale of guidance: the wanted one, or, for null, what suits the model.

    Raises UserError where there is nothing to guide away from: without a model to do so, that is the model's own
    estimate without a class, which a model trained with drop_condition=0 never learnt.
    """
    if has_guide or (config.classes and config.drop_condition > 0):
        return GUIDANCE if wanted is None else wanted
    if config.classes and wanted not in (None, 1.0):
        raise UserError(
            f"guidance={wanted:g}: the model always saw its class (model.drop_condition=0), so it has no estimate "
            "without one to guide away from; leave guidance out, or name another model by guide="
        )
    return 1.0


def guided_denoiser(
    model: DiffusionNetwork, labels: Tensor, settings: DiffusionSettings, worse: DiffusionNetwork | None = None
) -> Denoiser:
    """Return the denoiser of these classes (B,), guided away from the worse model, or else from no class."""
    path, scale = path_of(model.config), guidance_scale(model.config, settings.guidance, worse is not None)
    reference = denoiser_of(worse, labels) if worse else denoiser_of(model, torch.full_like(labels, NO_CLASS))
    shares = settings.guide_from, settings.guide_to
    start, end = (math.inf if share == 1 else path.time_at(share / (1 - share)) for share in shares)
    return guide(denoiser_of(model, labels), reference, scale, (start, end), settings.rescale)


@torch.inference_mode()
def draw(
    model: DiffusionNetwork,
    labels: Tensor,
    samples: Sequence[int],
    seed: int,
    settings: DiffusionSettings,
    *,
    worse: DiffusionNetwork | None = None,
    callback: Callback = None,
) -> Tensor:
    """Return samples of these numbers and of these labels (B,), (B, *sample_shape) fp32, on the device of the labels.

    The noise of sample i is a function of (seed, i) alone. callback: see `gengen.diffusion.samplers`.
    """
    path = path_of(model.config)
    noise = Noise(seed, samples, model.config.sample_shape(), labels.device)
    times = path.times(settings.steps)
    with torch.autocast(labels.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        denoise = guided_denoiser(model, labels, settings, worse)
        return SAMPLERS[settings.sampler](denoise, path.sigma(times[0]) * noise(), times, path, noise, callback)
