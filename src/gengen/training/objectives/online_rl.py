"""Online reinforcement learning of language models: what PPO (ppo.py) and GRPO (grpo.py) share.

An iteration is a rollout (see rollout.py), then `stage.epochs` passes over it in `stage.minibatches` steps each:

    ready                    when no rollout is left; what it makes is a function of (seed, iteration) and the weights
        collect              answers to the iteration's prompts
        score                what each is worth
        with_log_probs       how likely policy and reference find each token
        with_advantages      how much better each token was than expected: PPO's or GRPO's
    optimize                 in each step
        with_draws           a minibatch: data.batch_size answers of the rollout
        loss_sum             clipped ratios, KL and entropy, summed over its tokens
        finish_step          the iteration ends with its last minibatch, or early at stage.kl_stop
"""

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from gengen.alignment.kl import ESTIMATORS, KLController
from gengen.alignment.log_probs import entropy, log_softmax, of_tokens
from gengen.alignment.losses import aggregate, clipped_policy_loss, of_answers
from gengen.checkpoints.files import replace_text
from gengen.config.redact import redact
from gengen.config.stage import OnlineConfig, weighted_reward
from gengen.config.train import TrainConfig
from gengen.data.order import permutation
from gengen.errors import UserError
from gengen.faults import fault
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.rewards import Answer, Interrupted, load_reward, never
from gengen.models.completions import answer_log_probs, token_values
from gengen.models.gpt import GPT
from gengen.training.memory import in_halves
from gengen.training.objective import Batch
from gengen.training.objectives.language import LanguageObjective, reference
from gengen.training.objectives.rollout import PromptData, Rollout, collect, figures, padded, score, table
from gengen.training.objectives.side_network import Companion

ROLLOUT_FIGURES = ("score", "kl", "kl_k3", "return", "answer_length", "ended", "beta")
STEP_FIGURES = ("approx_kl", "clip_fraction", "ratio_max", "entropy")
DRAW_BATCH_SIZE = 256  # answers drawn at once
ON_POLICY = 1e-4  # nats that a log-probability may differ from itself when it is computed again in the same way


