"""A small language model that several files sample from."""

import pytest
import torch

from gengen.config.model import GPTConfig
from gengen.data.text.tokenizer import TextTokenizer
from gengen.generation.text.generator import TextGenerator
from gengen.models.gpt import GPT


@pytest.fixture(scope="session")
def model() -> GPT:
    """Its next token depends much on all before it: random weights, none of them zero. Vocabulary of bytes, context
    32.
    """
    size = {
        "size": "nano",
        "layers": 2,
        "width": 32,
        "heads": 4,
        "kv_heads": 2,
        "ff": 48,
        "vocab_size": 257,
        "context": 32,
    }
    model, draw = GPT(GPTConfig(**size)).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(
                torch.randn(p.shape, generator=draw) * (0.2 if p.dim() < 2 else 1.5 * p.shape[-1] ** -0.5)
                + (p.dim() < 2)
            )
    return model


@pytest.fixture(scope="session")
def generator(model: GPT) -> TextGenerator:
    return TextGenerator(model, TextTokenizer.byte())
