"""What a command line asks training for, checked as far as that needs no torch: which run, and what it names."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from gengen.checkpoints.migrate import read_config
from gengen.checkpoints.run import Run, check_name, find
from gengen.config.compose import CommandLine, compose_train, field_settings, import_plugins, plugins, selections
from gengen.config.model import LoRAConfig
from gengen.config.resume import Change, policy, resumed
from gengen.config.schema import plain, schema
from gengen.config.stage import weighted_reward
from gengen.config.train import TrainConfig
from gengen.errors import NoCheckpoint, UserError, did_you_mean
from gengen.registry import CALLBACKS, MODELS, PROFILERS, REWARDS
from gengen.training.place import Place

LORA_SETTINGS = {f"model.lora.{f.name}" for f in fields(LoRAConfig)} - {"model.lora.base", "model.lora.base_sha256"}
"""What may be said of the model beside init_from: all else it brings along."""


@dataclass(frozen=True)
class Request:
    """A new run and its config; or an existing one, its config, and what is to change of it."""

    config: TrainConfig
    run: Run | None = None  # None: a new one
    changes: list[Change] = field(default_factory=list)
    model_settings: list[tuple[str, str]] = field(default_factory=list)  # what was said of the model


def placed(line: CommandLine, place: Place) -> CommandLine:
    """Return the command line with the devices and nodes that the ranks were launched on.

    Raises UserError where it says otherwise, or leaves open which run a command that is started again goes on with.
    """
    if not place.is_launched or line.show == "help":
        return line
    if line.multirun:
        raise UserError(f"-m starts a process for each run by itself; start it without {place.launcher}")
    if not (line.run or line.last("run")):
        raise UserError(
            f"{place.launcher} starts a command again after a failure, and then it must go on with its run, not begin "
            f"another: name it by run=NAME"
        )
    started = {"trainer.devices": place.local_world, "trainer.nodes": place.nodes}
    for key, n in started.items():
        if (said := line.last(key)) not in (None, "null", str(n)):
            raise UserError(f"{key}={said}: {place.launcher} has started {n}; leave it out, or start as many")
    return replace(line, settings=[*line.settings, *((key, str(n)) for key, n in started.items())])


def read_request(line: CommandLine) -> Request:
    """Find out which run a command line means, and compose its config.

    Raises UserError for a run that should exist and does not: one is meant where nothing says what a new one would be.
    """
    said_of_model = [(key, text) for key, text in line.settings if key.split(".")[0] == "model"]
    name, folder = line.run or line.last("run"), Path(line.last("runs_dir") or "runs")
    if not name:
        return Request(compose_train(line), model_settings=said_of_model)
    if "/" in name:
        folder, name = Path(name).parent, Path(name).name
    check_name(name)
    run = Run(folder / name)
    if (run.path / "config.json").exists():
        import_plugins(plugins(line))
        config, changes = resumed(run.read_config(), line)
        if config.resume == "never":
            raise UserError(f"resume=never: {run.path} exists; choose another run=NAME, or remove it")
        return Request(replace(config, run=name, runs_dir=str(folder)), run, changes)
    config = compose_train(line)
    known = schema(TrainConfig, plain(config))
    if not selections(line) and all(policy(key, known) == "free" for key, _ in field_settings(line)):
        find(name, folder)
    return Request(replace(config, run=name, runs_dir=str(folder)), model_settings=said_of_model)


@dataclass(frozen=True)
class Sources:
    """The checkpoints and runs that a new run begins with."""

    checkpoint: Path | None = None  # resume=PATH
    init_from: Path | None = None
    rewards: dict[str, Path] = field(default_factory=dict)  # by the folder that the run keeps each in


def find_sources(request: Request) -> Sources:
    """Find everything that a new run names. Raises UserError for what is not there, before anything slow."""
    config = request.config
    checkpoint = named_checkpoint(config)
    check_paths(config)
    check_registered(config)
    rewards = reward_runs(config)
    if not config.init_from:
        check_model_runs(config)
        return Sources(checkpoint, None, rewards)
    source = find(config.init_from, Path(config.runs_dir))
    brought = read_config(source)["model"]["name"]
    adapter = schema(MODELS[brought].config, {}, "model.").keys() & LORA_SETTINGS if brought in MODELS else ()
    stated = [f"{k}={v}" for k, v in request.model_settings if (k, v) != ("model", brought) and k not in adapter]
    if stated:
        raise UserError(
            f"init_from={config.init_from} brings its model along, a {brought}; leave out {' '.join(stated)}"
        )
    return Sources(checkpoint, source, rewards)


def named_checkpoint(config: TrainConfig) -> Path | None:
    """The checkpoint that a new run is to begin with, by `resume`. Raises NoCheckpoint, UserError."""
    if config.resume == "must":
        raise NoCheckpoint(f"resume=must: {Path(config.runs_dir) / (config.run or '')} is no run with a checkpoint")
    if config.resume in ("auto", "never"):
        return None
    checkpoint = find(config.resume, Path(config.runs_dir))
    if not (checkpoint / "manifest.json").exists():
        raise UserError(f"resume={config.resume}: not a checkpoint directory")
    return checkpoint


def check_paths(config: TrainConfig) -> None:
    """Raise UserError where a file or folder of the user's data is missing."""
    path = getattr(config.data, "path", None)
    if path and not Path(path).exists():
        parent = Path(path).parent
        names = [p.name for p in parent.iterdir()] if parent.is_dir() else []
        raise UserError(
            f"data.path={path}: no such file or folder" + did_you_mean(Path(path).name, names, all_if_none=False)
        )
    if getattr(config.data, "source", None) == "files" and not path:
        raise UserError(f"data={config.data.name} needs data.path=FILE_OR_FOLDER")


