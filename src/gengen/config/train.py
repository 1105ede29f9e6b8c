"""The whole of a training run's config, and the groups that every family shares."""

import re
from dataclasses import dataclass, field, replace
from typing import Self

from gengen.config.data import DataConfig
from gengen.config.fields import choice, option, positive
from gengen.config.model import ModelConfig
from gengen.config.stage import OnlineConfig, StageConfig
from gengen.errors import UserError
from gengen.registry import DATA, MODELS, STAGES


def seconds(key: str, text: str) -> float:
    """'90s', '5m', '2h' or plain seconds, as seconds."""
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())):
        raise UserError(f"{key}={text} is not a time; write 90s, 5m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


@dataclass
class OptimConfig:
    """How weights are updated."""

    name: str = choice(
        "adamw", ["adamw", "muon"], "AdamW for all; or Muon for the matrices inside blocks and AdamW for the rest"
    )
    lr: float | None = positive(
        None, "peak learning rate of AdamW; null = base_lr, lower for wide models", on_resume="warned"
    )
    base_lr: float = positive(3e-3, "a recipe's lr, as it was measured with a model of base_width")
    base_width: int | None = positive(
        None, "wider models take base_lr * base_width / width; null = base_lr whatever the width"
    )
    muon_lr: float = positive(0.04, "peak learning rate of Muon", on_resume="warned")
    momentum: float = option(0.95, "Muon's decay of the gradient's average", low=0, below=1)
    muon_weight_decay: float = option(0.05, "Muon's decoupled decay", low=0)
    muon_precision: str = choice(
        "bf16",
        ["auto", "bf16", "fp32"],
        "of Muon's matrix products; auto = bf16 where the hardware has it, as recorded",
    )
    beta1: float = option(0.9, "decay of the first moment", low=0, below=1)
    beta2: float = option(0.95, "decay of the second moment", low=0, below=1)
    eps: float = positive(1e-8, "added to the root of the second moment")
    weight_decay: float = option(0.1, "decoupled decay of matrices; vectors have none", low=0)
    clip: float | None = positive(1.0, "largest norm of the whole gradient; null = no limit")
    schedule: str = choice("wsd", ["wsd", "cosine", "constant"], "warmup-stable-decay, warmup-cosine, or warmup only")
    warmup_ratio: float = option(0.02, "share of max_steps in which the rate rises", low=0, high=1)
    decay_ratio: float = option(0.5, "share of max_steps in which wsd falls, at the end", low=0, high=1)
    ema: float | None = option(
        None,
        "decay of an average of the weights, kept beside them and sampled from; null = by ema_ratio",
        above=0,
        below=1,
    )
    ema_ratio: float | None = option(
        None, "length of that average as a share of max_steps; null = no average", above=0, below=1
    )
    final_lr_ratio: float = option(0.0, "rate at the last step, as a share of the peak", low=0, high=1)

    def for_model(self, width: int | None) -> Self:
        """Settle the learning rate for a model whose widest layer has `width` features.

        AdamW's best rate falls about as 1 / width (GPT-3's table: Brown et al. 2020, tab. 2.1; muP: Yang et al. 2022).
        A model narrower than the one a recipe was measured with keeps the recipe's rate. Muon's rate does not depend
        on the width.
        """
        ratio = min(1.0, self.base_width / width) if self.base_width and width else 1.0
        return replace(self, lr=self.lr or self.base_lr * ratio)

    def for_steps(self, max_steps: int) -> Self:
        """Settle the decay of the weights' average for a run of so many steps: it is 1 / (1 - decay) steps long."""
        if self.ema or not self.ema_ratio:
            return self
        return replace(self, ema=1 - 1 / max(2.0, self.ema_ratio * max_steps))

    @property
    def peak_lr(self) -> float:
        return self.lr or self.base_lr


@dataclass
class TrainerConfig:
    """How long and on what a run trains."""

    max_steps: int | None = positive(
        None, "steps in all, the horizon of every schedule; null = what fits budget here", on_resume="warned"
    )
    budget: str = option("4m", "time in all (90s, 4m, 2h) that a new run chooses its max_steps for", on_resume="free")
    save_every: int = positive(100, "steps between checkpoints", on_resume="free")
    save: str = choice(
        "auto",
        ["auto", "sync", "async"],
        "whether training waits for a checkpoint to be written: sync, it does; async, another process writes a copy "
        "(Linux); auto = async on CUDA",
        on_resume="free",
    )
    sharded_save: bool = option(
        False,
        "under strategy=fsdp: each rank writes some of a checkpoint's tensors, into files of its own on a disk that "
        "all share; false = rank 0 writes all",
        on_resume="free",
    )
    eval_every: int = positive(100, "steps between evaluations on the validation part", on_resume="free")
    sample_every: int = positive(500, "steps between samples written to samples/", on_resume="free")
    log_every: int = positive(10, "steps between rows of metrics.csv", on_resume="free")
    keep: int = option(2, "newest checkpoints kept, beside the best and the newest verified", low=1, on_resume="free")
    on_bad_step: str = choice(
        "skip",
        ["skip", "stop", "rollback"],
        "what follows a step that is not finite (it never changes a weight): go on; stop; or go back to the last "
        "checkpoint and on with other data",
        on_resume="free",
    )
    spike: float | None = positive(
        None,
        "a step whose loss or gradient norm is more than this many deviations above the last 128 is bad, too; "
        "null = off",
        on_resume="free",
    )
    max_bad_steps: int = option(
        5, "bad steps in a row after which a run stops; checked when a row is logged", low=0, on_resume="free"
    )
    max_failed_saves: int = option(
        3, "checkpoints in a row that may fail to be written, as on a full disk", low=0, on_resume="free"
    )
    watchdog: str = option(
        "30m", "time without any progress after which all stacks are written and the run exits 70", on_resume="free"
    )
    precision: str = choice("auto", ["auto", "bf16", "fp32"], "bf16 autocast where the hardware has it, else fp32")
    compile: str = choice(
        "auto",
        ["auto", "true", "false"],
        "torch.compile; auto = where it pays: CUDA, and language models for some minutes on a CPU",
        on_resume="free",
    )
    device: str = choice("auto", ["auto", "cpu", "cuda"], "auto = cuda if there is one", on_resume="free")
    devices: int = positive(1, "processes (ranks) of each node, one a device", on_resume="free")
    nodes: int | None = positive(
        None, "machines; null = as many as torchrun or srun has started this command on", on_resume="free"
    )
    strategy: str = choice(
        "auto",
        ["auto", "ddp", "fsdp"],
        "how ranks share work: ddp, each with all weights; fsdp, each with its rows of them; auto = ddp when "
        "there are several",
        on_resume="free",
    )
    threads: int | None = positive(None, "CPU threads a process; null = what torch takes", on_resume="free")
    callbacks: list[str] = option(
        [], "your Lightning callbacks by registered name, called after ours, in this order", on_resume="free"
    )
    profiler: str | None = option(
        None, "simple, advanced, pytorch, or one of yours by registered name; writes into the run", on_resume="free"
    )

    @property
    def world(self) -> int:
        """The number of ranks."""
        return self.devices * (self.nodes or 1)

    @property
    def saves_in_background(self) -> bool:
        """Whether checkpoints are written beside training; `device` is settled by then."""
        return self.save == "async" or (self.save == "auto" and self.device == "cuda" and not self.sharded_save)


@dataclass
class LoggerConfig:
    """Where metrics go beside metrics.csv, which is always written."""

    name: str = choice(
        "csv", ["csv", "wandb", "tensorboard"], "csv only, or wandb or tensorboard beside it", on_resume="free"
    )
    project: str = option("gengen", "wandb project", on_resume="free")
    mode: str = choice("offline", ["offline", "online"], "whether wandb may use the network", on_resume="free")


@dataclass
class TrainConfig:
    """One training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    run: str | None = option(
        None, "name of the run; new runs without one are named model-data-number", on_resume="free"
    )
    runs_dir: str = option("runs", "folder that holds the runs", on_resume="free")
    seed: int = option(0, "seed of weights, order and draws", low=0, high=2**32 - 1)
    resume: str = option(
        "auto", "auto: go on if there is a checkpoint; must; never; or the path of a checkpoint", on_resume="free"
    )
    init_from: str | None = option(None, "run or checkpoint whose model, tokenizer and weights a new run starts from")
    stop_at: int | None = positive(
        None, "stop after this step with a checkpoint; schedules do not change", on_resume="free"
    )
    max_time: str | None = option(
        None, "stop this command after so much training (90s, 5m, 2h); no schedule changes", on_resume="free"
    )
    plugins: list[str] = option([], "your modules to import, which register your own components", on_resume="free")
    dry_run: bool = option(False, "print config, parameters, memory and FLOPs, then stop", on_resume="free")

    def check(self) -> None:
        """Raise UserError where groups do not go together."""
        self.check_data_kind()
        self.check_optimizer()
        if self.stage.name != "pretrain" and not self.init_from:
            raise UserError(f"stage={self.stage.name} goes on from a run: init_from=runs/NAME")
        if self.model.is_adapted:
            self.check_adapter()
        if isinstance(self.stage, OnlineConfig):
            self.check_online(self.stage)
        self.check_devices()
        self.check_saves()
        self.check_bad_steps()
        seconds("trainer.watchdog", self.trainer.watchdog)
        seconds("trainer.budget", self.trainer.budget)
        if self.max_time is not None:
            seconds("max_time", self.max_time)

    def check_data_kind(self) -> None:
        """A model is trained on data of its kind, or of its stage's kind."""
        model, data = MODELS.entries.get(self.model.name), DATA.entries.get(self.data.name)
        if model and data and data.kind != (wanted := STAGES[self.stage.name].kind or model.kind):
            fitting = [name for name in DATA if DATA[name].kind == wanted]
            raise UserError(
                f"model={model.name} stage={self.stage.name} is trained on {wanted}, data={data.name} is {data.kind}"
                f"\n  choose one of data={', '.join(fitting)}"
            )

    def check_optimizer(self) -> None:
        """Muon needs a model that says which weights it is for."""
        if self.optim.name == "muon" and not self.model.hidden_maps:
            able = [name for name in MODELS if getattr(MODELS[name].config, "hidden_maps", "")]
            raise UserError(
                f"optim=muon: model={self.model.name} has no weights that Muon is for, and would be trained by AdamW; "
                f"take optim=adamw\n  Muon is for model={', '.join(able)}"
            )

    def check_adapter(self) -> None:
        """An adapter is for the weights of a run, which are not sharded."""
        if not self.init_from:
            raise UserError("model.lora.rank adapts the weights of a run: init_from=runs/NAME")
        if self.trainer.strategy == "fsdp":
            raise UserError("model.lora.rank: an adapter is not sharded; take trainer.strategy=ddp or auto")

    def check_online(self, stage: OnlineConfig) -> None:
        """Online RL: one device, a stated number of steps, whole groups."""
        if self.trainer.world > 1:
            raise UserError(f"stage={stage.name} runs on one device so far: trainer.devices=1")
        if self.trainer.max_steps is None:
            raise UserError(f"stage={stage.name} needs trainer.max_steps, minibatch updates in all")
        if (episodes := self.data.batch_size * stage.minibatches) % stage.group:
            raise UserError(
                f"data.batch_size={self.data.batch_size} x stage.minibatches={stage.minibatches} = {episodes} answers "
                f"are no multiple of stage.group_size={stage.group}"
            )

    def check_devices(self) -> None:
        """What several devices ask of the other fields."""
        c = self.trainer
        ranks = f"trainer.devices={c.devices}" + (f" on trainer.nodes={c.nodes}" if (c.nodes or 1) > 1 else "")
        if c.max_steps is None and (c.world > 1 or c.strategy == "fsdp"):
            key = ranks if c.world > 1 else "trainer.strategy=fsdp"
            raise UserError(f"{key} needs trainer.max_steps: trainer.budget is measured on one device, unsharded")
        if self.data.batch_size % c.world:
            raise UserError(f"data.batch_size={self.data.batch_size} cannot be shared by {ranks} equally")

    def check_saves(self) -> None:
        """What checkpoints in several files ask of the other fields."""
        c = self.trainer
        if c.sharded_save and c.strategy != "fsdp":
            raise UserError(
                f"trainer.sharded_save=true: trainer.strategy={c.strategy} has whole weights on each rank, and rank 0 "
                "writes them: take trainer.sharded_save=false, or trainer.strategy=fsdp"
            )
        if c.sharded_save and c.save == "async":
            raise UserError("trainer.sharded_save=true writes while training waits: take trainer.save=auto or sync")

    def check_bad_steps(self) -> None:
        """Going back to a checkpoint is for one device, and for data that do not come from the model."""
        if self.trainer.on_bad_step == "rollback" and (self.trainer.world > 1 or isinstance(self.stage, OnlineConfig)):
            raise UserError(
                "trainer.on_bad_step=rollback: on one device, and not where a step's data are drawn by the model: "
                "skip or stop"
            )