class OnlineRL(LanguageObjective):
    """An iteration draws answers to prompts, scores them, and then trains on them for `epochs` passes of `minibatches`
    steps.

    The rollout stays until it is used up, and is part of a checkpoint: a run stopped inside an iteration goes on with
    the same answers in the same order. One minibatch is one step; its loss is divided by its count of tokens or
    answers, as in every objective.

    A subclass writes `with_advantages`, and what else its method has: a critic, say.
    """

    metrics = ("val/loss", "val/score", "val/kl", "val/ended")
    logged_metrics: tuple[str, ...] = (*ROLLOUT_FIGURES, *STEP_FIGURES)
    n_eval_sums = 5
    compiles_on_cpu = False
    prepared: PromptData
    stage_config: OnlineConfig

    def __init__(self, config: TrainConfig, model: GPT, prepared: PromptData | None):
        super().__init__(config, model, cast(PromptData, prepared))  # None: to build and count, not to train
        assert isinstance(config.stage, OnlineConfig)
        self.stage_config = c = config.stage
        self.unit = "tokens" if c.aggregate == "token" else "answers"  # what `loss_count` counts
        self.controller = KLController(c.beta, c.kl_target, c.kl_horizon)
        self.rollout: Rollout | None = None  # of the iteration under way
        self.iteration, self.cursor = 0, 0  # its number, and how many of its steps are done
        self.figures = dict[str, float]()  # of the last rollout, logged with each of its steps
        self.draw_batch_size = DRAW_BATCH_SIZE  # halved where memory runs out
        if prepared is None:
            return
        check_room(prepared, c.max_tokens, getattr(config.model, "context"))
        self.reference = Companion(reference(config, model))
        kept = [(weighted_reward(name)[0], frozen_reward(config, i), name) for i, name in enumerate(c.reward)]
        names = [f"{weight}*{path}" if path.exists() else name for weight, path, name in kept]
        self.reward = load_reward(names, Path(config.runs_dir), prepared.tokenizer, "cpu", frozen=True)
        self.companions = (self.reference.network, *self.reward.networks)

    # --- the rollout of an iteration

    def ready(self, interrupted: Interrupted) -> bool:
        """Make the next iteration's rollout, where none is left. False if interrupted: then nothing has changed."""
        if self.rollout:
            return True
        fault("rollout")
        completions = self.collect(interrupted)
        if completions is None:
            return False
        self.model.train()
        return self.score_rollout(completions, interrupted)

    def score_rollout(self, completions: list[Answer], interrupted: Interrupted = never) -> bool:
        """Make the answers the iteration's rollout. False if interrupted while they were scored: then nothing has
        changed."""
        scores = self.score(completions, interrupted).to(self.device)
        if interrupted():
            return False
        rollout = self.with_advantages(self.with_log_probs(completions, scores))
        self.start_iteration(rollout, completions)
        return True

    def with_log_probs(self, completions: list[Answer], scores: Tensor) -> Rollout:
        """Return the rollout of answers and their scores (N,), with what policy and reference make of each token."""
        has_score = ~scores.isnan()
        if not has_score.any():
            raise UserError(
                f"stage={self.stage_config.name}: none of the {len(completions)} answers of iteration "
                f"{self.iteration} could be scored"
            )
        tokens, mask = padded(completions, self.prepared.tokenizer, self.device)
        mask = mask * has_score[:, None]
        policy, frozen = cast(GPT, self.network), self.reference.network
        old_log_probs = self.evaluate_rollout(lambda part: self.log_probs(policy, part), tokens, mask)
        ref_log_probs = self.evaluate_rollout(lambda part: self.log_probs(frozen, part), tokens, mask)
        return Rollout(tokens, mask, scores, old_log_probs, ref_log_probs)

    def with_advantages(self, rollout: Rollout) -> Rollout:
        """Return the rollout with the advantage of each token; what else is to be logged of it joins `figures`."""
        raise NotImplementedError

    def start_iteration(self, rollout: Rollout, completions: list[Answer]) -> None:
        """Take the rollout up: its figures, its table, and the next iteration's beta."""
        c = self.stage_config
        self.rollout, self.cursor = rollout, 0
        self.figures |= figures(rollout, completions, self.controller.beta)
        if self.iteration % c.table_every == 0:
            with suppress(OSError):  # a full disk: training goes on without
                folder = Path(self.config.runs_dir) / str(self.config.run) / "samples"
                folder.mkdir(exist_ok=True)
                text = redact(table(rollout, completions))
                replace_text(folder / f"step-{self.global_step:09d}-answers.jsonl", text)
        self.controller.update(self.figures["kl"], len(completions))

    def collect(self, interrupted: Interrupted) -> list[Answer] | None:
        """Draw this iteration's answers, those to one prompt side by side; None if interrupted."""
        c, data = self.stage_config, self.config.data
        chosen = self.prepared.prompts(
            "train", self.iteration, data.batch_size * c.minibatches // c.group, self.config.seed
        )
        return self.answers([self.prepared.train[i] for i in chosen], c.group, self.iteration, interrupted)

    def answers(
        self, prompts: list[list[int]], n: int, number: int, interrupted: Interrupted = never
    ) -> list[Answer] | None:
        """Draw n answers to each prompt by the model, a function of (seed, number); None if interrupted."""
        seed = self.config.seed * 1_000_003 + number

        def draw(batch_size: int) -> list[Answer]:
            generator = TextGenerator(self.model, self.prepared.tokenizer, batch_size=batch_size)
            return collect(generator, prompts, n, seed, self.stage_config, interrupted)

        completions, self.draw_batch_size = in_halves(draw, self.draw_batch_size, "while answers are drawn")
        return None if interrupted() else completions

    def score(self, completions: list[Answer], interrupted: Interrupted = never) -> Tensor:
        """Return what the answers are worth, (N,) on the CPU, NaN where the reward cannot say."""
        return score(self.reward, completions, self.stage_config, interrupted)

    def log_probs(self, model: GPT, part: Batch) -> Tensor:
        return answer_log_probs(model, part["tokens"], part["mask"], self.stage_config.temperature)

    def evaluate_rollout(self, function: Callable[[Batch], Tensor], tokens: Tensor, mask: Tensor) -> Tensor:
        """Return what a function of (tokens, mask) gives for each row, (N, T - 1).

        It is computed just as the steps of the first epoch will compute it: of the same micro-batches in the same
        order, and in the mode that gradients are taken in, whose kernels may differ.
        """
        found = torch.zeros_like(mask)

        def fill(size: int) -> None:
            for cursor in range(self.stage_config.minibatches):
                rows = self.rows(cursor)
                minibatch = {"tokens": tokens[rows], "mask": mask[rows], "rows": rows}
                for part in self.micro_batches(minibatch, size):
                    with torch.enable_grad(), self.autocast():
                        found[part["rows"]] = function(part).detach()

        whole = self.micro_batch_size or self.config.data.batch_size
        _, size = in_halves(fill, whole, "while answers are evaluated")
        if size < whole:
            self.micro_batch_size = size
        return found

    @property
    def reward_beta(self) -> float:
        """What a nat of KL is taken from the reward; 0 where the KL is in the loss."""
        return self.controller.beta if self.stage_config.kl_in == "reward" else 0.0

    # --- a step

    def rows(self, cursor: int) -> Tensor:
        """Return which rows of the rollout step `cursor` of the iteration takes, (batch_size,)."""
        c, size = self.stage_config, self.config.data.batch_size
        epoch, part = divmod(cursor, c.minibatches)
        order = permutation(self.config.seed, self.iteration * c.epochs + epoch, size * c.minibatches)
        return torch.from_numpy(order[part * size : (part + 1) * size].copy()).to(self.device)

    def with_draws(self, batch: Batch) -> Batch:
        """Return the step's minibatch; what the loader brought says only that there is a step to do."""
        assert self.rollout
        return self.rollout.minibatch(self.rows(self.cursor))

    def loss_count(self, batch: Batch) -> Tensor:
        mask = batch["mask"]
        return mask.sum() if self.stage_config.aggregate == "token" else (mask.sum(1) > 0).sum()

    def optimize(self, batch: Batch, total: Tensor) -> Tensor:
        self.running_sums = torch.zeros(4, device=self.device)  # see `observe`
        self.logged |= {name: torch.tensor(value) for name, value in self.figures.items()}
        finite = super().optimize(batch, total.clamp(min=1))
        approx_kl, clipped, entropies = self.running_sums[:3] / batch["mask"].sum().clamp(min=1)
        values = (approx_kl, clipped, self.running_sums[3].exp(), entropies)
        self.logged |= dict(zip(STEP_FIGURES, values, strict=True))
        self.finish_step(approx_kl)
        return finite

    def finish_step(self, approx_kl: Tensor) -> None:
        """Move on to the next minibatch, or end the iteration. Raises UserError where the first was off policy."""
        c = self.stage_config
        if self.cursor == 0 and not self.running_sums[3] <= ON_POLICY:
            raise UserError(
                f"stage={c.name}: the first step sees log-probabilities that are {float(self.running_sums[3]):.2g} "
                "nats from those of the policy that drew the answers; ratios would be wrong from the start"
            )
        self.cursor += 1
        if self.cursor == c.epochs * c.minibatches or (c.kl_stop and float(approx_kl) > c.kl_stop):
            self.rollout, self.cursor, self.iteration = None, 0, self.iteration + 1

    def loss_sum(self, batch: Batch) -> Tensor:
        c, mask, old_log_probs = self.stage_config, batch["mask"], batch["old_log_probs"]
        policy = cast(GPT, self.network)
        log_probs, entropies = token_values(policy, batch["tokens"], mask, self.log_probs_and_entropies)
        ratio = log_probs - old_log_probs
        if c.importance == "sequence":
            ratio = of_answers(ratio, mask)
        losses = clipped_policy_loss(ratio, torch.zeros_like(ratio), batch["advantages"], c.clip, c.clip_high)
        if c.kl_in == "loss":
            losses = losses + self.controller.beta * ESTIMATORS[c.kl_estimator](log_probs, batch["ref_log_probs"])
        if c.entropy:
            losses = losses - c.entropy * entropies
        self.observe((log_probs - old_log_probs).detach() * mask, entropies.detach() * mask, mask)
        return aggregate(losses, mask, c.aggregate, c.max_tokens).sum()

    def log_probs_and_entropies(self, logits: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Of logits (n, V) and the tokens (n,) drawn from them, both (n,)."""
        log_p = log_softmax(logits, self.stage_config.temperature)
        with torch.set_grad_enabled(self.stage_config.entropy > 0):
            entropies = entropy(log_p)
        return of_tokens(log_p, drawn), entropies

    def observe(self, log_ratios: Tensor, entropies: Tensor, mask: Tensor) -> None:
        """Add a micro-batch to what a step logs: the sums over tokens of log ratio^2 / 2, of clipped ratios and of
        entropies; and the largest |log ratio|. All (B, T - 1), 0 off the mask."""
        c = self.stage_config
        clipped = (log_ratios.exp() - 1 > (c.clip_high or c.clip)) | (log_ratios.exp() - 1 < -c.clip)
        self.running_sums[:3] += torch.stack([log_ratios.square().sum() / 2, (clipped * mask).sum(), entropies.sum()])
        self.running_sums[3] = torch.maximum(self.running_sums[3], log_ratios.abs().max())

    # --- checkpoints

    def extra_state(self) -> dict[str, Any]:
        return {
            "beta": self.controller.beta,
            "iteration": self.iteration,
            "cursor": self.cursor,
            "buffer": self.rollout.to_state() if self.rollout else {},
            "rolled": self.figures,
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.controller.beta, self.iteration, self.cursor = state["beta"], state["iteration"], state["cursor"]
        self.rollout = Rollout.from_state(state["buffer"], self.device) if state["buffer"] else None
        self.figures = state["rolled"]

    # --- evaluation

    def evaluation_sums(self, batch: Batch) -> Tensor:
        """Return the sums of scores, of answers that have one, of KL, of ends and of answers: one to each prompt of
        the batch {"index" (B,)}."""
        prompts = [self.prepared.val[i] for i in batch["index"].tolist()]
        completions = self.answers(prompts, 1, int(batch["index"][0]))
        assert completions
        tokens, mask = padded(completions, self.prepared.tokenizer, self.device)
        part = {"tokens": tokens, "mask": mask}
        kl = float((self.log_probs(self.model, part) - self.log_probs(self.reference.network, part)).sum())
        scores = self.score(completions)
        scored, ended = int((~scores.isnan()).sum()), sum(answer.ended for answer in completions)
        sums = [float(scores.nansum()), scored, kl, ended, len(completions)]
        return torch.tensor(sums, device=self.device).double()

    def evaluation_metrics(self, sums: Tensor) -> dict[str, float]:
        total, scored, kl_sum, ended, count = sums.tolist()
        mean_score, kl = total / scored if scored else math.nan, kl_sum / count
        loss = self.controller.beta * kl - mean_score
        return {"val/loss": loss, "val/score": mean_score, "val/kl": kl, "val/ended": ended / count}


def check_room(prepared: PromptData, max_tokens: int, context: int) -> None:
    """Raise UserError where the model's context does not hold the longest prompt and an answer."""
    longest = max(len(split[i]) for split in (prepared.train, prepared.val) for i in range(len(split)))
    if longest + max_tokens > context:
        raise UserError(
            f"stage.max_tokens={max_tokens} after a prompt of {longest} tokens is more than the model's context of "
            f"{context}: at most stage.max_tokens={context - longest}"
        )


def frozen_reward(config: TrainConfig, i: int) -> Path:
    """Return where the run keeps its i-th reward, if that is a run."""
    return Path(config.runs_dir) / str(config.run) / f"reward-{i}"
