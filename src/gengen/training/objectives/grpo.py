"""Group-relative policy optimisation (Shao et al. 2024) and its kin (RLOO, Dr. GRPO): no critic, an answer is compared
with others to the same prompt."""

from dataclasses import replace

from gengen.alignment.advantages import group_advantages
from gengen.config.stage import GRPOConfig
from gengen.training.objectives.online_rl import OnlineRL
from gengen.training.objectives.rollout import Rollout


class GRPO(OnlineRL):
    """Every token of an answer has the answer's advantage within its group, by stage.advantage."""

    stage_config: GRPOConfig

    def with_advantages(self, rollout: Rollout) -> Rollout:
        c = self.stage_config
        scores, kl = rollout.scores.view(-1, c.group), rollout.kl.view(-1, c.group)  # (prompts, group)
        advantages = group_advantages(scores, c.advantage, self.reward_beta * kl)
        return replace(rollout, advantages=advantages.view(-1, 1) * rollout.mask)
