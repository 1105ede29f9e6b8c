"""Reinforcement learning of a language model beside trl's trainers and a plain PPO: episodes a second, drawn, judged
and learned from.

    python benchmarks/alignment.py [rounds=5] [iterations=3] [threads=2] [size=tiny] [precision=fp32] [only=...]
    [gengen's settings ...]

A Llama with random weights, the same on both sides (their logits are compared), and 1,000 tokens: 0.4 M parameters, or
with size=small 11 M. Prompts have 16 to 24 tokens, answers 48: what would end one is no token of the model, and every
answer's length is checked as it is judged. The reward is the share of even numbers among its tokens, so that the
answers to a prompt differ and all of them are learned from (ours leaves out groups that are all alike; that there are
none is checked). All have a frozen reference for the KL. precision=bf16: autocast in all of them, outside `generate`.

GRPO and RLOO: 16 prompts x 8 answers and one update an iteration; GRPO with k3 in the loss, RLOO with the KL in the
reward, as trl has them. trl saves and logs nothing here, and does without the gradient checkpointing that is its
default. PPO: 64 prompts with an answer each, then 2 epochs of 4 minibatches, beside the loop of peers.py; in both the
critic is another model of the policy's size.

What is timed is a whole iteration: fetching prompts, drawing, reward, reference, critic, advantages and updates. Ours
is the stage's own objective in our trainer, with its loader; of a run there is no evaluation, sample, checkpoint or
metrics.csv. Models and data are made before, and the first iteration of a round is not counted. only: names of
contestants, or parts of them, parted by commas.
"""

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peers import PlainPPO
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from transformers.utils import logging
from turns import arguments, ratio, spread, take_turns

from gengen.checkpoints.convert.huggingface import from_config, from_tensors, read_folder
from gengen.checkpoints.layout import Checkpoint, write
from gengen.config.compose import compose_train, read_command_line
from gengen.config.resume import stored
from gengen.data import order
from gengen.data.text.tokenizer import BYTE_JSON, TextTokenizer
from gengen.models.gpt import GPT
from gengen.registry import register_reward
from gengen.training.budget import StepTimes
from gengen.training.build import build_datamodule, build_objective, build_trainer, compile_where_it_pays

VOCAB, CONTEXT, PROMPTS, ANSWER, GROUP, WARMUP = 1_000, 96, 512, 48, 8, 1
# width, layers, heads, width within the MLP; the last is for a GPU (gpu/stages.py)
SIZES = {"tiny": (96, 3, 4, 256), "small": (384, 6, 6, 1024), "124M": (768, 12, 12, 2048)}
EPISODES = {"GRPO": 16 * GROUP, "RLOO": 16 * GROUP, "PPO": 64}  # an iteration
UPDATES, ROWS = (
    {"GRPO": 1, "RLOO": 1, "PPO": 8},
    {"GRPO": 16 * GROUP, "RLOO": 16 * GROUP, "PPO": 16},
)  # an iteration; an update
RATES = {"GRPO": 3e-4, "RLOO": 3e-4, "PPO": 1e-4}
BETAS = {"GRPO": 0.02, "RLOO": 0.02, "PPO": 0.05}


@register_reward("even")
def even(prompt: str, answer: str, ended: bool) -> float:
    """The share of even numbers."""
    numbers = answer.split()
    assert len(numbers) == ANSWER and not ended, f"an answer of {len(numbers)} tokens, not {ANSWER}"
    return sum(number[-1] in "02468" for number in numbers) / ANSWER


def prompts() -> list[list[int]]:
    draws = np.random.default_rng(0)
    return [draws.integers(VOCAB, size=draws.integers(16, 25)).tolist() for _ in range(PROMPTS)]


class Numbers(TextTokenizer):
    """A token is a number and a space. What ends a text lies beyond the vocabulary, so it is never drawn."""

    def __init__(self) -> None:
        super().__init__("numbers", [b"%d " % i for i in range(VOCAB)], None, start=VOCAB, eot=VOCAB)


def their_tokenizer() -> PreTrainedTokenizerFast:
    """The same for transformers. Number 0, which pads, is masked there."""
    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(VOCAB)} | {"<end>": VOCAB}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="0", padding_side="left")


