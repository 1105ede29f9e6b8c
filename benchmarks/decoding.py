"""Decoding beside transformers' `generate`, with the same weights: tokens a second for one sample and for 32 at once.

    python benchmarks/decoding.py [rounds=3] [tokens=256] [threads=2] [layers=6] [only=...]

A Llama of 12 M parameters with random weights, 16 tokens of prompt, sampled at temperature 1 from the 50 likeliest;
nothing ends a text early. Ours is the same network: before anything is timed the logits are compared. only: names of
contestants, or parts of them, parted by commas.
"""

import sys
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from statistics import median

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging
from turns import arguments, ratio, spread, take_turns

from gengen.config.model import GPTConfig
from gengen.data.text.tokenizer import TextTokenizer
from gengen.generation.text.generator import TextGenerator
from gengen.models.gpt import GPT

PROMPT, VOCAB, CONTEXT, TOP_K = 16, 4096, 512, 50
EPS, THETA = 1e-6, 10_000.0

Draw = Callable[[int, int], int]
"""(samples of the one prompt, tokens of each) -> tokens drawn in all."""


class Numbers(TextTokenizer):
    """A prompt is a list of ids in writing, a token is spelled as one letter. The last one ends a text; our generator,
    whose tokenizer stops short of it, cannot draw it."""

    def __init__(self, vocab: int) -> None:
        super().__init__("numbers", [b"x"] * (vocab - 1), None, start=vocab - 1, eot=vocab - 1)

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]


def llama(
    layers: int, width: int = 384, heads: int = 6, ff: int = 1024, vocab: int = VOCAB, context: int = CONTEXT
) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=ff, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, max_position_embeddings=context, rms_norm_eps=EPS, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": THETA}, bos_token_id=None, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def ours(net: LlamaForCausalLM) -> GPT:
    """The same network in our own modules."""
    c = net.config
    config = GPTConfig(
        layers=c.num_hidden_layers, width=c.hidden_size, heads=c.num_attention_heads, kv_heads=c.num_attention_heads,
        ff=c.intermediate_size, vocab_size=c.vocab_size, context=c.max_position_embeddings, tied=True, qk_norm=False,
        norm_eps=EPS, rope_theta=THETA,
    )  # fmt: skip
    theirs: dict[str, Tensor] = net.state_dict()
    renamed = {"embedding.weight": theirs["model.embed_tokens.weight"], "norm.weight": theirs["model.norm.weight"]}
    renamed["head.weight"] = renamed["embedding.weight"]
    for layer in range(c.num_hidden_layers):
        old, new = f"model.layers.{layer}.", f"blocks.{layer}."
        renamed |= {
            new + "attention_norm.weight": theirs[old + "input_layernorm.weight"],
            new + "attention.qkv.weight": torch.cat([theirs[f"{old}self_attn.{part}_proj.weight"] for part in "qkv"]),
            new + "attention.out.weight": theirs[old + "self_attn.o_proj.weight"],
            new + "mlp_norm.weight": theirs[old + "post_attention_layernorm.weight"],
            new + "mlp.gate_up.weight": torch.cat([theirs[f"{old}mlp.{part}_proj.weight"] for part in ("gate", "up")]),
            new + "mlp.out.weight": theirs[old + "mlp.down_proj.weight"],
        }
    model = GPT(config).eval()
    model.load_state_dict(renamed)
    return model


@torch.inference_mode()
def check_same(net: LlamaForCausalLM, model: GPT) -> None:
    tokens = torch.randint(model.vocab_size, (2, 64), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(tokens), net(tokens).logits, atol=1e-4, rtol=0)


