"""Proximal policy optimisation (Schulman et al. 2017) of language models (Ziegler et al. 2019): a critic beside the
policy says what each state is worth, and advantages are estimated from that."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gengen.alignment.advantages import gae, token_rewards, whiten
from gengen.alignment.losses import clipped_value_loss
from gengen.config.stage import PPOConfig
from gengen.config.train import TrainConfig
from gengen.generation.load import base_checkpoint, load_as, start_from
from gengen.generation.text.rewards import Scorer
from gengen.models.gpt import GPT
from gengen.models.lora import add_adapters
from gengen.models.reward import RewardModel
from gengen.training.objective import Batch, Optimizer
from gengen.training.objectives.online_rl import ROLLOUT_FIGURES, STEP_FIGURES, OnlineRL, frozen_reward
from gengen.training.objectives.rollout import PromptData, Rollout
from gengen.training.objectives.side_network import SideNetwork

CRITIC_RATIO = 2.5  # the critic's learning rate over the policy's, unless stage.critic_lr says it


class PPO(OnlineRL):
    """Rewards of tokens, less their KL; GAE over a critic's values; a step updates the critic, then the policy.

    The critic starts from the reward model where there is one, and has an optimizer of its own.
    """

    logged_metrics = (*ROLLOUT_FIGURES, *STEP_FIGURES, "value_loss", "explained_variance")
    stage_config: PPOConfig

    def __init__(self, config: TrainConfig, model: GPT, prepared: PromptData | None):
        super().__init__(config, model, prepared)
        if prepared is not None:
            self.critic = SideNetwork(self.build_critic(config))

    def build_critic(self, config: TrainConfig) -> RewardModel:
        """Return the reward model, where a run is one of the rewards; else the policy's trunk under a head that says
        0. Beside an adapted policy its trunk is adapted, too."""
        critic = self.initial_critic(config)
        if self.model.base_names:
            add_adapters(critic, self.model.config.lora)
        return critic

    def initial_critic(self, config: TrainConfig) -> RewardModel:
        for i in range(len(self.stage_config.reward)):
            if (path := frozen_reward(config, i)).exists():
                return load_as(Scorer, str(path), device="cpu").model
        critic = RewardModel(self.model.config)
        if self.model.base_names:
            start_from(critic, base_checkpoint(self.model.config.lora, Path(config.runs_dir)))
        else:
            trunk = critic.adapt_weights(self.model.state_dict(), self.model.vocab_size)
            critic.load_state_dict(trunk, strict=False)
        torch.nn.init.zeros_(critic.value.weight)
        return critic

    def with_advantages(self, rollout: Rollout) -> Rollout:
        c, mask = self.stage_config, rollout.mask
        values = self.evaluate_rollout(self.values, rollout.tokens, mask)
        log_ratios = rollout.old_log_probs - rollout.ref_log_probs
        rewards = token_rewards(rollout.scores, log_ratios, mask, self.reward_beta)
        advantages, returns = gae(rewards, values, mask, c.gamma, c.lam)
        self.figures["explained_variance"] = explained_variance(values, returns, mask)
        return replace(rollout, advantages=whiten(advantages, mask), values=values * mask, returns=returns)

    def values(self, part: Batch) -> Tensor:
        """Return the critic's value of the state before each token, (B, T - 1)."""
        critic = self.critic.network
        return critic.normalized(critic(part["tokens"][:, :-1]))

    def optimize(self, batch: Batch, total: Tensor) -> Tensor:
        """Update the critic first, so that both updates are of the same step."""
        critic, tokens = self.critic, batch["mask"].sum().clamp(min=1)
        loss = self.backward_with_oom_retry(self.value_loss_sum, batch, tokens, critic.network)
        self.logged["value_loss"], _, finite = self.apply_gradients(critic.network, critic.optimizer, loss)
        return finite & super().optimize(batch, total)

    def value_loss_sum(self, batch: Batch) -> Tensor:
        c = self.stage_config
        losses = clipped_value_loss(self.values(batch), batch["values"], batch["returns"], c.value_clip)
        return (losses * batch["mask"]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.critic.start(self.config.optim, self.device, self.config.model.hidden_maps)
        return super().configure_optimizers()

    def schedule(self, optimizer: Optimizer) -> None:
        super().schedule(optimizer)
        if optimizer is self.critic.optimizer:
            peak = self.config.optim.peak_lr
            for group in optimizer.param_groups:
                group["lr"] *= (self.stage_config.critic_lr or CRITIC_RATIO * peak) / peak

    def extra_state(self) -> dict[str, Any]:
        return super().extra_state() | {"critic": self.critic.state()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.critic.load(state["critic"])


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Return the share of the returns' variance over the mask that the values explain; all (N, T - 1)."""
    left = (returns - values)[mask > 0].var(correction=0)  # of a single token, too
    return float(1 - left / returns[mask > 0].var(correction=0).clamp(min=1e-8))
