"""Training of autoencoders: VAE, the first stage of latent diffusion, VQ-VAE. All losses are sums over an image, in
fp32.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gengen.config.model import AutoencoderConfig
from gengen.config.train import TrainConfig
from gengen.data.image.latents import from_moments, moments
from gengen.data.prepared import FlippableRows
from gengen.errors import UserError
from gengen.evaluation.features import efficientnet
from gengen.evaluation.metrics import psnr
from gengen.generation.image.autoencoder import AutoencoderGenerator
from gengen.generation.image.files import enlarged, grid, to_uint8, write_png
from gengen.generation.noise import Noise
from gengen.models.autoencoder import Autoencoder
from gengen.models.efficientnet import EfficientNetLite0
from gengen.models.flops import forward_flops
from gengen.training.objective import Batch, Objective
from gengen.training.objectives.patch_adversary import PatchAdversary

Features = Callable[[Tensor], list[Tensor]]

LEVEL = 2 / 255  # between neighbouring values of an 8-bit image in [-1, 1]
SHOWN = 12  # images in a row of the samples


def level_nats(images: Tensor, reconstructions: Tensor, scale: Tensor) -> Tensor:
    """Return -log probability of 8-bit values under a logistic around the reconstruction, summed over an image:
    (B, C, H, W) twice -> (B,).

    A value's probability is the logistic's mass from half a level below to half a level above; that of an end of the
    range is all the mass beyond (Salimans et al. 2017, eq. 2). In s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)) nothing
    cancels.
    """
    above = F.logsigmoid((images - reconstructions + LEVEL / 2) / scale)
    below = F.logsigmoid((reconstructions - images + LEVEL / 2) / scale)
    lowest, highest = images < LEVEL / 2 - 1, images > 1 - LEVEL / 2
    inside = torch.log(-torch.expm1(-LEVEL / scale))
    log_mass = above.masked_fill(highest, 0) + below.masked_fill(lowest, 0) + inside * ~(lowest | highest)
    return -log_mass.flatten(1).sum(1)


def l1_l2(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Return |error| + error^2, summed over an image: (B, C, H, W) twice -> (B,).

    What lies beyond an end of the range counts as that end, as it will be in a file: black may be blacker than black.
    """
    right = (images.abs() == 1) & (images * reconstructions > 1)
    error = (images - reconstructions).masked_fill(right, 0)
    return (error.abs() + error.square()).flatten(1).sum(1)


def perceptual_distance(images: Tensor, reconstructions: Tensor, features: Features) -> Tensor:
    """Return the squared distance of features of unit length at each position, averaged over positions, summed over
    maps: (B,).

    The form of LPIPS (Zhang et al. 2018, eq. 1) without its learned weights. The gradient reaches the reconstructions
    through `features`.
    """
    with torch.no_grad():
        wanted = [F.normalize(x, dim=1, eps=1e-6) for x in features(images)]
    found = [F.normalize(x, dim=1, eps=1e-6) for x in features(reconstructions)]
    return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in zip(wanted, found, strict=True)]).sum(0)


def above_free_bits(kl: Tensor, free_bits: float) -> Tensor:
    """Return an image's loss by KL: max(KL of a channel, free_bits of each of its latents), summed over channels;
    (B, Z, h, w) -> (B,).

    Kingma et al. 2016, eq. 15, take the mean over the batch before the maximum; here each image is compared, so that
    the gradient of a step does not depend on how its batch was cut.
    """
    by_channel = kl.flatten(2)
    return by_channel.sum(2).clamp(min=free_bits * by_channel.shape[2]).sum(1)


def warmed_up(step: int, max_steps: int, share: float) -> float:
    """Return the weight of the KL as a share of beta in update number `step` (from 0): it rises over the first
    `share` of max_steps, then is 1.
    """
    return min(1.0, (step + 1) / max(1, round(share * max_steps)))


def perplexity(counts: Tensor) -> float:
    """Return exp of the entropy of codes, from their counts (K,): the size of a uniform choice that has it."""
    p = counts / counts.sum()
    return float(torch.special.entr(p).sum().exp())


