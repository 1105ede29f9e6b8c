"""The language model in three layouts of transformers, both ways: a table of names for each, and functions that follow
it.

What one side has and the other cannot say is refused, by name. Tensors keep their values; but several of theirs are
one of ours, row below row (q, k, v; gate, up), our vocabulary is padded, and GPT-2 stores the matrices of its blocks
as (in, out).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gengen.checkpoints.files import Damaged, read_json
from gengen.checkpoints.layout import read_tensors
from gengen.config.model import GPTConfig
from gengen.config.schema import build
from gengen.errors import UserError
from gengen.io import Json


@dataclass(frozen=True)
class Layout:
    """What a family of transformers calls the fields of GPTConfig and the modules of models/gpt.py."""

    name: str
    architecture: str
    keys: list[tuple[str, str, Json | EllipsisType]]
    """(field of ours, name in config.json, what it means to leave it out: `...` = an error, None = it follows from the
    others).
    """
    fits: dict[str, Any]
    """Fields of ours with the one value that the layout can hold."""
    means: dict[str, list[Json]]
    """Other names in config.json with the values that are ours, of which the first is written."""
    modules: dict[str, list[str]]
    """Module of ours -> theirs, in the order of our rows; * is the number of the block."""


LLAMA = Layout(
    "llama", "LlamaForCausalLM",
    keys=[
        ("layers", "num_hidden_layers", ...), ("width", "hidden_size", ...), ("ff", "intermediate_size", ...),
        ("heads", "num_attention_heads", ...), ("kv_heads", "num_key_value_heads", None),
        ("head_size", "head_dim", None), ("vocab_size", "vocab_size", ...),
        ("context", "max_position_embeddings", ...), ("tied", "tie_word_embeddings", False),
        ("norm_eps", "rms_norm_eps", 1e-6), ("rope_theta", "rope_theta", 1e4),
        ("bias", "attention_bias", False), ("bias", "mlp_bias", False),
    ],
    fits={
        "positions": "rotary", "norm": "rmsnorm", "mlp": "swiglu", "qk_norm": False, "window": None,
        "logit_softcap": None,
    },
    means={"hidden_act": ["silu"]},
    modules={
        "embedding": ["model.embed_tokens"],
        "attention_norm": ["model.layers.*.input_layernorm"],
        "attention.qkv": [f"model.layers.*.self_attn.{part}_proj" for part in "qkv"],
        "attention.out": ["model.layers.*.self_attn.o_proj"],
        "mlp_norm": ["model.layers.*.post_attention_layernorm"],
        "mlp.gate_up": ["model.layers.*.mlp.gate_proj", "model.layers.*.mlp.up_proj"],
        "mlp.out": ["model.layers.*.mlp.down_proj"],
        "norm": ["model.norm"],
        "head": ["lm_head"],
    },
)  # fmt: skip
QWEN3 = Layout(
    "qwen3",
    "Qwen3ForCausalLM",
    keys=[
        (field, key, 128 if key == "head_dim" else default) for field, key, default in LLAMA.keys if field != "bias"
    ],
    fits=LLAMA.fits | {"qk_norm": True, "bias": False},
    means={"hidden_act": ["silu"], "attention_bias": [False], "use_sliding_window": [False]},
    modules={
        "attention.query_norm": ["model.layers.*.self_attn.q_norm"],
        "attention.key_norm": ["model.layers.*.self_attn.k_norm"],
        **LLAMA.modules,
    },
)
GPT2 = Layout(
    "gpt2", "GPT2LMHeadModel",
    keys=[
        ("layers", "n_layer", ...), ("width", "n_embd", ...), ("ff", "n_inner", None), ("heads", "n_head", ...),
        ("vocab_size", "vocab_size", ...), ("context", "n_positions", ...), ("tied", "tie_word_embeddings", True),
        ("norm_eps", "layer_norm_epsilon", 1e-5),
        # the last is ours
        ("dropout", "embd_pdrop", 0.1), ("dropout", "attn_pdrop", 0.1), ("dropout", "resid_pdrop", 0.1),
    ],
    fits=LLAMA.fits | {"positions": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True},
    means={
        "activation_function": ["gelu_new", "gelu_pytorch_tanh"],
        "scale_attn_weights": [True], "scale_attn_by_inverse_layer_idx": [False], "add_cross_attention": [False],
    },
    modules={
        "embedding": ["transformer.wte"],
        "positions": ["transformer.wpe"],
        "attention_norm": ["transformer.h.*.ln_1"],
        "attention.qkv": ["transformer.h.*.attn.c_attn"],
        "attention.out": ["transformer.h.*.attn.c_proj"],
        "mlp_norm": ["transformer.h.*.ln_2"],
        "mlp.up": ["transformer.h.*.mlp.c_fc"],
        "mlp.out": ["transformer.h.*.mlp.c_proj"],
        "norm": ["transformer.ln_f"],
        "head": ["lm_head"],
    },
)  # fmt: skip
LAYOUTS = {layout.name: layout for layout in (GPT2, LLAMA, QWEN3)}
TURNED = re.compile(r"transformer\.h\..*\.(c_attn|c_proj|c_fc)\.weight")
NO_WEIGHTS = re.compile(r"\.attn\.(masked_)?bias$|rotary_emb\.inv_freq$")  # in old files
ROPE = {
    "factor": "rope_factor", "original_max_position_embeddings": "rope_context",
    "low_freq_factor": "rope_low", "high_freq_factor": "rope_high",
}  # fmt: skip
SCALED = {"default": [], "linear": ["factor"], "llama3": list(ROPE)}


def layout_of(c: GPTConfig) -> Layout:
    """Return the layout that can hold a model. Raises UserError, naming all that stands in the way of the nearest."""
    assert c.width and c.heads
    layout = GPT2 if c.positions == "learned" else QWEN3 if c.qk_norm else LLAMA
    fits: dict[str, Any] = layout.fits | (
        {"kv_heads": c.heads, "head_size": c.width // c.heads} if layout is GPT2 else {}
    )
    fits |= {"heads": "a divisor of width"} if layout is LLAMA and c.width % c.heads else {}
    has = vars(c) | {"window": next(filter(None, c.windows()), None)}
    if wrong := [f"model.{key}={has[key]} (it has {value})" for key, value in fits.items() if has[key] != value]:
        raise UserError(
            f"no layout of transformers can hold this model; the nearest, {layout.name}, not for {', '.join(wrong)}"
        )
    return layout


def to_config(layout: Layout, c: GPTConfig, start: int, end: int | list[int], dtype: str) -> dict[str, Any]:
    """Return config.json, in keys that old and new versions of transformers know."""
    tree: dict[str, Any] = {"model_type": layout.name, "architectures": [layout.architecture], "torch_dtype": dtype}
    tree |= {"bos_token_id": start, "eos_token_id": end} | {key: values[0] for key, values in layout.means.items()}
    tree |= {key: getattr(c, field) for field, key, _ in layout.keys}
    if c.rope_scaling and layout is not GPT2:
        tree["rope_scaling"] = {"rope_type": c.rope_scaling} | {
            key: getattr(c, ROPE[key]) for key in SCALED[c.rope_scaling]
        }
    return tree


def from_config(found: dict[str, Any]) -> tuple[Layout, GPTConfig]:
    """Return the layout and the model that a config.json describes. Raises UserError for what is missing or not
    supported."""
    if (layout := LAYOUTS.get(name := str(found.get("model_type")))) is None:
        raise UserError(f"model_type={name} is not supported: {', '.join(LAYOUTS)} are")
    fields = dict(layout.fits)
    if layout is not GPT2:
        found, fields = found | {"rope_theta": rope(found)[0]}, fields | rope(found)[1]
    for key, allowed in ({"quantization_config": [None]} | layout.means).items():
        if (value := found.get(key, allowed[0])) not in allowed:
            raise UserError(f"{key}={value} is not supported: {' or '.join(map(str, allowed))} is")
    for field, key, default in layout.keys:
        if (value := default if found.get(key) is None else found[key]) is ...:
            raise UserError(f"{key} is missing")
        if field == "bias" and fields.get(field, value) != value:
            raise UserError(
                f"{key}={value} does not go with attention_bias={fields[field]}: all biases or none are supported"
            )
        fields[field] = value
    c = build(GPTConfig, fields | {"kv_heads": fields.get("kv_heads") or fields["heads"]})
    assert c.width  # a missing one is refused above
    c = replace(c, ff=c.ff or 4 * c.width).resolved()
    return layout, replace(c, size=c.size_name() or c.size)


def rope(found: dict[str, Any]) -> tuple[Json, dict[str, Any]]:
    """Return rope_theta, and the fields of GPTConfig for a stretched context; from the old spelling or the new."""
    given = found.get("rope_parameters") or found.get("rope_scaling") or {}
    facts = {"rope_type": "default"} | {key: found.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    facts |= {
        "rope_type" if k == "type" else k: v
        for k, v in (given if isinstance(given, dict) else {"type": given}).items()
    }
    kind, theta, partial = (facts.pop(key) for key in ("rope_type", "rope_theta", "partial_rotary_factor"))
    if kind == "llama3":
        facts.setdefault("original_max_position_embeddings", found.get("max_position_embeddings"))
    if partial not in (None, 1) or sorted(facts) != sorted(SCALED.get(str(kind), "?")):
        raise UserError(
            f"rotary positions of type {kind} with {given} are not supported: "
            f"{', '.join(SCALED)} are, with their own keys"
        )
    return theta, {ROPE[key]: value for key, value in facts.items()} | {
        "rope_scaling": None if kind == "default" else kind
    }


def parts(layout: Layout, c: GPTConfig, name: str, rows: int) -> dict[str, int]:
    """Return the tensors of theirs that one of ours holds, and how many of its rows, first to last, each has."""
    assert c.heads and c.kv_heads and c.head_size and c.ff and c.vocab_size
    q, kv = c.heads * c.head_size, c.kv_heads * c.head_size
    counts = {
        "attention.qkv": [q, kv, kv],
        "mlp.gate_up": [c.ff, c.ff],
        "embedding": [c.vocab_size],
        "head": [c.vocab_size],
    }
    number, module, kind = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.*)\.(\w+)", name).groups()  # type: ignore[union-attr]
    theirs, own = layout.modules[module], counts.get(module, [rows])
    own = own if len(own) == len(theirs) else [rows]
    return {f"{their.replace('*', str(number))}.{kind}": count for their, count in zip(theirs, own, strict=True)}


def to_tensors(layout: Layout, c: GPTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return their tensors from ours."""
    theirs = {}
    for name, tensor in weights.items():
        counts = parts(layout, c, name, len(tensor))
        for part, rows in zip(counts, tensor[: sum(counts.values())].split(list(counts.values())), strict=True):
            theirs[part] = (rows.T if TURNED.match(part) else rows).contiguous()
    return theirs


