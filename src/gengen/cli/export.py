"""`export`: a run's weights as a folder that transformers loads."""

import json
import os
from pathlib import Path

from gengen.checkpoints.migrate import read_config
from gengen.cli.run_command import parse_run_command
from gengen.config.commands import ExportConfig
from gengen.config.model import GPTConfig, ModelConfig
from gengen.config.schema import build
from gengen.errors import UserError


def main(argv: list[str]) -> int:
    config = parse_run_command("export", lambda entry: ExportConfig, argv)
    if config is None:
        return 0
    import torch
    from safetensors.torch import save_file

    from gengen.checkpoints.convert.huggingface import layout_of, to_config, to_tensors
    from gengen.checkpoints.layout import load_weights, read_tokenizer
    from gengen.data.text.tokenizer import TextTokenizer
    from gengen.generation.load import find_checkpoint, whole_weights
    from gengen.models.gpt import GPT

    # 1. a language model, in a layout that transformers has
    directory = find_checkpoint(str(config.run), Path(config.runs_dir), config.checkpoint, print)
    model = build(ModelConfig, read_config(directory)["model"])
    if not isinstance(model, GPTConfig):
        raise UserError(f"model={model.name} has no layout in transformers; gpt has")
    model = model.resolved()
    layout, tokenizer = layout_of(model), TextTokenizer.from_json(read_tokenizer(directory) or "")
    # 2. its weights, whole and finite in the dtype asked for
    weights = whole_weights(directory, config.weights)
    with torch.device("meta"):
        load_weights(GPT(model), weights, directory)  # says what does not fit
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.dtype]
    tensors = {name: tensor.to(dtype) for name, tensor in to_tensors(layout, model, weights).items()}
    if bad := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise UserError(f"{bad[0]} is not finite in dtype={config.dtype}")
    # 3. what lies beside them
    end = list(tokenizer.ends) if len(tokenizer.ends) > 1 else tokenizer.eot
    special = {"bos_token_id": tokenizer.start, "eos_token_id": end, "pad_token_id": tokenizer.eot}
    files = {
        "config.json": to_config(layout, model, tokenizer.start, end, str(dtype).removeprefix("torch.")),
        "generation_config.json": special,
        **tokenizer.huggingface(model.context or 0),
    }
    # 4. all of it at once, by a rename
    out = Path(str(config.out))
    stage = out.with_name(f".{out.name}.{os.getpid()}")
    stage.mkdir()
    save_file(tensors, stage / "model.safetensors", metadata={"format": "pt"})
    for name, tree in files.items():
        (stage / name).write_text(json.dumps(tree, ensure_ascii=False, indent=1) + "\n", encoding="utf8")
    os.replace(stage, out)
    print(f"{out}  {layout.architecture}, {len(tensors)} tensors in {config.dtype}")
    return 0