class Autoencoding(Objective):
    """Reconstruction, and what the bottleneck costs: with loss=elbo and beta=1 the negative ELBO in nats.

    Evaluation weighs the KL with beta, without warm-up and free bits, and draws an image's noise from (seed, index of
    the image); PSNR is that of the decoded posterior mean, of an exact copy 100 dB; KL is in nats a latent; bits are
    those that tell a value of one of 256 levels.
    """

    unit = "images"
    model: Autoencoder

    def __init__(self, config: TrainConfig, model: Autoencoder, prepared: FlippableRows):
        super().__init__(config, model)
        self.prepared = prepared
        assert isinstance(config.model, AutoencoderConfig)
        self.c = config.model
        self.elbo, self.codes = model.log_scale is not None, model.bottleneck.codes
        self.adversary = PatchAdversary(self.c.resolved()) if self.c.adversarial else None
        self.logged_metrics = ("d_loss", "d_grad_norm") if self.adversary else ()
        self.metrics = ("val/loss", "val/psnr", "val/perplexity" if self.codes else "val/kl")
        if self.elbo:
            self.metrics += ("val/bits_per_dim",)
        self.n_eval_sums = 4 + self.codes + (0 if self.elbo else 3 * model.latent_shape[0])

    # --- a step

    def draws(self, rows: int, generator: torch.Generator) -> Batch:
        return {} if self.codes else {"noise": torch.randn(rows, *self.model.latent_shape, generator=generator)}

    def loss_sum(self, batch: Batch) -> Tensor:
        images = batch["images"]
        reconstructions, cost = self.network(images, batch.get("noise"))
        weight = self.c.beta * warmed_up(
            self.global_step, self.trainer.max_steps if self._trainer else 1, self.c.kl_warmup
        )
        loss = self.distortion(images, reconstructions) + weight * above_free_bits(cost, self.c.free_bits)
        if self.adversary and self.adversary.plays(self.global_step, self.trainer.max_steps):
            loss = loss + self.adversary.cost(images, reconstructions)
        return loss.sum()

    def distortion(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Return the reconstruction loss of each image, (B,) fp32."""
        with torch.autocast(images.device.type, enabled=False):
            lack = (
                level_nats(images, reconstructions, self.model.scale) if self.elbo else l1_l2(images, reconstructions)
            )
            if self.c.perceptual:
                shown = reconstructions.clamp(-1, 1)
                lack = lack + self.c.perceptual * images[0].numel() * perceptual_distance(images, shown, self.features)
            return lack

    def loss_count(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["images"]), device=batch["images"].device)

    # --- a step with an adversary, whose update comes first

    def optimize(self, batch: Batch, total: Tensor) -> Tensor:
        self.logged |= {name: torch.zeros(()) for name in self.logged_metrics}
        if self.adversary is None or not self.adversary.plays(self.global_step, self.trainer.max_steps):
            return super().optimize(batch, total)
        network = self.adversary.network
        loss, norm, adversary_finite = self.apply_gradients(
            network,
            self.adversary.optimizer,
            self.backward_with_oom_retry(self.adversary_loss_sum, batch, total, network),
        )
        self.logged |= {"d_loss": loss, "d_grad_norm": norm}
        network.requires_grad_(False)
        finite = super().optimize(batch, total)
        network.requires_grad_(True)
        return finite & adversary_finite

    def adversary_loss_sum(self, batch: Batch) -> Tensor:
        assert self.adversary is not None
        with torch.no_grad():
            reconstructions, _ = self.network(batch["images"], batch.get("noise"))
        return self.adversary.loss(batch["images"], reconstructions).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.adversary:
            self.adversary.start(replace(self.config.optim, name="adamw"), self.device)
        return super().configure_optimizers()

    def seconds_a_step(self, trial: list[float]) -> float:
        """The adversary plays in the last steps of the trial too, but those before are too few and too early for their
        share.
        """
        if self.adversary is None:
            return super().seconds_a_step(trial)
        first, settled = math.ceil(self.c.adversarial_from * len(trial)), len(trial) // 4
        alone, contested = trial[settled:first] or trial[-1:], trial[max(first, settled) :] or trial[-1:]
        return self.c.adversarial_from * median(alone) + (1 - self.c.adversarial_from) * median(contested)

    def extra_state(self) -> dict[str, Any]:
        return {"adversary": self.adversary.state()} if self.adversary else {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if self.adversary and "adversary" not in state:
            raise UserError(
                f"model.adversarial={self.c.adversarial}: the checkpoint was trained without; a new run can start "
                "from it by init_from"
            )
        if self.adversary:
            self.adversary.load(state["adversary"])

    # --- evaluation

    def evaluation_sums(self, batch: Batch) -> Tensor:
        images = batch["images"]
        noise = Noise(self.config.seed, batch["index"].tolist(), self.model.latent_shape, images.device)()
        hidden = self.model.hidden(images)
        latents, cost = self.model.bottleneck(hidden, noise)
        reconstructions = self.model.decode(latents)
        loss = self.distortion(images, reconstructions) + self.c.beta * cost.flatten(1).sum(1)
        shown = self.model.decode(self.model.bottleneck(hidden)[0]).clamp(-1, 1)
        likeness = psnr((images + 1) / 2, (shown + 1) / 2).clamp(max=100)
        sums = torch.stack([loss.sum(), likeness.sum(), cost.sum(), self.loss_count(batch)]).double()
        counts = (
            torch.bincount(self.model.codes(images).flatten(), minlength=self.codes).double()
            if self.codes
            else sums[:0]
        )
        latent = sums[:0] if self.elbo else moments(*self.model.posterior(hidden)).flatten()
        return torch.cat([sums, counts, latent])

    def evaluate(
        self, batches: Iterable[Batch], interrupted: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """As every objective's; and what the latents' channels are like over the held-out images is kept with the
        weights.

        A VAE's latents are to be N(0, 1), which is what its buffers say from the start.
        """
        metrics = super().evaluate(batches, interrupted)
        if metrics is not None and not self.elbo:
            for name, value in zip(("latent_mean", "latent_std"), self.latent_statistics, strict=True):
                getattr(self.model, name).copy_(value)
                if self.ema is not None:
                    self.ema[name] = value.to(self.ema[name].device)
        return metrics

    def evaluation_metrics(self, sums: Tensor) -> dict[str, float]:
        if not self.elbo:
            self.latent_statistics = from_moments(sums[4 + self.codes :].unflatten(0, (3, -1)))
        loss, likeness, cost = (sums[:3] / sums[3]).tolist()
        metrics = {"val/loss": loss, "val/psnr": likeness}
        if self.codes:
            metrics["val/perplexity"] = perplexity(sums[4 : 4 + self.codes])
        else:
            metrics["val/kl"] = cost / math.prod(self.model.latent_shape)
        if self.elbo:
            assert self.c.channels and self.c.resolution
            nats = loss + (1 - self.c.beta) * cost  # the ELBO's, whatever beta is
            metrics["val/bits_per_dim"] = nats / math.log(2) / (self.c.channels * self.c.resolution**2)
        return metrics

    def write_samples(self, stem: Path, interrupted: Callable[[], bool]) -> str | None:
        """Held-out images, below them their reconstructions, and of a VAE draws from the prior, always of the same
        seed: stem.png.
        """
        generator = AutoencoderGenerator(self.model)
        count = min(SHOWN, len(self.prepared.val))
        index = torch.arange(count) * len(self.prepared.val) // count
        images = self.prepared.batch("val", index, torch.zeros(count, dtype=torch.bool))["images"]
        rows = [to_uint8(images), generator.reconstruct(to_uint8(images))]
        if self.elbo:
            rows.append(generator.generate(3 * count, seed=self.config.seed))
        if interrupted():
            return None
        path = stem.with_suffix(".png")
        write_png(path, grid(enlarged(torch.cat([row.cpu() for row in rows])), count))
        return str(path)

    # --- the perceptual loss

    @cached_property
    def features(self) -> Features:
        """The frozen network's. It is no submodule, so it is in no optimizer, EMA or checkpoint."""
        network = efficientnet(self.config.data.dir, self.say)
        return network.to(self.device).perceptual_features

    def flops_per_row(self) -> float:
        return self._flops

    @cached_property
    def _flops(self) -> float:
        """Three forward passes: the backward pass is two, and of the frozen network one, as images and reconstructions
        go forward. An adversary adds, in its share of the steps, a pass of the autoencoder, 12 of its own for its
        update (6 for either image, see Adversarial) and 3 for the autoencoder's."""
        c = self.c
        assert c.channels and c.resolution
        with torch.device("meta"):
            images = torch.empty(1, c.channels, c.resolution, c.resolution)
            model = Autoencoder(c)
            forward = forward_flops(model.hidden, images) + forward_flops(
                model.decode, torch.empty(1, *model.latent_shape)
            )
            watched = forward_flops(EfficientNetLite0().eval().perceptual_features, images) if c.perceptual else 0.0
            judged = forward_flops(PatchAdversary(c.resolved()).network, images) if c.adversarial else 0.0
        contested = (1 - c.adversarial_from) * (forward + 15 * judged) if c.adversarial else 0.0
        return 3 * (forward + watched) + contested
