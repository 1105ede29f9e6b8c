"""Linear maps for the two ways a transformer runs: many rows in training, one or a few in decoding, where reading W
takes all the time.
"""

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

DECODE_ROWS = 4  # up to which a CPU is faster with sums of products than with matrix products


def is_decode(x: Tensor) -> bool:
    """Return whether rows x (..., in) are so few, and without gradients, that a CPU takes the kernels of decoding."""
    return x.device.type == "cpu" and x.numel() <= DECODE_ROWS * x.shape[-1] and not torch.is_grad_enabled()


def product_sums(x: Tensor, weight: Tensor) -> Tensor:
    """Return x W^T in fp32; to be compiled, as one pass over W, faster than the product (benchmarks/kernels.py)."""
    return (x[..., None, :].float() * weight).sum(dim=-1)


class Linear(nn.Linear):
    """x W^T + b."""

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        if torch.compiler.is_compiling() and is_decode(x) and self.bias is None:
            return product_sums(x, self.weight).to(x.dtype)
        return F.linear(x, self.weight, self.bias)


class Int8Linear(nn.Module):
    """x W^T + b with each row of W rounded to scale * (-127 .. 127). Scales are bf16; the rows are divided by
    their rounded values."""

    weight: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        rows = linear.weight.detach().float()
        scales = (rows.abs().amax(dim=1) / 127).clamp(min=1e-12).bfloat16()
        whole = (rows / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        self.register_buffer("weight", whole)  # (out, in)
        self.register_buffer("scales", scales)  # (out,)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().bfloat16())

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out), bf16
        flat = x.bfloat16().flatten(0, -2)
        if is_decode(x):
            y = torch._weight_int8pack_mm(flat.contiguous(), self.weight, self.scales)
        else:
            y = F.linear(flat, self.weight.to(flat.dtype)) * self.scales
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)

    def dequantized(self) -> Linear:
        """Return the same map in fp32."""
        linear = Linear(self.weight.shape[1], self.weight.shape[0], bias=self.bias is not None)
        linear.weight = nn.Parameter(self.weight.float() * self.scales.float()[:, None])
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().float())
        return linear


def quantize_maps(model: nn.Module) -> None:
    """Make all linear maps inside a module int8, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))


def quantized(model: M) -> M:
    """Return a copy in bf16 whose linear maps, the output head among them, are int8; embeddings and norms are not."""
    model = copy.deepcopy(model)
    quantize_maps(model)
    return model.bfloat16()