def hf_drawer(net: LlamaForCausalLM, dtype: torch.dtype, cache: str = "dynamic") -> Draw:
    """cache: of `generate`; "static" is compiled on CUDA."""
    net = deepcopy(net).to(dtype)
    prompt = torch.tensor([[net.config.vocab_size - 1, *range(1, PROMPT)]], device=net.device)

    def run(samples: int, tokens: int) -> int:
        prompts = prompt.expand(samples, -1)
        drawn = net.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=True, temperature=1.0,
            top_k=TOP_K, top_p=1.0, max_new_tokens=tokens, eos_token_id=None, pad_token_id=0,
            cache_implementation=cache,
        )  # fmt: skip
        return (drawn.shape[1] - PROMPT) * drawn.shape[0]

    return run


def our_drawer(model: GPT, dtype: str, compiled: bool, batch_size: int = 64) -> Draw:
    numbers = Numbers(model.vocab_size)
    generator = TextGenerator(deepcopy(model), numbers, precision=dtype, compile=compiled, batch_size=batch_size)
    prompt = " ".join(map(str, range(1, PROMPT)))  # behind an end of text

    def run(samples: int, tokens: int) -> int:
        drawn = generator.generate(prompt, n=samples, max_tokens=tokens, temperature=1.0, top_k=TOP_K)
        return sum(len(sample.tokens) for sample in drawn)

    return run


def speed(draw: Draw, samples: int, tokens: int) -> float:
    start = time.perf_counter()
    drawn = draw(samples, tokens)
    spent = time.perf_counter() - start
    assert drawn == samples * tokens, f"{drawn} tokens, not {samples} x {tokens}"
    return drawn / spent


def main(rounds: int, tokens: int, threads: int, layers: int, only: str) -> None:
    torch.set_num_threads(threads)
    # several compiled models share one class, and with it one count
    torch._dynamo.config.recompile_limit = 64  # type: ignore[attr-defined]
    logging.set_verbosity_error()
    net = llama(layers)
    model = ours(net)
    check_same(net, model)
    makers: dict[str, Callable[[], Draw]] = {
        "HF fp32": lambda: hf_drawer(net, torch.float32),
        "HF bf16": lambda: hf_drawer(net, torch.bfloat16),
        "gengen fp32": lambda: our_drawer(model, "fp32", False),
        "gengen bf16": lambda: our_drawer(model, "bf16", False),
        "gengen compiled fp32": lambda: our_drawer(model, "fp32", True),
        "gengen compiled bf16": lambda: our_drawer(model, "bf16", True),
        "gengen int8": lambda: our_drawer(model, "int8", False),
        "gengen compiled int8": lambda: our_drawer(model, "int8", True),
    }
    drawers = {name: make() for name, make in makers.items() if any(part in name for part in only.split(","))}
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{millions:.2f} M parameters, {threads} threads, torch {torch.__version__}; the logits agree within 1e-4")
    for samples in (1, 32):
        first = {name: samples * tokens / speed(draw, samples, tokens) for name, draw in drawers.items()}
        figures = take_turns({name: partial(speed, draw, samples, tokens) for name, draw in drawers.items()}, rounds)
        print(f"\n{samples} at once, {tokens} new tokens each: tokens/s (median; least and most of {rounds} rounds)")
        for name, speeds in figures.items():
            print(f"  {name:22}{spread(speeds)}   first call {first[name] - samples * tokens / median(speeds):+.1f} s")
        compared = [
            (a, b)
            for dtype in ("fp32", "bf16")
            for b in (f"HF {dtype}",)
            for a in (f"gengen {dtype}", f"gengen compiled {dtype}")
        ]
        if samples == 1:
            compared += [
                (f"gengen {way}int8", f"gengen {way}{dtype}")
                for way in ("", "compiled ")
                for dtype in ("fp32", "bf16")
            ]
        for ahead, behind in compared:
            if ahead in figures and behind in figures:
                print(ratio(figures, ahead, behind))


if __name__ == "__main__":
    asked, unknown = arguments(sys.argv[1:], rounds=3, tokens=256, threads=2, layers=6, only="")
    if unknown:
        raise SystemExit(f"unknown: {' '.join(unknown)}")
    main(**asked)