def llama(size: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    width, layers, heads, ff = SIZES[size]
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=width, intermediate_size=ff, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


class Contestant:
    """Its training takes up where it left off."""

    def __init__(self, algorithm: str):
        self.algorithm = algorithm

    def times(self, iterations: int) -> list[float]:
        """Train; when it began and when each iteration ended."""
        raise NotImplementedError

    def __call__(self, iterations: int) -> float:
        """Episodes a second, by the median iteration."""
        spent = [b - a for a, b in pairwise(self.times(iterations + WARMUP))]
        return EPISODES[self.algorithm] / median(spent[WARMUP:])


class Rhythm(StepTimes):
    """What the cadence of a run does between steps, but for evaluation, samples, checkpoints and logs."""

    def __init__(self, episodes: int):
        super().__init__()
        self.episodes, self.drawn = episodes, 0

    def prepare(self, trainer: Any, objective: Any) -> None:
        if not objective.rollout:
            objective.ready(lambda: False)
            assert objective.rollout.mask.sum() == self.episodes * ANSWER, (
                "not all answers are learned from, or there are others"
            )
            self.drawn += self.episodes

    def on_train_start(self, trainer: Any, objective: Any) -> None:
        super().on_train_start(trainer, objective)
        self.prepare(trainer, objective)

    def on_train_batch_end(self, trainer: Any, objective: Any, *_: Any) -> None:
        super().on_train_batch_end(trainer, objective)
        if trainer.global_step < trainer.max_steps:
            self.prepare(trainer, objective)


class Asked:
    """Stands in for our prepared prompts."""

    def __init__(self) -> None:
        self.tokenizer, self.train = Numbers(), prompts()
        self.val = self.train

    def prompts(self, split: str, iteration: int, count: int, seed: int) -> np.ndarray:
        return order.images(iteration * count, count, seed, len(self.train))[0]

    def batch(self, split: str, index: Tensor) -> dict[str, Tensor]:
        return {"index": index}


class Ours(Contestant):
    def __init__(self, algorithm: str, net: LlamaForCausalLM, folder: Path, precision: str, settings: list[str]):
        super().__init__(algorithm)
        groups = ["stage=grpo", f"stage.group_size={GROUP}", "stage.epochs=1", "stage.minibatches=1"]
        stage = {
            "GRPO": [*groups, "stage.advantage=grpo", "stage.kl_in=loss", "stage.kl_estimator=k3"],
            "RLOO": [*groups, "stage.advantage=rloo", "stage.kl_in=reward", "stage.kl_estimator=k1"],
            "PPO": ["stage=ppo", "stage.epochs=2", "stage.minibatches=4", "stage.missing_end=null"],
        }[algorithm]
        line = [
            "model=gpt", *stage, "init_from=base", "stage.reward=even", f"stage.max_tokens={ANSWER}",
            f"stage.beta={BETAS[algorithm]}", "data=prompts",
            f"data.batch_size={ROWS[algorithm]}", f"optim.lr={RATES[algorithm]}", "trainer.device=cpu",
            f"trainer.precision={precision}",
            f"trainer.threads={torch.get_num_threads()}", f"runs_dir={folder}", f"run={algorithm}", *settings,
        ]  # fmt: skip
        self.config, self.asked = compose_train(read_command_line(line)), Asked()
        layout, self.config.model = from_config(net.config.to_dict())
        with torch.device("meta"):
            shapes = {
                name: tensor.shape
                for name, tensor in GPT(self.config.model).state_dict().items()
                if name != "head.weight"
            }
        weights = from_tensors(layout, self.config.model, read_folder(folder), shapes)
        reference = folder / algorithm / "reference"
        reference.mkdir(parents=True)
        write(
            reference, Checkpoint(0, stored(self.config), weights, tokenizer=BYTE_JSON)
        )  # it must have one, which nothing reads
        self.objective: Any = build_objective(self.config, self.asked, reference)
        compile_where_it_pays(self.objective, self.config, print)
        tokens = torch.randint(VOCAB, (2, CONTEXT), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(self.objective.model(tokens), net(tokens).logits, atol=1e-4, rtol=0)

    def times(self, iterations: int) -> list[float]:
        rhythm, updates = Rhythm(EPISODES[self.algorithm]), UPDATES[self.algorithm]
        trainer = build_trainer(self.config, rhythm, iterations * updates)
        trainer.fit(self.objective, datamodule=build_datamodule(self.config, self.asked))
        assert rhythm.drawn == iterations * EPISODES[self.algorithm]
        return [rhythm.begun, *rhythm.ends[updates - 1 :: updates]]


class Trl(Contestant):
    def __init__(
        self,
        algorithm: str,
        net: LlamaForCausalLM,
        folder: Path,
        precision: str,
        settings: list[str],
        device: str = "cpu",
    ):
        super().__init__(algorithm)
        from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer  # the others run without it

        shared: dict[str, Any] = {
            "output_dir": str(folder / "trl"), "per_device_train_batch_size": EPISODES[algorithm],
            "num_generations": GROUP, "max_completion_length": ANSWER, "learning_rate": RATES[algorithm],
            "gradient_checkpointing": False, "bf16": precision == "bf16", "use_cpu": device == "cpu",
            "model_init_kwargs": {"dtype": "float32"}, "logging_strategy": "no",
            "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "max_steps": 1, "adam_epsilon": 1e-5,
        }  # fmt: skip
        kinds: dict[str, Any] = {
            "GRPO": (GRPOTrainer, partial(GRPOConfig, beta=BETAS[algorithm])),
            "RLOO": (RLOOTrainer, partial(RLOOConfig, beta=BETAS[algorithm])),
        }
        trainer, config = kinds[algorithm]
        self.clock = Clock()
        self.trainer = trainer(
            model=str(folder), reward_funcs=even_of_all, args=config(**shared), processing_class=their_tokenizer(),
            callbacks=[self.clock],
            train_dataset=Dataset.from_list([{"prompt": " ".join(map(str, prompt))} for prompt in prompts()]),
        )  # fmt: skip
        self.trainer.remove_callback(PrinterCallback)
        theirs, own = self.trainer.model.state_dict(), net.state_dict()
        assert all(torch.equal(theirs[name], tensor) for name, tensor in own.items())

    def times(self, iterations: int) -> list[float]:
        self.trainer.args.max_steps = iterations
        self.trainer.train()
        return self.clock.times


def even_of_all(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The same reward. trl's text of an answer lacks the token that it pads with, so it is spelled here."""
    return [even("", Numbers().decode(answer), False) for answer in completion_ids]


class Clock(TrainerCallback):
    """When training began, and when each step ended."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.times = [time.perf_counter()]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())


class Plain(Contestant):
    def __init__(self, algorithm: str, net: LlamaForCausalLM, folder: Path, precision: str, settings: list[str]):
        super().__init__(algorithm)
        nets = [LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(3)]
        self.loop = PlainPPO(nets[0], nets[1], nets[2].model, ANSWER, self.scores, precision == "bf16")
        self.tokenizer, self.prompts, self.done = their_tokenizer(), prompts(), 0

    def scores(self, answers: Tensor) -> Tensor:
        return torch.tensor([even("", text, False) for text in self.tokenizer.batch_decode(answers)])

    def times(self, iterations: int) -> list[float]:
        times = [time.perf_counter()]
        for _ in range(iterations):
            chosen = order.images(self.done * EPISODES["PPO"], EPISODES["PPO"], 0, PROMPTS)[0]
            texts = {"input_ids": [self.prompts[i] for i in chosen]}
            padded = self.tokenizer.pad(texts, return_tensors="pt")
            self.loop.iteration(padded["input_ids"], padded["attention_mask"])
            self.done += 1
            times.append(time.perf_counter())
        return times


def main(
    rounds: int, iterations: int, threads: int, size: str, precision: str, only: str, settings: list[str]
) -> None:
    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module="transformers"
    )  # of old names, which trl still has
    makers: dict[str, Callable[..., Contestant]] = {
        f"{who} {algorithm}": partial(kind, algorithm)
        for algorithm, peer in {"GRPO": ("trl", Trl), "RLOO": ("trl", Trl), "PPO": ("plain", Plain)}.items()
        for who, kind in (("gengen", Ours), peer)
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        net = llama(size)
        net.save_pretrained(folder)
        wanted = {name: make for name, make in makers.items() if any(part in name for part in only.split(","))}
        contestants = {name: make(net, folder, precision, settings) for name, make in wanted.items()}
        millions = sum(p.numel() for p in net.parameters()) / 1e6
        print(
            f"{millions:.2f} M parameters, {threads} threads, {precision}, torch {torch.__version__}; "
            "the logits agree within 1e-4"
        )
        figures = take_turns({name: partial(c, iterations) for name, c in contestants.items()}, rounds)
    print(f"\nepisodes/s (median; least and most of {rounds} rounds of {iterations} iterations)")
    for name, speeds in figures.items():
        ms = 1000 * EPISODES[contestants[name].algorithm] / median(speeds)
        print(f"  {name:14}{spread(speeds, 1)}   {ms:,.0f} ms an iteration")
    for ahead, behind in (("gengen GRPO", "trl GRPO"), ("gengen RLOO", "trl RLOO"), ("gengen PPO", "plain PPO")):
        if ahead in figures and behind in figures:
            print(ratio(figures, ahead, behind))


if __name__ == "__main__":
    asked, rest = arguments(sys.argv[1:], rounds=5, iterations=3, threads=2, size="tiny", precision="fp32", only="")
    main(**asked, settings=rest)