def check_registered(config: TrainConfig) -> None:
    """Raise UserError for a callback or a profiler that nobody has registered."""
    for name in config.trainer.callbacks:
        if name not in CALLBACKS:
            raise not_registered("trainer.callbacks", name, CALLBACKS, "register_callback")
    if (profiler := config.trainer.profiler) is not None and profiler not in PROFILERS:
        raise not_registered("trainer.profiler", profiler, PROFILERS, "register_profiler")


def not_registered(key: str, name: str, registry: dict[str, str], register: str) -> UserError:
    return UserError(
        f"{key}={name}: nothing is registered by that name"
        + did_you_mean(name, registry)
        + f"\n  yours joins by @{register}({name!r}) in a module that plugins=[MODULE] names, at every start"
    )


def reward_runs(config: TrainConfig) -> dict[str, Path]:
    """The runs that are rewards, by the folder that a run keeps them in.

    Raises UserError for a reward that is neither such a run nor a registered function.
    """
    found = {}
    for i, (_, name) in enumerate(map(weighted_reward, config.stage.rewards())):
        if name not in REWARDS:
            try:
                found[f"reward-{i}"] = path = find(name, Path(config.runs_dir))
            except UserError as error:
                raise UserError(
                    f"stage.reward={name}: {error}\n  registered rewards are {', '.join(REWARDS)}"
                ) from None
            if (stage := read_config(path).get("stage", {}).get("name")) != "reward":
                raise UserError(f"stage.reward={name} is a run of stage={stage}: stage=reward trains a reward model")
    return found


def check_model_runs(config: TrainConfig) -> list[Path]:
    """The directories of the runs that a new run's model is built on: each must be named and be there."""
    found = []
    for f in fields(config.model):
        if f.metadata.get("run"):
            if (wanted := getattr(config.model, f.name)) is None:
                raise UserError(f"model={config.model.name} needs model.{f.name}=runs/NAME, {f.metadata['doc']}")
            found.append(find(wanted, Path(config.runs_dir)))
    return found
