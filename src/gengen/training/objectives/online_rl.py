"""Online reinforcement learning of language models: PPO with a critic, GRPO and its kin without."""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gengen.alignment.advantages import gae, group_advantages, token_rewards, whiten
from gengen.alignment.kl import ESTIMATORS, KLController, k3
from gengen.alignment.log_probs import entropy, log_softmax, of_tokens
from gengen.alignment.losses import aggregate, clipped_policy_loss, clipped_value_loss
from gengen.checkpoints.files import replace_text, without_special_floats
from gengen.config.redact import redact
from gengen.config.stage import GRPOConfig, OnlineConfig, PPOConfig, weighted_reward
from gengen.config.train import TrainConfig
from gengen.data.order import permutation
from gengen.errors import UserError
from gengen.faults import fault
from gengen.generation.base import Sample
from gengen.generation.load import load_as
from gengen.generation.text.generator import TextGenerator, never
from gengen.generation.text.rewards import Answer, Scorer, answer_of, load_reward
from gengen.models.completions import answer_log_probs, read, right_padded
from gengen.models.gpt import GPT
from gengen.models.reward import RewardModel
from gengen.training.monitor.guards import in_halves
from gengen.training.objective import Batch, Optimizer
from gengen.training.objectives.language import LanguageObjective, reference
from gengen.training.objectives.side_network import Beside

OBJECTIVE = ("score", "kl", "kl_k3", "return", "answer_length", "ended", "beta")  # of an iteration's answers
UPDATE = ("approx_kl", "clip_fraction", "ratio_max", "entropy")  # of a step
VALUE = ("value_loss", "explained_variance")
CRITIC_RATIO = 2.5  # the critic's rate over the policy's, unless stage.critic_lr says it
ON_POLICY = 1e-4  # how far a log-probability may be from itself when it is computed again in the same way


