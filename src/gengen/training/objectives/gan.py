"""Training of GANs: in each step one update of the discriminator, then one of the generator."""

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from gengen.adversarial.augment import DRAWS, augment
from gengen.adversarial.losses import LOSSES, cosine, gradient_penalty, lazy_penalty_weight
from gengen.config.model import AdversarialConfig
from gengen.config.train import TrainConfig
from gengen.data.prepared import FlippableRows
from gengen.errors import UserError
from gengen.evaluation.coverage import NEIGHBOURS, HeldOutImages
from gengen.generation.image.files import enlarged, grid, write_png
from gengen.generation.image.gan import GANGenerator
from gengen.generation.noise import Noise
from gengen.models.flops import forward_flops
from gengen.models.gan import GAN
from gengen.training.checkpointing import by_index, by_name
from gengen.training.objective import Batch, Objective, Optimizer
from gengen.training.optim.groups import build_optimizer

COLLAPSED = 0.3  # val/coverage below which a warning is given


class Adversarial(Objective):
    """A generator against a discriminator (Goodfellow et al. 2014), with the losses, penalties and schedules of its
    config.

    A batch is {"images", "labels"}; generated images are of the same labels as the real ones they are paired with. The
    generator's optimizer is the one Lightning steps and counts; the discriminator's is stepped beside it. The
    gradients do not depend on how a batch is cut, but for batch normalisation and for the power iterations of spectral
    normalisation.

    val/loss is the discriminator's on held-out images; val/kid and val/coverage compare some of those with samples
    of their labels (gengen.evaluation.coverage).
    """

    unit = "images"
    metrics = ("val/loss", "val/kid", "val/coverage")
    monitor = "val/kid"
    logged_metrics = ("d_loss", "d_grad_norm", "d_real_minus_fake", "r1", "r2")
    ema_prefix = "generator."
    n_eval_sums = 2
    model: GAN

    def __init__(self, config: TrainConfig, model: GAN, prepared: FlippableRows):
        super().__init__(config, model)
        assert isinstance(config.model, AdversarialConfig)
        if prepared is not None and len(prepared.val) <= NEIGHBOURS:
            raise UserError(
                f"{len(prepared.val)} images are held out; model={config.model.name} needs {NEIGHBOURS + 1}, to see "
                "how varied its samples are: more images, or a larger data.validation"
            )
        self.prepared, self.c, self.loss = prepared, config.model, LOSSES[config.model.loss]
        self.penalties = torch.zeros(2)  # R1 and R2 of the last step that had them, by image
        self.generator: Callable[..., Tensor] = model.generator.__call__

    def use_compiled(self) -> None:
        """Compile the generator alone: torch.compile has no second derivatives, which the discriminator's penalties
        need.
        """
        self.generator = torch.compile(self.model.generator).__call__  # type: ignore[operator]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.discriminator_optimizer = build_optimizer(self.model.discriminator, self.config.optim)
        return build_optimizer(self.model.generator, self.config.optim)

    def extra_state(self) -> dict[str, Any]:
        return {"discriminator": by_name(self.discriminator_optimizer.state_dict()), "penalties": self.penalties}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.discriminator_optimizer.load_state_dict(by_index(state["discriminator"]))
        self.penalties = state["penalties"].to(self.device)

    # --- a step

    def draws(self, rows: int, generator: torch.Generator) -> Batch:
        """Draw for the discriminator's update and for the generator's: z, and what augments a real and a generated
        image.
        """
        z = torch.randn(rows, 2, self.c.latent_size, generator=generator)
        return {"z": z, "u": torch.rand(rows, 2, 2, DRAWS, generator=generator)}

    def optimize(self, batch: Batch, total: Tensor) -> Tensor:
        generator, discriminator = self.model.generator, self.model.discriminator
        self.running_sums = torch.zeros(3, device=self.device)  # D(real) - D(fake), R1 and R2, summed over images
        loss = self.backward_with_oom_retry(self.discriminator_loss_sum, batch, total, discriminator)
        d_loss, d_norm, d_finite = self.apply_gradients(discriminator, self.discriminator_optimizer, loss)
        gap, *penalties = self.all_reduced(self.running_sums) / total
        if self.penalty_weight():
            self.penalties = torch.stack(penalties)

        discriminator.requires_grad_(False)
        loss = self.backward_with_oom_retry(self.loss_sum, batch, total, generator)
        discriminator.requires_grad_(True)
        optimizer = self.optimizers(use_pl_optimizer=True)
        assert not isinstance(optimizer, list)
        g_loss, g_norm, g_finite = self.apply_gradients(generator, optimizer, loss)

        signals = [d_loss, d_norm, gap, *self.penalties]
        self.logged |= {"loss": g_loss, "grad_norm": g_norm} | dict(zip(self.logged_metrics, signals, strict=True))
        return d_finite & g_finite

    def discriminator_loss_sum(self, batch: Batch) -> Tensor:
        """Return the discriminator's loss and, in the steps that have them, R1 and R2, which are taken in fp32 and
        through the augmentation.
        """
        images, labels, (real_u, fake_u) = batch["images"], batch["labels"], batch["u"][:, 0].unbind(1)
        with torch.no_grad():
            fakes = self.generator(batch["z"][:, 0], labels)
        penalty_weight = self.penalty_weight()
        with torch.autocast(
            self.device.type, enabled=penalty_weight == 0 and torch.is_autocast_enabled(self.device.type)
        ):
            images, fakes = images.requires_grad_(penalty_weight > 0), fakes.requires_grad_(penalty_weight > 0)
            real, fake = self.logits(images, labels, real_u), self.logits(fakes, labels, fake_u)
            loss = self.loss.discriminator(real, fake).sum()
            self.running_sums[0] += (real - fake).detach().sum()
            if penalty_weight == 0:
                return loss
            r1, r2 = gradient_penalty(real, images).sum(), gradient_penalty(fake, fakes).sum()
            self.running_sums[1:] += torch.stack([r1, r2]).detach()
            return loss + penalty_weight * self.gamma() / 2 * (r1 + r2)

    def loss_sum(self, batch: Batch) -> Tensor:
        """Return the generator's loss."""
        labels, (real_u, fake_u) = batch["labels"], batch["u"][:, 1].unbind(1)
        fake = self.logits(self.generator(batch["z"][:, 1], labels), labels, fake_u)
        real = self.logits(batch["images"], labels, real_u) if self.loss.paired else fake
        return self.loss.generator(real, fake).sum()

    def logits(self, images: Tensor, labels: Tensor, u: Tensor) -> Tensor:
        """Return logits (B,) fp32 of images (B, C, R, R), augmented as u (B, DRAWS) says."""
        with torch.autocast(images.device.type, enabled=False):
            shown = augment(images, u, self.c.augmentations())
        return self.model.discriminator(shown, labels).float()

    def loss_count(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["images"]), device=self.device)

    # --- schedules

    def progress(self) -> float:
        """Return how much of the burn-in is over, 0 to 1."""
        return min(1.0, self.global_step / max(1.0, self.c.burn_in * self.trainer.max_steps))

    def penalty_weight(self) -> float:
        """Return the weight of this step's penalties, times gamma; 0 in a step without."""
        return lazy_penalty_weight(self.global_step, self.c.penalty_every) if self.c.gamma else 0.0

    def gamma(self) -> float:
        return self.c.gamma * cosine(self.progress(), 1.0, self.c.final_gamma)

    def schedule(self, optimizer: Optimizer) -> None:
        super().schedule(optimizer)
        o = self.config.optim
        beta2 = o.beta2 if self.c.first_beta2 is None else cosine(self.progress(), self.c.first_beta2, o.beta2)
        for group in optimizer.param_groups:
            group["betas"] = (o.beta1, beta2)

    def ema_decay(self) -> float:
        """Return the average's decay: its half-life, in steps, rises from 0 to that of optim.ema."""
        assert self.config.optim.ema
        half_life = cosine(self.progress(), 0.0, -math.log(2) / math.log(self.config.optim.ema))
        return 0.5 ** (1 / half_life) if half_life else 0.0

    # --- evaluation

    def evaluation_sums(self, batch: Batch) -> Tensor:
        images, labels, index = batch["images"], batch["labels"], batch["index"]
        fakes = self.model.generator(
            Noise(self.config.seed, index.tolist(), (self.c.latent_size,), self.device)(), labels
        )
        losses = self.loss.discriminator(
            self.model.discriminator(images, labels), self.model.discriminator(fakes, labels)
        )
        return torch.stack([losses.sum(), self.loss_count(batch)]).double()

    def evaluation_metrics(self, sums: Tensor) -> dict[str, float]:
        loss, images = sums.tolist()
        labels = self.held_out.labels
        samples = GANGenerator(self.model).generate(len(labels), labels, seed=self.config.seed)
        kid, coverage = self.held_out.compare(samples)
        return {"val/loss": loss / images, "val/kid": kid, "val/coverage": coverage}

    @cached_property
    def held_out(self) -> HeldOutImages:
        return HeldOutImages.of(self.prepared)

    def warning(self, metrics: dict[str, float]) -> str | None:
        if metrics["val/coverage"] >= COLLAPSED or self.global_step < self.trainer.max_steps / 4:
            return None
        return (
            f"samples cover {metrics['val/coverage']:.0%} of what training images cover: the generator is collapsing. "
            "A larger model.gamma, a lower optim.lr, or model.augment=color,translation,cutout for a small set may "
            "help"
        )

    def write_samples(self, stem: Path, interrupted: Callable[[], bool]) -> str | None:
        """Write a grid of 40 images, a column a class, always of the same seed, to stem.png."""
        labels = range(min(10, len(self.c.classes)))
        columns = len(labels) or 8
        images = GANGenerator(self.model).generate(4 * columns, labels, seed=self.config.seed)
        if interrupted():
            return None
        write_png(path := stem.with_suffix(".png"), grid(enlarged(images), columns))
        return str(path)

    def seconds_a_step(self, trial: list[float]) -> float:
        """Return the mean over steps with and without penalties, each by their share."""
        every, settled = self.c.penalty_every, len(trial) // 4
        dear = [t for step, t in enumerate(trial) if step % every == 0 and step >= settled] or trial[:1]
        plain = [t for step, t in enumerate(trial) if step % every and step >= settled] or dear
        return (median(dear) + (every - 1) * median(plain)) / every

    def flops_per_row(self) -> float:
        return self._flops

    @cached_property
    def _flops(self) -> float:
        """Count a step for one row, in forward passes F of the generator and f of the discriminator.

        The generator's update costs 3 F and, through the discriminator, 2 f; the discriminator's update F and, for two
        images, 3 f each; with penalties 3 f more each: the gradient, and twice that backwards through it.
        """
        c = self.c
        with torch.device("meta"):
            labels, model = torch.zeros(1, dtype=torch.long), type(self.model)(c)
            images = torch.empty(1, c.channels or 0, c.resolution or 0, c.resolution or 0)
            generator = forward_flops(model.generator, torch.empty(1, c.latent_size), labels)
            discriminator = forward_flops(model.discriminator, images, labels)
        penalty = 6 / c.penalty_every if c.gamma else 0
        return 4 * generator + (8 + self.loss.paired + penalty) * discriminator
