"""Names for what a config can choose. A name maps to a config dataclass and to the code that is imported to build it.

Configs and checkpoints hold names only, never import paths, so a checkpoint cannot name code. Your own code joins by
registering itself, and is imported only when the command line says so (`plugins=[my_module]`):

    @register_model("mine", model="my_module:Mine", objectives={"pretrain": "my_module:MyObjective"}, generator=...)
    @dataclass
    class MineConfig(ModelConfig): ...
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, overload

from gengen.errors import UserError, did_you_mean, raised

C = TypeVar("C", bound=type)
Made = TypeVar("Made", bound=Callable[..., object])

OWN_CODE = "\n  what your own code registers is known with plugins=[ITS_MODULE], which every command takes"
PLUGINS: set[str] = set()
"""The modules that `plugins=` named, once they are imported."""


def own_packages() -> set[str]:
    """The top-level packages of the user's own code: of plugins, and of what they have registered."""
    entries = [entry for registry in (MODELS, DATA, STAGES) for entry in registry.entries.values()]
    functions = [
        *REWARDS.values(),
        *IMAGE_REWARDS.values(),
        *FILTERS.values(),
        *CALLBACKS.values(),
        *PROFILERS.values(),
    ]
    modules = [*PLUGINS, *(path for entry in entries for path in entry.builds.values()), *functions]
    modules += [path for sources in SOURCES.values() for path in sources.values()]
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
            known = did_you_mean(str(name), self.entries)
            raise UserError(f"no {self.kind} is called {name!r}{known}{OWN_CODE}")
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


IMAGE_REWARDS: dict[str, str] = {
    "follows_prompt": "gengen.evaluation.best_of:follows_prompt",
}
"""Rewards of pictures, for best_of: name -> "module:function"; yours join by `register_image_reward`."""


FILTERS: dict[str, str] = {
    name: f"gengen.generation.filters.{name}:make" for name in ("patterns", "words", "copies", "reward")
}
"""Filters of prompts and texts: name -> "module:function" that makes one; yours join by `register_filter`."""


CALLBACKS: dict[str, str] = {}
"""Lightning callbacks that trainer.callbacks may name: name -> "module:Class"; all are users' own."""
PROFILERS: dict[str, str] = {
    name: f"gengen.training.monitor.profilers:{name}" for name in ("simple", "advanced", "pytorch")
}
"""Lightning profilers that trainer.profiler may name: name -> "module:function"; yours join by `register_profiler`."""


def register_filter(name: str) -> Callable[[Made], Made]:
    """Register make(request) -> filter (generation/filters/base.py says what both are), to be named by filter=."""

    def register(make: Made) -> Made:
        FILTERS[name] = f"{make.__module__}:{make.__qualname__}"
        return make

    return register


def register_callback(name: str) -> Callable[[Made], Made]:
    """Register a Lightning Callback, to be named by trainer.callbacks.

    It is made by a call without arguments, in every process of the run, and called after gengen's own. Its state is no
    part of a checkpoint.
    """

    def register(make: Made) -> Made:
        CALLBACKS[name] = f"{make.__module__}:{make.__qualname__}"
        return make

    return register


def register_profiler(name: str) -> Callable[[Made], Made]:
    """Register f(folder: Path) -> Lightning Profiler, to be named by trainer.profiler. folder: the run's own."""

    def register(make: Made) -> Made:
        PROFILERS[name] = f"{make.__module__}:{make.__qualname__}"
        return make

    return register


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


def register_image_reward(name: str) -> Callable[[Made], Made]:
    """Register make(data, say) -> reward of pictures, to be named by reward= when pictures are sampled.

    data() -> the prepared images that the run was trained on; reward(images, prompts): uint8 (N, C, H, W) and N
    prompts -> what each is worth, (N,).
    """

    def register(make: Made) -> Made:
        IMAGE_REWARDS[name] = f"{make.__module__}:{make.__qualname__}"
        return make

    return register


def image_reward_maker(name: str) -> Callable[..., Any]:
    """Return what makes the reward of pictures of that name, imported. Raises UserError for an unknown one."""
    if name not in IMAGE_REWARDS:
        raise UserError(f"no reward of pictures is called {name!r}{did_you_mean(name, IMAGE_REWARDS)}{OWN_CODE}")
    make: Callable[..., Any] = imported(IMAGE_REWARDS[name])
    return make


SOURCES: dict[str, dict[str, str]] = {}
"""Where records come from: kind of data -> name -> "module:Class", imported when read; see data/sources/base.py."""


def register_source(kind: str, name: str) -> Callable[[type], type]:
    """Register the class of a source, Class(config) -> `Source`, to be named by data.source for data of this kind:
    text, image, conversations, preferences or prompts."""

    def register(source: type) -> type:
        SOURCES.setdefault(kind, {})[name] = f"{source.__module__}:{source.__qualname__}"
        return source

    return register


def source_class(kind: str, name: str) -> type:
    """The registered class of a source, imported."""
    known = SOURCES.get(kind, {})
    if name not in known:
        raise UserError(f"no source of {kind} is called {name!r}" + did_you_mean(name, known) + OWN_CODE)
    found: type = imported(known[name])
    return found


class SourceNames(Sequence[str]):
    """What data.source may be for a kind of data: the names registered by now, some more before them."""

    def __init__(self, kind: str, *before: str):
        self.kind, self.before = kind, before

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[str]: ...
    def __getitem__(self, i: int | slice) -> str | Sequence[str]:
        return [*self.before, *SOURCES.get(self.kind, {})][i]

    def __len__(self) -> int:
        return len(self.before) + len(SOURCES.get(self.kind, {}))


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

    encode(prepared, model_config, runs_dir, run, say, allow_build=) -> prepared: for a family that is trained on data
    as another run's model encodes it. `run` is the directory of a run that exists, or None; what sampling will need of
    the other model is in the `dependencies` of what it returns, {name: folder}, and is copied into a new run.
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
    """Register data sets that share one config dataclass, one way to be prepared and one datamodule.

    prepare: "module:function" of a `Prepare` (data/prepared.py): a `PrepareRequest` in, `PreparedData` out.
    datamodule: "module:function" of a `BuildDataModule` (data/loader.py); for data whose prepared form has
    batch(split, index), gengen.data.loader:datamodule_for will do.
    """

    def register(config: C) -> C:
        for name in names:
            DATA.add(Entry(name, kind, config, {"prepare": prepare, "datamodule": datamodule}))
        return config

    return register
