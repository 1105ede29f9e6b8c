"""An adapter in the layout of PEFT, both ways: adapter_config.json and adapter_model.safetensors.

Each A and B is a tensor of its own on both sides, so values are the same bit for bit. What one side cannot say is
refused, by name.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gengen.checkpoints.convert.huggingface import Layout
from gengen.config.model import GPTConfig, LoRAConfig
from gengen.config.model.lora import linear_maps
from gengen.config.schema import build
from gengen.errors import UserError

Tree = dict[str, Any]

MATRICES = {"A": "lora_A.weight", "B": "lora_B.weight"}
NEUTRAL: Tree = {"bias": "none", "peft_type": "LORA"}
"""Keys of adapter_config.json with the only value that is supported."""
UNSUPPORTED = (
    "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication", "trainable_token_indices",
    "lora_bias", "use_qalora", "target_parameters", "use_bdlora", "arrow_config", "kasa_config", "velora_config",
    "monteclora_config", "alora_invocation_tokens", "fan_in_fan_out", "megatron_config",
)  # fmt: skip
"""Keys that must be off: each makes the update another one than scale B A."""
PLAIN_STARTS = (None, True, False, "gaussian")  # values of init_lora_weights that leave the base as it was


def their_names(layout: Layout, c: GPTConfig) -> dict[str, tuple[str, str]]:
    """Return what PEFT calls the A and B of each map of each block -> (the map, our name). Raises UserError."""
    names = {}
    for module, maps in linear_maps(c.mlp).items():
        theirs = layout.modules[module]
        if layout.name == "gpt2" or len(theirs) != len(maps):
            raise UserError(
                f"{layout.name} stacks {', '.join(maps)} in one module that PEFT adapts as one; to=hf writes merged "
                "weights"
            )
        for one, their in zip(maps, theirs, strict=True):
            for block in range(c.layers or 0):
                for matrix, word in MATRICES.items():
                    name = f"base_model.model.{their.replace('*', str(block))}.{word}"
                    ours = f"blocks.{block}.{module}.adapters.{one}.{matrix}"
                    names[name] = (f"{module.split('.')[0]}.{one}", ours)
    return names


def to_peft(layout: Layout, c: GPTConfig, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tree]:
    """Return the tensors and adapter_config.json of an adapter. Raises UserError for what PEFT has no place for."""
    names = {ours: theirs for theirs, (_, ours) in their_names(layout, c).items()}
    if more := sorted(weights.keys() - names.keys()):
        raise UserError(
            f"the adapter has {more[0]}, trained as a whole for tokens that are new to its base; to=hf writes merged "
            "weights"
        )
    tensors = {names[ours]: tensor for ours, tensor in weights.items()}
    alpha = c.lora.rank if c.lora.alpha is None else c.lora.alpha
    assert alpha
    return tensors, NEUTRAL | {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": c.lora.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "use_rslora": c.lora.rank_stabilized,
        "lora_dropout": c.lora.dropout,
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
    }


def from_peft(layout: Layout, c: GPTConfig, config: Tree, found: Mapping[str, Tensor]) -> tuple[LoRAConfig, Tree]:
    """Return the config and the weights, in fp32, of an adapter of a model. Raises UserError for what is missing or
    not supported."""
    for key, only in NEUTRAL.items():
        if config.get(key, only) != only:
            raise UserError(f"{key}={config[key]} is not supported: {only} is")
    wrong = [key for key in UNSUPPORTED if config.get(key)]
    wrong += ["init_lora_weights"] if config.get("init_lora_weights") not in PLAIN_STARTS else []
    if wrong:
        raise UserError(f"{wrong[0]}={config[wrong[0]]} is not supported: plain LoRA is")
    names = their_names(layout, c)
    if strange := sorted(found.keys() - names.keys()):
        raise UserError(f"{strange[0]} has no place in an adapter of this base")
    adapted = {names[name][0] for name in found}
    if missing := sorted(name for name, (one, _) in names.items() if one in adapted and name not in found):
        raise UserError(f"{missing[0]} is missing: a map is adapted in every block or in none")
    tree = {
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "rank_stabilized": config.get("use_rslora", False),
        "dropout": config.get("lora_dropout", 0.0),
        "targets": ",".join(sorted(adapted)),
    }
    lora: LoRAConfig = build(LoRAConfig, tree, "model.lora.")
    if lora.rank is None:
        raise UserError("r is missing")
    lora.adapted(c.mlp)
    return lora, {names[name][1]: tensor.float() for name, tensor in found.items()}
