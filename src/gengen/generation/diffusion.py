"""Draw from a diffusion model in its own space, whatever the modality and the network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from gengen.config.commands import DiffusionSettings
from gengen.config.model import DiffusionProcess
from gengen.diffusion.guidance import Denoiser, guide
from gengen.diffusion.parameterizations import denoiser
from gengen.diffusion.paths import PATHS, NoisePath
from gengen.diffusion.samplers import SAMPLERS, Callback
from gengen.errors import UserError
from gengen.generation.noise import Noise
from gengen.models.diffusion_network import DiffusionNetwork
from gengen.models.layers import NO_CLASS
from gengen.models.text_encoder import TextCondition, TextFeatures, mixed

GUIDANCE = 2.0  # the scale that measured best on the animals (docs/results.md)


def path_of(config: DiffusionProcess) -> NoisePath:
    """Return the path a model was trained on."""
    return PATHS[config.path](**({"shift": config.time_shift} if config.path == "flow" else {}))


@dataclass(frozen=True)
class Condition:
    """What each of B samples is asked to be.

    labels: (B,), NO_CLASS for none. captions: (B, L), tokens of what it shows, or (B, L, D'), what a frozen text
    encoder said of them. towards, share: of a remix the captions that it goes to, and how far each has gone, (B,) from
    0 to 1. negative: captions that guidance leads away from in place of the empty one. known: what a network for
    inpainting is told of each (`DiffusionNetwork`). All on one device.
    """

    labels: Tensor
    captions: Tensor | None = None
    towards: Tensor | None = None
    share: Tensor | None = None
    negative: Tensor | None = None
    known: Tensor | None = None

    def rows(self, rows: range) -> "Condition":
        """Return what some of the samples are asked to be."""
        part = slice(rows.start, rows.stop)
        given = (getattr(self, f.name) for f in fields(self))
        return Condition(*(None if tensor is None else tensor[part] for tensor in given))  # type: ignore[arg-type]

    def features(self, model: DiffusionNetwork) -> TextFeatures | None:
        """Return the captions as the model's own text encoder reads them; None for a model without."""
        text: TextCondition | None = getattr(model, "text", None)
        if text is None:
            return None
        features: TextFeatures = text(self.captions, len(self.labels))
        if self.towards is None or self.share is None:
            return features
        return mixed(features, text(self.towards, len(self.labels)), self.share)

    def without(self, model: DiffusionNetwork) -> "Condition":
        """Return what guidance leads away from: the same known part, no class, the negative or the empty caption."""
        captions = self.negative if self.negative is not None else self.empty(model)
        return Condition(torch.full_like(self.labels, NO_CLASS), captions, known=self.known)

    def empty(self, model: DiffusionNetwork) -> Tensor | None:
        """Return empty captions, as the model's text encoder reads them; None for a model without."""
        text: TextCondition | None = getattr(model, "text", None)
        return None if text is None else text.empty(len(self.labels))


def denoiser_of(model: DiffusionNetwork, condition: Condition) -> Denoiser:
    """Return the model as a function (x_t, t) -> x_0 for samples of this condition, whose text is encoded once."""
    c, labels = model.config, condition.labels
    assert c.sigma_data, "a run records what its data says (with_data)"
    text = condition.features(model)
    given: dict[str, Any] = {} if text is None else {"text": text}
    if condition.known is not None:
        given["known"] = condition.known
    return denoiser(lambda x, level: model(x, level, labels, **given), path_of(c), c.prediction, c.sigma_data)


def guidance_scale(config: DiffusionProcess, wanted: float | None, has_guide: bool) -> float:
    """Return the scale of guidance: the wanted one, or, for null, what suits the model.

    has_guide: whether another model or a negative text is there to guide away from. Raises UserError where there is
    nothing: else that is the model's own estimate without a condition, which a model trained with drop_condition=0
    never learnt.
    """
    conditional = config.text or config.classes
    if has_guide or (conditional and config.drop_condition > 0):
        return GUIDANCE if wanted is None else wanted
    if conditional and wanted not in (None, 1.0):
        what = "caption" if config.text else "class"
        raise UserError(
            f"guidance={wanted:g}: the model always saw its {what} (model.drop_condition=0), so it has no estimate "
            "without one to guide away from; leave guidance out, or name another model by guide="
        )
    return 1.0


def guided_denoiser(
    model: DiffusionNetwork, condition: Condition, settings: DiffusionSettings, worse: DiffusionNetwork | None = None
) -> Denoiser:
    """Return the denoiser of this condition, guided away from the worse model, or else from none."""
    other = worse is not None or condition.negative is not None
    path, scale = path_of(model.config), guidance_scale(model.config, settings.guidance, other)
    reference = denoiser_of(worse, condition) if worse else denoiser_of(model, condition.without(model))
    shares = settings.guide_from, settings.guide_to
    start, end = (math.inf if share == 1 else path.time_at(share / (1 - share)) for share in shares)
    return guide(denoiser_of(model, condition), reference, scale, (start, end), settings.rescale)


@torch.inference_mode()
def draw(
    model: DiffusionNetwork,
    condition: Condition,
    samples: Sequence[int],
    seed: int,
    settings: DiffusionSettings,
    *,
    worse: DiffusionNetwork | None = None,
    callback: Callback = None,
) -> Tensor:
    """Return samples of these numbers and of this condition, (B, *sample_shape) fp32, on the condition's device.

    The noise of sample i is a function of (seed, i) alone. callback: see `gengen.diffusion.samplers`.
    """
    path = path_of(model.config)
    device = condition.labels.device
    noise = Noise(seed, samples, model.config.sample_shape(), device)
    times = path.times(settings.steps)
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        denoise = guided_denoiser(model, condition, settings, worse)
        return SAMPLERS[settings.sampler](denoise, path.sigma(times[0]) * noise(), times, path, noise, callback)
