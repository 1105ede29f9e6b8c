"""Names for what a config can choose. A name maps to a config dataclass and to the code that is imported to build it.

Configs and checkpoints hold names only, never import paths, so a checkpoint cannot name code. Your own code joins by
registering itself, and is imported only when the command line says so (`plugins=[my_module]`):

    @register_model("mine", model="my_module:Mine", objectives={"pretrain": "my_module:MyObjective"}, generator=...)
    @dataclass
    class MineConfig(ModelConfig): ...
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from gengen.errors import UserError, did_you_mean, raised

C = TypeVar("C", bound=type)

PLUGINS: set[str] = set()
"""The modules that `plugins=` named, once they are imported."""


def own_packages() -> set[str]:
    """The top-level packages of the user's own code: of plugins, and of what they have registered."""
    entries = [entry for registry in (MODELS, DATA, STAGES) for entry in registry.entries.values()]
    modules = [*PLUGINS, *(path for entry in entries for path in entry.builds.values()), *REWARDS.values()]
    return {module.partition(":")[0].split(".")[0] for module in modules} - {"gengen"}


def imported(path: str) -> Any:
    """What "module:attribute" names. Raises UserError where a user's own cannot be imported."""
    module, _, attribute = path.partition(":")
    package = module.split(".")[0]
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:
        if package == "gengen":
            raise
        raise UserError(f"{path} cannot be imported: {raised(error, [package])}") from error


@dataclass(frozen=True)
class Entry:
    """One registered name: what it is made of, the dataclass of its config, and "module:Class" for each part built
    from it.
    """

    name: str
    kind: str  # text or image: a model is trained on data of its kind
    config: type
    builds: dict[str, str] = field(default_factory=dict)
    sampling: type | None = None  # the config dataclass of the family's `sample` command

    def load_for(self, part: str, stage: str) -> Any:
        """One part as a stage has it: its own, where one is registered as "part:stage"."""
        return self.load(f"{part}:{stage}" if f"{part}:{stage}" in self.builds else part)

    def load(self, part: str) -> Any:
        """Import and return one part, such as "model" or "objective:pretrain"."""
        if part not in self.builds:
            known = [p for p in self.builds if p.split(":")[0] == part.split(":")[0]]
            raise UserError(f"{self.name} has no {part.replace(':', ' for stage ')}" + did_you_mean(part, known))
        try:
            return imported(self.builds[part])
        except UserError as error:
            raise UserError(f"{part.replace(':', ' for stage ')} of {self.name}: {error}") from error


class Registry:
    """The names of one kind of component."""

    def __init__(self, kind: str):
        self.kind = kind
        self.entries: dict[str, Entry] = {}

    def add(self, entry: Entry) -> None:
        if entry.name in self.entries and self.entries[entry.name].config is not entry.config:
            raise UserError(
                f"{self.kind} {entry.name!r} is registered twice: {self.entries[entry.name].config} and {entry.config}"
            )
        self.entries[entry.name] = entry

    def __getitem__(self, name: str) -> Entry:
        if not isinstance(name, str) or name not in self.entries:
            raise UserError(f"no {self.kind} is called {name!r}" + did_you_mean(str(name), self.entries))
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)


MODELS = Registry("model")
DATA = Registry("data")
STAGES = Registry("stage")


def family_and_stage(config: Mapping[str, Any], where: Path) -> tuple[Entry, str]:
    """Return the registered family of the model and the name of the stage that a run's config.json names. Raises
    UserError where it names no model.

    where: the directory of the config.json, for the error.
    """
    try:
        return MODELS[config["model"]["name"]], config.get("stage", {}).get("name", "")
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{where / 'config.json'} names no model") from None


REWARDS: dict[str, str] = {
    "requested_words": "gengen.data.sources.storygen:requested_words",
}
"""Rewards that are Python functions: name -> "module:function"; yours join by `register_reward`."""


def register_reward(name: str) -> Callable[[Callable[[str, str, bool], float]], Callable[[str, str, bool], float]]:
    """Register f(prompt, response, ended) -> float as a reward, to be named by stage.reward. ended: the response came
    to its end within stage.max_tokens."""

    def register(function: Callable[[str, str, bool], float]) -> Callable[[str, str, bool], float]:
        REWARDS[name] = f"{function.__module__}:{function.__qualname__}"
        return function

    return register


def reward_function(name: str) -> Callable[[str, str, bool], float]:
    """The registered function of that name, imported."""
    function: Callable[[str, str, bool], float] = imported(REWARDS[name])
    return function


def register_stage(name: str, *, data: str = "") -> Callable[[C], C]:
    """Register a stage's config; data: the kind it is trained on, "" = the model's own."""

    def register(config: C) -> C:
        STAGES.add(Entry(name, data, config))
        return config

    return register


def register_model(
    name: str,
    *,
    kind: str,
    model: str,
    objectives: dict[str, str],
    generator: str,
    sampling: type,
    encode: str | None = None,
    command: str | None = None,
    variants: dict[str, str] | None = None,
) -> Callable[[C], C]:
    """Register a model family: what it is trained on, its network, an objective for each stage, its generator (see
    generation/base.py), and the config of its `sample` command.

    command(generator, config, say) -> line: all that `sample` does for the family, which decides what it shows and
    writes; the line sums it up. Without one, the command of its kind (cli/sample_text.py, cli/sample_images.py).

    encode(prepared, model_config, runs_dir, run, say) -> prepared: for a family that is trained on data as another
    run's model encodes it. `run` is the directory of a run that exists, or None; what sampling will need of the other
    model is in the `dependencies` of what it returns, {name: folder}, and is copied into a new run.
    variants: a network or generator that one stage has of its own, such as {"model:reward": "module:Class"}.
    """
    builds = {"model": model, "generator": generator} | {
        f"objective:{stage}": path for stage, path in objectives.items()
    }
    builds |= variants or {}
    builds |= {part: path for part, path in {"encode": encode, "command": command}.items() if path}

    def register(config: C) -> C:
        MODELS.add(Entry(name, kind, config, builds, sampling))
        return config

    return register


def register_data(*names: str, kind: str, prepare: str, datamodule: str) -> Callable[[C], C]:
    """Register data sets that share one config dataclass, one way to be prepared and one datamodule:

    prepare(config, model_config, say, tokenizer_json) -> prepared data, with `config` (settled), `fingerprint`,
    `model_facts` (what the data fixes of the model), `dependencies` (folders a run keeps a copy of) and `describe()`;
    datamodule(config, prepared, model_config, seed=, rank=, world=) -> LightningDataModule with `val_batches()`.
    """

    def register(config: C) -> C:
        for name in names:
            DATA.add(Entry(name, kind, config, {"prepare": prepare, "datamodule": datamodule}))
        return config

    return register
