"""Stages: what a model is trained for. Each has a config of its own and the kind of data it is trained on."""

from dataclasses import dataclass
from typing import ClassVar

from gengen.config.fields import choice, option, positive
from gengen.errors import UserError
from gengen.registry import register_stage


def weighted_reward(name: str) -> tuple[float, str]:
    """Split "0.5*runs/RM" into (0.5, "runs/RM"); without a weight it is 1."""
    weight, star, rest = name.partition("*")
    try:
        return (float(weight), rest) if star else (1.0, name)
    except ValueError:
        raise UserError(f"stage.reward={name}: write NAME or WEIGHT*NAME, such as 0.5*runs/RM") from None


@register_stage("pretrain")
@dataclass
class StageConfig:
    """Pretraining: model the data."""

    name: str = option("pretrain", "registered name of the stage")

    allows_dropout: ClassVar[bool] = (
        True  # whether model.dropout is kept: log-probabilities that are compared must have none
    )

    @property
    def needs_reference(self) -> bool:
        """Whether the run it starts from stays beside it, frozen, as the reference."""
        return False

    def rewards(self) -> list[str]:
        """Return the rewards it is trained on, as they were named."""
        return []

    def check(self) -> None:
        """Raise UserError where fields do not go together."""


@dataclass
class TuningConfig(StageConfig):
    """Fields of the stages that pass over a data set."""

    epochs: float = positive(2.0, "passes over the data that trainer.max_steps=null stands for")


@register_stage("sft", data="conversations")
@dataclass
class SFTConfig(TuningConfig):
    """Supervised fine-tuning: answer as in conversations."""

    name: str = option("sft", "registered name of the stage")


@register_stage("reward", data="preferences")
@dataclass
class RewardConfig(TuningConfig):
    """A reward model: score the answer that is preferred above the other (Bradley-Terry)."""

    name: str = option("reward", "registered name of the stage")
    centring: float = option(0.01, "weight of the squared sum of a pair's scores, which keeps them about 0", low=0)

    allows_dropout: ClassVar[bool] = False


@register_stage("dpo", data="preferences")
@dataclass
class DPOConfig(TuningConfig):
    """Direct preference optimisation: preferences without a reward model."""

    name: str = option("dpo", "registered name of the stage")
    loss: str = choice(
        "dpo",
        ["dpo", "ipo", "cdpo", "simpo", "orpo"],
        "logistic; squared distance to a margin; logistic, some labels being wrong; and without a reference: logistic "
        "of means, with a margin; fine-tuning and the odds of the two answers",
    )
    reduction: str = choice(
        "sum",  # what a run means that has no such field; a new one has the YAML's: auto
        ["auto", "sum", "mean"],
        "log-probability of an answer: sum over its tokens, or mean; auto = mean for ipo, simpo and orpo, "
        "as their authors do, else sum",
    )
    beta: float = positive(
        0.1, "how much leaving the reference costs; simpo: scale, about 2; orpo: weight of the odds"
    )
    smoothing: float = option(0.1, "cdpo: the share of preferences taken to be wrong", low=0, below=0.5)
    margin: float = option(0.5, "simpo: by how much the scaled means are to differ", low=0)

    allows_dropout: ClassVar[bool] = False

    def check(self) -> None:
        if self.reduction == "sum" and not self.needs_reference:
            raise UserError(
                f"stage.loss={self.loss} stage.reduction=sum: without a reference a sum prefers short answers; take "
                "stage.reduction=mean"
            )

    @property
    def needs_reference(self) -> bool:
        return self.loss not in ("simpo", "orpo")

    @property
    def takes_mean(self) -> bool:
        """Whether log-probabilities are means over an answer's tokens."""
        return self.reduction == "mean" or (
            self.reduction == "auto" and (self.loss == "ipo" or not self.needs_reference)
        )


@register_stage("kto", data="ratings")
@dataclass
class KTOConfig(TuningConfig):
    """Kahneman-Tversky optimisation: answers that were called good or bad, each by itself."""

    name: str = option("kto", "registered name of the stage")
    beta: float = positive(0.1, "how much leaving the reference costs")
    good: float = option(1.0, "weight of good answers; for n times as many bad ones about n", low=0)
    bad: float = option(1.0, "weight of bad answers", low=0)

    allows_dropout: ClassVar[bool] = False

    @property
    def needs_reference(self) -> bool:
        return True


