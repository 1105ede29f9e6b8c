"""A language model as it decodes: prompts in one pass, then a token a row at a time."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from gengen.models.gpt import GPT
from gengen.models.kernels.linear import quantized
from gengen.models.kv_cache import Cache

BLOCK = 64  # slots that a compiled step grows by


class Engine:
    """precision: fp32 takes the model as it is; bf16 and int8 (weights alone) copies of it. compile: the decoding step
    is compiled, on CUDA captured as a graph (not yet measured there); it then keeps its shapes, so rows that have
    ended stay in the batch.
    """

    def __init__(self, model: GPT, precision: str = "fp32", compile: bool = False):
        self.precision, self.compiled = precision, compile
        self.model = {
            "fp32": lambda: model,
            "bf16": lambda: copy.deepcopy(model).bfloat16(),
            "int8": lambda: quantized(model),
        }[precision]()
        self.device, self._step = model.embedding.weight.device, self._logits
        if compile:
            on_cuda = self.device.type == "cuda"
            options: dict[str, str | int | bool | Callable[..., object]] = (
                {"triton.cudagraphs": True} if on_cuda else {}
            )
            self._step = torch.compile(self._logits, dynamic=True, options=options)

    def prefill(self, prompts: Sequence[Sequence[int]], slots: int) -> Cache:
        """Read prompts in one pass, padded on the right. Returns their cache, with room for `slots` tokens a row."""
        cache = self.model.empty_cache(len(prompts), self.rounded(slots))
        longest = max(len(prompt) for prompt in prompts)
        if longest:
            padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
            self.model.features(torch.tensor(padded, device=self.device), cache.first(longest))
            cache.lengths += torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        return cache

    def rounded(self, slots: int) -> int:
        """Return how many slots a step takes: those of a compiled one come in blocks."""
        return -(-slots // BLOCK) * BLOCK if self.compiled else slots

    def step(self, newest: Tensor, cache: Cache, used: int) -> Tensor:
        """Return logits (B, V) fp32 of the token after the newest (B, 1), which join the cache.

        used: slots of its longest row with them.
        """
        view = cache.first(self.rounded(used))
        logits = self._step(newest, view.keys, view.values, view.lengths)
        cache.lengths += 1
        return logits

    def _logits(self, newest: Tensor, keys: list[Tensor], values: list[Tensor], lengths: Tensor) -> Tensor:
        return self.model(newest, Cache(keys, values, lengths))[:, -1].float()

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Inside, the model is in evaluation mode and makes no gradients; afterwards all is as it was."""
        training = self.model.training
        if training:
            self.model.eval()
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            if training:
                self.model.train()
