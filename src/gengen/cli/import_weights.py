"""`import_weights`: a new run from weights in the Hugging Face layout."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gengen.checkpoints.files import Damaged, read_json, read_text
from gengen.checkpoints.migrate import read_config
from gengen.checkpoints.run import Run, check_name
from gengen.config.commands import ImportConfig
from gengen.config.compose import compose_flat, read_command_line
from gengen.config.data import DataConfig
from gengen.config.help import flat_help
from gengen.config.model import GPTConfig, ModelConfig
from gengen.config.resume import stored
from gengen.config.schema import build
from gengen.config.train import TrainConfig
from gengen.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

NO_DATA = "none (imported weights: train.py init_from=RUN data=NAME trains on from them)"
"""The name of an imported run's data: what is asked to train or evaluate on it answers that there is no such data."""


def main(argv: list[str]) -> int:
    config = import_config(argv)
    if config is None:
        return 0
    folder, run = Path(str(config.folder)), Run(Path(config.runs_dir) / str(config.run))
    check_name(str(config.run))
    if run.path.exists():
        raise UserError(f"{run.path} exists, and no run is overwritten: choose another run=NAME")
    try:
        imported = read_adapter(folder, config) if config.is_adapter else read_import(folder)
    except UserError as error:
        raise UserError(f"{folder} cannot be imported: {error}") from None
    write_run(run, imported, config.runs_dir)
    print(f"run    {run.path}")
    print(
        f"model  {imported.layout}, {imported.parameters / 1e6:.2f} M parameters, {imported.model.vocab_size} tokens"
    )
    print(f'to sample:   python scripts/sample.py {run.path} prompt="Once upon a time"')
    print(f"to train on: python scripts/train.py init_from={run.path} data=text data.path=FILE")
    return 0


def import_config(argv: list[str]) -> ImportConfig | None:
    """Return what the command line asks for, whose first argument is a folder; None after printing help."""
    line = read_command_line(argv)
    if line.show == "help":
        print(flat_help("import_weights", ImportConfig).replace(" RUN ", " FOLDER ", 1))
        return None
    if line.run:
        line.settings.insert(0, ("folder", line.run))
        line.run = None
    config: ImportConfig = compose_flat(ImportConfig, line)
    return config


@dataclass
class Imported:
    """What a folder in the Hugging Face layout holds, in our words."""

    layout: str
    model: GPTConfig
    weights: "dict[str, Tensor]"
    tokenizer: str
    """As JSON."""
    parameters: int
    base: str | None = None
    """The checkpoint that these weights adapt."""


def read_import(folder: Path) -> Imported:
    """Read a folder of weights. Raises UserError for what is missing, damaged or not supported."""
    from gengen.checkpoints.convert.huggingface import ends, from_config, from_tensors, read_folder
    from gengen.checkpoints.layout import MAX_TOKENIZER, meta_model, unique_state
    from gengen.data.text.foreign_tokenizer import ForeignTokenizer
    from gengen.models.gpt import GPT

    # 1. the model that config.json describes
    known, generation, spelling = (
        optional_json(folder / f"{name}.json") for name in ("config", "generation_config", "tokenizer_config")
    )
    layout, model = from_config(known)
    assert model.vocab_size
    # 2. its weights, by our names and shapes
    found = read_folder(folder)
    own = unique_state(meta_model(GPT, model, len(found)))
    weights = from_tensors(layout, model, found, {name: tensor.shape for name, tensor in own.items()})
    # 3. its tokenizer
    if not (path := folder / "tokenizer.json").is_file():
        raise UserError(
            "there is no tokenizer.json\n"
            "  in transformers, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes one"
        )
    start, (end, *more) = ends(spelling, known, generation)
    tokenizer = ForeignTokenizer.wrap(read_text(path, MAX_TOKENIZER), start, end, model.vocab_size, more)
    parameters = sum(tensor.numel() for tensor in found.values())
    return Imported(layout.name, model, weights, tokenizer.to_json(), parameters)


def read_adapter(folder: Path, config: ImportConfig) -> Imported:
    """Read an adapter in PEFT's layout. Raises UserError for what is missing, damaged, not supported, or does not fit
    its base."""
    from gengen.checkpoints.convert.huggingface import layout_of
    from gengen.checkpoints.convert.peft import from_peft
    from gengen.checkpoints.layout import identity, read_tensors, read_tokenizer
    from gengen.generation.load import find_checkpoint

    base = find_checkpoint(str(config.base), Path(config.runs_dir), "latest")
    model = build(ModelConfig, read_config(base)["model"])
    if not isinstance(model, GPTConfig):
        raise UserError(f"base={config.base} is a {model.name}; an adapter is for a gpt")
    model = model.resolved()
    found = read_tensors(folder / "adapter_model.safetensors")
    lora, weights = from_peft(layout_of(model), model, optional_json(folder / "adapter_config.json"), found)
    model = replace(model, lora=replace(lora, base=str(base), base_sha256=identity(base)))
    check_fit(model, weights)
    parameters = sum(tensor.numel() for tensor in weights.values())
    return Imported("PEFT's LoRA", model, weights, read_tokenizer(base) or "", parameters, str(base))


def check_fit(model: GPTConfig, weights: "dict[str, Tensor]") -> None:
    """Raise UserError unless an adapter has the shapes that its base gives it."""
    import torch

    from gengen.checkpoints.layout import load_weights
    from gengen.models.gpt import GPT
    from gengen.models.lora import add_adapters

    with torch.device("meta"):
        network = GPT(model)
        add_adapters(network, model.lora)
        load_weights(network, weights, Path("adapter_model.safetensors"))


def optional_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} where there is no such file."""
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise Damaged(path, "not a JSON object")
    return found


def write_run(run: Run, imported: Imported, runs_dir: str) -> None:
    """Write a new run whose only checkpoint, of step 0, holds these weights."""
    import torch

    import gengen
    from gengen.checkpoints import store
    from gengen.checkpoints.layout import Checkpoint

    data = DataConfig(name=NO_DATA)
    config = TrainConfig(model=imported.model, data=data, run=run.name, runs_dir=runs_dir, init_from=imported.base)
    tree = stored(config)
    facts = {
        "data": "none: imported",
        "imported": {"layout": imported.layout},
        "versions": {"gengen": gengen.__version__, "torch": torch.__version__},
    }
    run.path.mkdir(parents=True)
    run.lock()
    store.save(run.checkpoints, Checkpoint(0, tree, imported.weights, tokenizer=imported.tokenizer, facts=facts))
    run.write_config(tree)
    run.unlock()
