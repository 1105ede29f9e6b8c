"""`export`: a run's weights as a folder that transformers loads, or its adapter as one that PEFT loads."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gengen.checkpoints.migrate import read_config
from gengen.cli.run_command import parse_run_command
from gengen.config.commands import ExportConfig
from gengen.config.model import GPTConfig, ModelConfig
from gengen.config.schema import build
from gengen.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Exported:
    """What a folder is to hold."""

    tensors_name: str
    tensors: "dict[str, Tensor]"
    files: dict[str, Any]
    """JSON, by the name of its file."""
    architecture: str


def main(argv: list[str]) -> int:
    config = parse_run_command("export", lambda entry: ExportConfig, argv)
    if config is None:
        return 0
    import torch

    from gengen.generation.load import find_checkpoint

    # 1. a language model, in a layout that is known there
    directory = find_checkpoint(str(config.run), Path(config.runs_dir), config.checkpoint, print)
    model = build(ModelConfig, read_config(directory)["model"])
    if not isinstance(model, GPTConfig):
        raise UserError(f"model={model.name} has no layout in transformers; gpt has")
    exported = (adapter if config.to == "peft" else whole_model)(directory, model.resolved(), config)
    # 2. finite in the dtype asked for
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.dtype]
    exported.tensors = {name: tensor.to(dtype) for name, tensor in exported.tensors.items()}
    if bad := [name for name, tensor in exported.tensors.items() if not tensor.isfinite().all()]:
        raise UserError(f"{bad[0]} is not finite in dtype={config.dtype}")
    # 3. all of it at once, by a rename
    write_folder(Path(str(config.out)), exported)
    print(f"{config.out}  {exported.architecture}, {len(exported.tensors)} tensors in {config.dtype}")
    return 0


def whole_model(directory: Path, model: GPTConfig, config: ExportConfig) -> Exported:
    """All weights, an adapter's merged, with the tokenizer."""
    import torch

    from gengen.checkpoints.convert.huggingface import layout_of, to_config, to_tensors
    from gengen.checkpoints.layout import load_weights, read_tokenizer
    from gengen.data.text.tokenizer import TextTokenizer
    from gengen.generation.load import whole_weights
    from gengen.models.gpt import GPT

    layout, tokenizer = layout_of(model), TextTokenizer.from_json(read_tokenizer(directory) or "")
    weights = whole_weights(directory, config.weights)
    with torch.device("meta"):
        load_weights(GPT(model), weights, directory)  # says what does not fit
    end = list(tokenizer.ends) if len(tokenizer.ends) > 1 else tokenizer.eot
    special = {"bos_token_id": tokenizer.start, "eos_token_id": end, "pad_token_id": tokenizer.eot}
    dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[config.dtype]
    files = {
        "config.json": to_config(layout, model, tokenizer.start, end, dtype),
        "generation_config.json": special,
        **tokenizer.huggingface(model.context or 0),
    }
    return Exported("model.safetensors", to_tensors(layout, model, weights), files, layout.architecture)


def adapter(directory: Path, model: GPTConfig, config: ExportConfig) -> Exported:
    """The adapter alone."""
    from gengen.checkpoints.convert.huggingface import layout_of
    from gengen.checkpoints.convert.peft import to_peft
    from gengen.checkpoints.layout import read_weights

    if not model.is_adapted:
        raise UserError(f"to=peft: {config.run} has no adapter, but weights of its own; to=hf writes them")
    layout = layout_of(model)
    tensors, adapter_config = to_peft(layout, model, read_weights(directory, config.weights))
    name = f"LoRA of {layout.architecture}"
    return Exported("adapter_model.safetensors", tensors, {"adapter_config.json": adapter_config}, name)


def write_folder(out: Path, exported: Exported) -> None:
    """Write a folder that is there whole or not at all."""
    from safetensors.torch import save_file

    stage = out.with_name(f".{out.name}.{os.getpid()}")
    stage.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in exported.tensors.items()}
    save_file(tensors, stage / exported.tensors_name, metadata={"format": "pt"})
    for name, tree in exported.files.items():
        (stage / name).write_text(json.dumps(tree, ensure_ascii=False, indent=1) + "\n", encoding="utf8")
    os.replace(stage, out)