class OnlineRL(LanguageObjective):
    """An iteration draws answers to prompts, scores them, and then trains on them for `epochs` passes of `minibatches`
    steps.

    The answers stay until they are used up, and are part of a checkpoint: a run stopped inside an iteration goes on
    with them. What an iteration draws is a function of (seed, iteration) and the weights. One minibatch is one step;
    its loss is divided by its count of tokens or answers as in every objective. PPO (Schulman et al. 2017; Ziegler et
    al. 2019) has a critic beside the policy, which starts from the reward model where there is one, and an optimizer
    of its own for it.
    """

    metrics = ("val/loss", "val/score", "val/kl", "val/ended")
    sums = 5
    compiles_on_cpu = False

    def __init__(self, config: TrainConfig, model: GPT, prepared: Any):
        super().__init__(config, model, prepared)
        assert isinstance(config.stage, OnlineConfig)
        self.c = c = config.stage
        self.signals = (*OBJECTIVE, *UPDATE, *(VALUE if isinstance(c, PPOConfig) else ()))
        self.unit = "tokens" if c.aggregate == "token" else "answers"  # what `count` counts
        self.controller = KLController(c.beta, c.kl_target, c.kl_horizon)
        self.iteration, self.cursor, self.rolled = 0, 0, dict[str, float]()
        self.drawn_at_once = 256  # answers; halved where memory runs out, which changes none but by rounding
        # the answers of the iteration under way: tokens, mask, log-probabilities, advantages, ...
        self.buffer: Batch = {}
        if prepared is None:
            return
        self.tokenizer = prepared.tokenizer
        longest = max(len(prompt) for split in (prepared.train, prepared.val) for prompt in split)
        if longest + c.max_tokens > (context := getattr(config.model, "context")):
            raise UserError(
                f"stage.max_tokens={c.max_tokens} after a prompt of {longest} tokens is more than the model's context of {context}: "
                f"at most stage.max_tokens={context - longest}"
            )
        self._reference = (reference(config),)  # a tuple, so that it is no submodule
        kept = [(weighted_reward(name)[0], frozen_reward(config, i), name) for i, name in enumerate(c.reward)]
        names = [f"{weight}*{path}" if path.exists() else name for weight, path, name in kept]
        self.reward = load_reward(names, Path(config.runs_dir), self.tokenizer, "cpu", frozen=True)
        self.companions = (*self._reference, *self.reward.networks)
        self.critic = Beside(self.build_critic(config)) if isinstance(c, PPOConfig) else None

    def build_critic(self, config: TrainConfig) -> RewardModel:
        """The reward model, where a run is one of the rewards; else the policy's trunk under a head that says 0."""
        for i in range(len(self.c.reward)):
            if (path := frozen_reward(config, i)).exists():
                return load_as(Scorer, str(path), device="cpu").model
        critic = RewardModel(self.model.config)
        critic.load_state_dict(critic.adopted(self.model.state_dict(), self.model.vocab_size), strict=False)
        torch.nn.init.zeros_(critic.value.weight)
        return critic

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.critic:
            self.critic.start(self.config.optim, self.device, self.config.model.hidden_maps)
        return super().configure_optimizers()

    def schedule(self, optimizer: Optimizer) -> None:
        super().schedule(optimizer)
        if self.critic and optimizer is self.critic.optimizer:
            assert isinstance(self.c, PPOConfig)
            peak = self.config.optim.peak_lr
            for group in optimizer.param_groups:
                group["lr"] *= (self.c.critic_lr or CRITIC_RATIO * peak) / peak

    # --- drawing answers

    def ready(self, interrupted: Callable[[], bool]) -> bool:
        """Draw and judge the next iteration's answers, where none are left. False if interrupted: then nothing has
        changed.
        """
        if self.buffer:
            return True
        fault("rollout")
        drawn = self.draw(interrupted)
        if drawn is None:
            return False
        self.model.train()
        return self.judge(drawn, interrupted)

    def draw(self, interrupted: Callable[[], bool]) -> list[Answer] | None:
        """The answers of this iteration, those to one prompt side by side; None if interrupted."""
        n = self.config.data.batch_size * self.c.minibatches // self.c.group
        chosen = self.prepared.prompts("train", self.iteration, n, self.config.seed)
        return self.answers([self.prepared.train[i] for i in chosen], self.c.group, self.iteration, interrupted)

    def answers(
        self, prompts: list[list[int]], n: int, number: int, interrupted: Callable[[], bool]
    ) -> list[Answer] | None:
        def drawn(rows: int) -> list[Sample]:
            return TextGenerator(self.model, self.tokenizer, batch_size=rows).generate(
                prompts, n=n, seed=self.config.seed * 1_000_003 + number, max_tokens=self.c.max_tokens,
                temperature=self.c.temperature, interrupted=interrupted,
            )  # fmt: skip

        samples, self.drawn_at_once = in_halves(drawn, self.drawn_at_once, "while answers are drawn")
        if interrupted():
            return None
        return [
            answer_of(prompt, sample)
            for prompt, sample in zip((p for p in prompts for _ in range(n)), samples, strict=True)
        ]

    def judge(self, answers: list[Answer], interrupted: Callable[[], bool] = never) -> bool:
        """Fill the buffer: what the answers are worth, and how likely they are to policy, reference and critic.
        False if interrupted while they were scored: then nothing has changed."""
        c, rows = self.c, len(answers)
        tokens, mask = right_padded([answer.row(self.tokenizer.eot) for answer in answers], self.device)
        scores = self.scores(answers, interrupted).to(self.device)
        if interrupted():
            return False
        valid = ~scores.isnan()
        if not valid.any():
            raise UserError(
                f"stage={c.name}: none of the {rows} answers of iteration {self.iteration} could be scored"
            )
        mask = mask * valid[:, None]
        self.buffer, self.cursor = {"tokens": tokens, "mask": mask}, 0
        old, ref = (
            self.filled(lambda part, model=model: answer_log_probs(model, part["tokens"], part["mask"], c.temperature))  # type: ignore[misc]
            for model in (self.network, self._reference[0])
        )
        kl = ((old - ref) * mask).sum(1)
        self.buffer |= {"old": old, "ref": ref}
        if isinstance(c, PPOConfig):
            values = self.filled(self.values)
            rewards = token_rewards(scores, old - ref, mask, self.controller.beta if c.kl_in == "reward" else 0.0)
            advantages, returns = gae(rewards, values, mask, c.gamma, c.lam)
            self.buffer |= {"advantages": whiten(advantages, mask), "values": values * mask, "returns": returns}
            left = [x[mask > 0].var(correction=0) for x in (returns - values, returns)]  # of one token, too
            self.rolled = {"explained_variance": float(1 - left[0] / left[1].clamp(min=1e-8))}
        else:
            assert isinstance(c, GRPOConfig)
            costs = (self.controller.beta if c.kl_in == "reward" else 0.0) * kl
            advantages = group_advantages(scores.view(-1, c.group), c.advantage, costs.view(-1, c.group))
            self.buffer["advantages"] = advantages.view(rows, 1) * mask
        per = kl[valid]
        lengths = torch.tensor([float(len(answer.row(0)[1])) for answer in answers])
        self.rolled |= {
            "score": float(scores.nanmean()),
            "kl": float(per.mean()),
            "kl_k3": float((k3(old, ref) * mask).sum(1)[valid].mean()),
            "return": float(scores.nanmean() - self.controller.beta * per.mean()),
            "answer_length": float(lengths.mean()),
            "ended": sum(answer.ended for answer in answers) / rows,
            "beta": self.controller.beta,
        }
        if self.iteration % c.table_every == 0:
            with suppress(OSError):  # a full disk: training goes on without
                self.write_table(answers, scores.tolist(), kl.tolist())
        self.controller.update(self.rolled["kl"], rows)
        return True

    def scores(self, answers: list[Answer], interrupted: Callable[[], bool] = never) -> Tensor:
        """What the answers are worth, (B,): the reward, or what an answer without an end gets in its place."""
        scores, missing = self.reward(answers, interrupted), self.c.missing_end
        ended = torch.tensor([answer.ended for answer in answers])
        return scores if missing is None else torch.where(ended, scores, missing)

    def filled(self, of: Callable[[Batch], Tensor]) -> Tensor:
        """What a function makes of each row of the buffer, (N, T - 1), computed just as the steps of the first epoch
        will: of the same micro-batches in the same order, and in the mode that gradients are taken in, whose kernels
        may differ."""
        found = torch.zeros_like(self.buffer["mask"])

        def fill(size: int) -> None:
            for cursor in range(self.c.minibatches):
                rows = self.rows(cursor)
                for part in self.micro_batches(self.minibatch(rows) | {"rows": rows}, size):
                    with torch.enable_grad(), self.autocast():
                        found[part["rows"]] = of(part).detach()

        whole = self.micro_batch_size or self.config.data.batch_size
        _, size = in_halves(fill, whole, "while answers are judged")
        if size < whole:
            self.micro_batch_size = size
        return found

    def rows(self, cursor: int) -> Tensor:
        """Which rows of the buffer step `cursor` of the iteration takes."""
        epoch, part = divmod(cursor, self.c.minibatches)
        size = self.config.data.batch_size
        order = permutation(self.config.seed, self.iteration * self.c.epochs + epoch, size * self.c.minibatches)
        return torch.from_numpy(order[part * size : (part + 1) * size].copy()).to(self.device)

    def minibatch(self, rows: Tensor) -> Batch:
        return {name: tensor[rows] for name, tensor in self.buffer.items()}

    def values(self, part: Batch) -> Tensor:
        """The critic's value of the state before each token, (B, T - 1)."""
        assert self.critic and isinstance(self.critic.network, RewardModel)
        return self.critic.network.normalized(self.critic.network(part["tokens"][:, :-1]))

    def write_table(self, answers: list[Answer], scores: list[float], kl: list[float]) -> None:
        """An iteration's answers, a line each, to samples/."""
        folder = Path(self.config.runs_dir) / str(self.config.run) / "samples"
        folder.mkdir(exist_ok=True)
        lines = [
            {
                "prompt": a.question,
                "answer": a.text,
                "ended": a.ended,
                "score": None if math.isnan(score) else round(score, 4),
                "kl": round(nats, 4),
                "tokens": len(a.tokens),
            }
            for a, score, nats in zip(answers, scores, kl, strict=True)
        ]
        text = "".join(json.dumps(without_special_floats(line), ensure_ascii=False) + "\n" for line in lines)
        replace_text(folder / f"step-{self.global_step:09d}-answers.jsonl", redact(text))

    # --- a step

    def with_draws(self, batch: Batch) -> Batch:
        """The step's minibatch; what the loader brought says only that there is a step to do."""
        return self.minibatch(self.rows(self.cursor))

    def count(self, batch: Batch) -> Tensor:
        return batch["mask"].sum() if self.c.aggregate == "token" else (batch["mask"].sum(1) > 0).sum()

    def updates(self, batch: Batch, total: Tensor) -> Tensor:
        c = self.c
        self.seen = torch.zeros(
            4, device=self.device
        )  # (old - new)^2 / 2, clipped, entropy, summed over tokens; largest |log ratio|
        self.logged |= {name: torch.tensor(value) for name, value in self.rolled.items()}
        tokens, finite = batch["mask"].sum().clamp(min=1), torch.ones((), dtype=torch.bool, device=self.device)
        if self.critic:  # first: both of its and the policy's updates are then of the same step
            loss = self.accumulate(self.value_loss_sum, batch, tokens, self.critic.network)
            self.logged["value_loss"], _, finite = self.update(self.critic.network, self.critic.optimizer, loss)
        finite = finite & super().updates(batch, total.clamp(min=1))
        means = self.seen[:3] / tokens
        if self.cursor == 0 and not self.seen[3] <= ON_POLICY:
            raise UserError(
                f"stage={c.name}: the first step sees log-probabilities that are {float(self.seen[3]):.2g} nats from those of the policy "
                "that drew the answers; ratios would be wrong from the start"
            )
        self.logged |= dict(zip(UPDATE, [means[0], means[1], self.seen[3].exp(), means[2]], strict=True))
        self.cursor += 1
        if self.cursor == c.epochs * c.minibatches or (c.kl_stop and float(means[0]) > c.kl_stop):
            self.buffer, self.cursor, self.iteration = {}, 0, self.iteration + 1
        return finite

    def loss_sum(self, batch: Batch) -> Tensor:
        c, mask = self.c, batch["mask"]
        network: Any = self.network
        log_probs, spread = read(network, batch["tokens"], mask, self.log_probs_and_entropy)
        losses = clipped_policy_loss(log_probs, batch["old"], batch["advantages"], c.clip, c.clip_high)
        if c.kl_in == "loss":
            losses = losses + self.controller.beta * ESTIMATORS[c.kl_estimator](log_probs, batch["ref"])
        if c.entropy:
            losses = losses - c.entropy * spread
        moved = (log_probs - batch["old"]).detach() * mask
        clipped = (moved.exp() - 1 > (c.clip_high or c.clip)) | (moved.exp() - 1 < -c.clip)
        self.seen[:3] += torch.stack(
            [moved.square().sum() / 2, (clipped * mask).sum(), (spread.detach() * mask).sum()]
        )
        self.seen[3] = torch.maximum(self.seen[3], moved.abs().max())
        return aggregate(losses, mask, c.aggregate, c.max_tokens).sum()

    def log_probs_and_entropy(self, logits: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        log_p = log_softmax(logits, self.c.temperature)
        with torch.set_grad_enabled(self.c.entropy > 0):
            spread = entropy(log_p)
        return of_tokens(log_p, drawn), spread

    def value_loss_sum(self, batch: Batch) -> Tensor:
        assert isinstance(self.c, PPOConfig)
        losses = clipped_value_loss(self.values(batch), batch["values"], batch["returns"], self.c.value_clip)
        return (losses * batch["mask"]).sum()

    def extra_state(self) -> dict[str, Any]:
        own = {
            "beta": self.controller.beta,
            "iteration": self.iteration,
            "cursor": self.cursor,
            "buffer": self.buffer,
            "rolled": self.rolled,
        }
        return own | ({"critic": self.critic.state()} if self.critic else {})

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.controller.beta, self.iteration, self.cursor = state["beta"], state["iteration"], state["cursor"]
        self.rolled = state["rolled"]
        self.buffer = {name: tensor.to(self.device) for name, tensor in state["buffer"].items()}
        if self.critic:
            self.critic.load(state["critic"])

    # --- evaluation

    def evaluation_sums(self, batch: Batch) -> Tensor:
        """Score, how many have one, KL, ends and answers: one answer to each prompt."""
        prompts = [self.prepared.val[i] for i in batch["index"].tolist()]
        answers = self.answers(prompts, 1, int(batch["index"][0]), lambda: False)
        assert answers
        tokens, mask = right_padded([answer.row(self.tokenizer.eot) for answer in answers], self.device)
        pair = [
            answer_log_probs(model, tokens, mask, self.c.temperature) for model in (self.model, self._reference[0])
        ]
        ended = sum(answer.ended for answer in answers)
        scores = self.scores(answers)
        scored = int((~scores.isnan()).sum())
        kl = float((pair[0] - pair[1]).sum())
        return torch.tensor([float(scores.nansum()), scored, kl, ended, len(answers)], device=self.device).double()

    def evaluation_metrics(self, sums: Tensor) -> dict[str, float]:
        total, scored, *others, answers = sums.tolist()
        score, (kl, ended) = total / scored if scored else math.nan, (x / answers for x in others)
        return {"val/loss": self.controller.beta * kl - score, "val/score": score, "val/kl": kl, "val/ended": ended}


def frozen_reward(config: TrainConfig, i: int) -> Path:
    """Where the run keeps its i-th reward, if that is a run."""
    return Path(config.runs_dir) / str(config.run) / f"reward-{i}"