@dataclass
class OnlineConfig(StageConfig):
    """What PPO and GRPO have: an iteration draws answers, scores them, and takes epochs x minibatches steps of
    data.batch_size.
    """

    reward: list[str] = option(
        [], "a reward run, or the name of a registered function; repeat for their sum; WEIGHT*NAME weighs one"
    )
    minibatches: int = positive(
        4, "steps that an iteration's answers are cut into; one minibatch is data.batch_size answers"
    )
    epochs: int = positive(2, "passes over an iteration's answers")
    max_tokens: int = positive(64, "tokens of an answer at most")
    temperature: float = positive(1.0, "of sampling, and of every log-probability")
    clip: float = positive(0.2, "how far the ratio to the sampling policy may move the loss")
    clip_high: float | None = positive(None, "the same upwards; null = clip")
    beta: float = option(0.05, "weight of the KL to the reference", low=0)
    kl_in: str = choice(
        "reward",
        ["reward", "loss"],
        "where that KL goes: taken from the reward (of each token; of groups, of each answer, after advantage=grpo "
        "has divided), or added to the loss",
    )
    kl_estimator: str = choice(
        "k1",
        ["k1", "k2", "k3"],
        "of that KL: k1 for the reward; for the loss k2 (or k3, the KL's reverse near the end)",
    )
    kl_target: float | None = positive(None, "nats an answer that beta is adapted to; null = beta is fixed")
    kl_horizon: int = positive(10_000, "answers over which beta adapts")
    kl_stop: float | None = positive(
        None, "approximate KL to the sampling policy at which an iteration ends early; null = never"
    )
    missing_end: float | None = option(
        -1.0, "reward of an answer that did not end, whatever its score; null = its score"
    )
    entropy: float = option(0.0, "weight of the entropy bonus", low=0)
    importance: str = choice(
        "token",
        ["token", "sequence"],
        "what the ratio to the sampling policy is of, and its clipping: each token, or the whole answer by the mean "
        "over its tokens (GSPO), which moves far less: clip=4e-4, with aggregate=sequence",
    )
    overlong: int | None = positive(
        None, "last tokens of max_tokens in which an answer loses up to 1 of its score, evenly (DAPO); null = none"
    )
    aggregate: str = choice(
        "token",
        ["token", "sequence", "constant"],
        "mean over all tokens; mean of each answer's mean; sum over max_tokens of each answer",
    )
    table_every: int = positive(20, "iterations between tables of answers written to samples/", on_resume="free")

    allows_dropout: ClassVar[bool] = False

    @property
    def needs_reference(self) -> bool:
        return True

    def rewards(self) -> list[str]:
        return self.reward

    def check(self) -> None:
        if not self.reward:
            raise UserError(
                f"stage={self.name} needs stage.reward=runs/NAME, a run of stage=reward, or the name of a registered "
                "reward"
            )
        if self.overlong is not None and self.overlong > self.max_tokens:
            raise UserError(
                f"stage.overlong={self.overlong}: of stage.max_tokens={self.max_tokens} tokens no more can be the last"
            )
        if self.kl_in == "reward" and self.kl_estimator != "k1":
            raise UserError(
                f"stage.kl_in=reward stage.kl_estimator={self.kl_estimator}: in the reward only k1 has the gradient "
                "of the KL; k3's is that of KL(p||ref) - KL(ref||p), next to nothing near the reference, and training "
                "collapses; take stage.kl_estimator=k1"
            )
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise UserError(
                "stage.kl_in=loss stage.kl_estimator=k1: the gradient of its mean is zero, so nothing would hold the "
                "policy; take stage.kl_estimator=k2, whose gradient is that of the KL"
            )

    @property
    def group(self) -> int:
        """Answers to one prompt."""
        return 1


@register_stage("ppo", data="prompts")
@dataclass
class PPOConfig(OnlineConfig):
    """Proximal policy optimisation against a reward, with a critic."""

    name: str = option("ppo", "registered name of the stage")
    critic_lr: float | None = positive(
        None, "peak learning rate of the critic; null = 2.5 times optim.lr", on_resume="warned"
    )
    value_clip: float = positive(
        0.2, "how far a value may move the critic's loss from what it was when the answer was drawn"
    )
    gamma: float = option(1.0, "discount of a token's reward", above=0, high=1)
    lam: float = option(0.95, "lambda of the generalised advantage estimate", low=0, high=1)


@register_stage("grpo", data="prompts")
@dataclass
class GRPOConfig(OnlineConfig):
    """Group-relative policy optimisation: an answer is compared with others to the same prompt; there is no critic."""

    name: str = option("grpo", "registered name of the stage")
    advantage: str = choice(
        "grpo", ["grpo", "rloo", "dr_grpo"], "reward less its group's mean: over its deviation; without itself; plain"
    )
    group_size: int = option(8, "answers to one prompt", low=2)

    @property
    def group(self) -> int:
        return self.group_size