def from_tensors(
    layout: Layout, c: GPTConfig, found: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Return our tensors, fp32 and of the shapes that the model has, from theirs. Raises UserError unless these are
    exactly what it takes."""
    prefix = layout.modules["norm"][0].split(".")[0] + "."  # which base models leave out
    theirs: dict[str, Tensor] = {}
    for name, tensor in found.items():
        if NO_WEIGHTS.search(name):
            continue
        if tensor.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            raise UserError(f"{name} is {tensor.dtype}: quantized weights are not supported")
        name = name if name.startswith((prefix, "lm_head.")) or prefix + name in found else prefix + name
        theirs[name] = tensor.T if TURNED.match(name) and tensor.dim() == 2 else tensor
    head, embedding = (
        theirs.get(f"{layout.modules[module][0]}.weight", torch.empty(0)) for module in ("head", "embedding")
    )
    if c.tied and "lm_head.weight" in theirs and head.dtype == embedding.dtype and torch.equal(head, embedding):
        del theirs["lm_head.weight"]  # a copy
    ours = {name: parts(layout, c, name, shape[0]) for name, shape in shapes.items()}
    wanted = {part: (rows, *shapes[name][1:]) for name in ours for part, rows in ours[name].items()}
    if problems := [
        *(f"{name} is missing" for name in wanted.keys() - theirs.keys()),
        *(f"{name} has no place in this model" for name in theirs.keys() - wanted.keys()),
        *(
            f"{n} is {tuple(theirs[n].shape)}, not {wanted[n]}"
            for n in wanted.keys() & theirs.keys()
            if theirs[n].shape != wanted[n]
        ),
    ]:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"the weights are not what config.json describes: {'; '.join(sorted(problems)[:3])}{more}")
    joined = {name: torch.cat([theirs[part] for part in ours[name]]).float() for name in ours}
    return {n: F.pad(x, [0, 0] * (x.dim() - 1) + [0, shapes[n][0] - len(x)]).contiguous() for n, x in joined.items()}


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of model.safetensors, or of the files that its index names."""
    if (path := folder / "model.safetensors").is_file():
        return read_tensors(path)
    if not (index := folder / "model.safetensors.index.json").is_file():
        old = (
            "; its pytorch_model.bin is not read, as that could run code"
            if list(folder.glob("pytorch_model*.bin"))
            else ""
        )
        raise UserError(
            f"{folder} has no model.safetensors{old}\n  in transformers, model.save_pretrained(FOLDER) writes one"
        )
    files = read_json(index)
    files = files.get("weight_map") if isinstance(files, dict) else None
    if not isinstance(files, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in files.values()
    ):
        raise UserError(f"{index}: weight_map must name a file of this folder for each tensor")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        shard = read_tensors(folder / file)
        if lacking := sorted(name for name in files if files[name] == file and name not in shard):
            raise Damaged(folder / file, f"{lacking[0]} is missing, which {index.name} says it holds")
        tensors |= {name: tensor for name, tensor in shard.items() if files.get(name) == file}
    return tensors


def ends(*sources: dict[str, Any]) -> tuple[int | str, list[int | str]]:
    """Return what begins a prompt and all that ends a text, tokens or ids, by tokenizer_config.json, config.json and
    generation_config.json. The first end is the one that training writes; without a beginning, a text begins with it.
    """

    def words(what: str) -> list[int | str]:
        found: list[int | str] = []
        for value in (source.get(what + kind) for source in sources for kind in ("_token", "_token_id")):
            for one in value if isinstance(value, list) else [value]:
                word = one.get("content") if isinstance(one, dict) else one
                if isinstance(word, (int, str)):
                    found.append(word)
        return list(dict.fromkeys(found))

    if not (last := words("eos")):
        raise UserError("eos_token_id is missing: nothing says which token ends a text")
    return (words("bos") or last)[0], last
