"""Why models/kernels/ has ways of their own on a CPU, beside torch's: milliseconds and ratios.

    python benchmarks/kernels.py [rounds=9] [threads=2] [layers=6]

Training attention: 16 texts of 256 tokens, 6 heads of 64, bf16, forward and backward. Decoding attention: one query
a row over 256 slots of each layer. Dropout: of a residual branch, 8 texts of 256 tokens, 256 wide, compiled with what
stands around it, forward and backward; Muon's iteration: a layer's maps of a model of that width, as it was written
before and as it is. Decoding maps: the matrices of a model for one row (12 M: 25 of them), each read
from memory once a round.
"""

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor
from turns import arguments

from gengen.models.kernels.attention import attend_bf16_cpu, attend_decode_cpu
from gengen.models.kernels.dropout import dropout
from gengen.models.kernels.linear import product_sums
from gengen.training.optim.muon import COEFFICIENTS, orthogonalized

BLOCK, HEAD = [(1152, 384), (384, 384), (2048, 384), (384, 1024)], (4096, 384)


def compare(title: str, ways: dict[str, Callable[[], object]], rounds: int) -> None:
    """Each way in turn, after one call that is not timed; the ratio is to the first."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                spent[name].append(1000 * (time.perf_counter() - start))
    print(title)
    first = median(next(iter(spent.values())))
    for name, times in spent.items():
        print(f"  {name:22}{median(times):8.2f} ms   {first / median(times):.2f}x")


def training(rounds: int) -> None:
    q, k, v = (torch.randn(16, 256, 6, 64).bfloat16().transpose(1, 2).requires_grad_() for _ in range(3))

    def run(attend: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: attend(q, k, v).backward(torch.ones_like(q))

    fused = run(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    compare(
        "attention in training, a layer",
        {"torch's fused": fused, "attend_bf16_cpu": run(lambda q, k, v: attend_bf16_cpu(q, k, v, None))},
        rounds,
    )


def dropout_in_training(rounds: int) -> None:
    x, branch = (torch.randn(8, 256, 256, requires_grad=True) for _ in range(2))

    def run(drop: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        compiled = torch.compile(lambda x, branch: x + drop(2 * branch))
        return lambda: compiled(x, branch).backward(torch.ones_like(x))

    ways = {
        "torch's": run(lambda x: F.dropout(x, 0.1)),
        "ours": run(lambda x: dropout(x, 0.1)),
        "none": run(lambda x: x),
    }
    compare("dropout of a branch, compiled", ways, rounds)


@torch.no_grad()
def iteration(rounds: int) -> None:
    def written_out(x: Tensor, steps: int = 5) -> Tensor:
        a, b, c = COEFFICIENTS
        x = x.mT if (tall := x.shape[-2] > x.shape[-1]) else x
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        for _ in range(steps):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.mT if tall else x

    for shape in ((6, 256, 256), (12, 128, 256), (12, 683, 256)):
        maps = torch.randn(shape)
        ways = {
            "sums by themselves": lambda x=maps: written_out(x),
            "sums in products": lambda x=maps: orthogonalized(x, dtype=torch.float32),
        }
        compare(f"Muon's iteration, {shape}, fp32", ways, rounds)


@torch.no_grad()
def attention(rounds: int, count: int, rows: int, dtype: torch.dtype) -> None:
    layers = [torch.randn(2, rows, 6, 256, 64).to(dtype) for _ in range(count)]
    q, visible = torch.randn(rows, 6, 1, 64).to(dtype), torch.ones(rows, 1, 1, 256, dtype=torch.bool)
    compiled = torch.compile(attend_decode_cpu, dynamic=False)
    ways: dict[str, Callable[[], object]] = {
        "torch's fused": lambda: [F.scaled_dot_product_attention(q, k, v, visible) for k, v in layers],
        "attend_decode_cpu": lambda: [attend_decode_cpu(q, k, v, visible) for k, v in layers],
        "attend_decode_cpu, compiled": lambda: [compiled(q, k, v, visible) for k, v in layers],
    }
    compare(f"attention in decoding, {rows} rows, {dtype}, {count} layers", ways, rounds)


@torch.no_grad()
def maps(rounds: int, layers: int) -> None:
    shapes = BLOCK * layers + [HEAD]
    sums = torch.compile(
        lambda xs, weights: [product_sums(x, weight) for x, weight in zip(xs, weights, strict=True)], dynamic=False
    )
    for dtype in (torch.float32, torch.bfloat16):
        weights = [torch.randn(shape).to(dtype) for shape in shapes]
        xs = [torch.randn(1, shape[1]).to(dtype) for shape in shapes]
        ways: dict[str, Callable[[], object]] = {
            "matrix products": lambda xs=xs, weights=weights: [
                F.linear(x, w) for x, w in zip(xs, weights, strict=True)
            ],  # type: ignore[misc]
            "product_sums, compiled": lambda xs=xs, weights=weights: sums(xs, weights),  # type: ignore[misc]
        }
        compare(f"maps in decoding, one row, {dtype}", ways, rounds)
    small = [torch.randint(-127, 128, shape, dtype=torch.int8) for shape in shapes]
    scales = [torch.rand(shape[0]).bfloat16() for shape in shapes]
    ways = {
        "packed kernel": lambda: [
            torch._weight_int8pack_mm(x, w, s) for x, w, s in zip(xs, small, scales, strict=True)
        ],
        "product_sums, compiled": lambda: sums(xs, small),
    }
    compare("maps in decoding, one row, int8", ways, rounds)


def main(rounds: int, threads: int, layers: int) -> None:
    torch.set_num_threads(threads)
    torch._dynamo.config.recompile_limit = 64  # type: ignore[attr-defined]
    training(rounds)
    dropout_in_training(rounds)
    iteration(rounds)
    for rows in (1, 32):
        for dtype in (torch.float32, torch.bfloat16):
            attention(rounds, layers, rows, dtype)
    maps(rounds, layers)


if __name__ == "__main__":
    main(**arguments(sys.argv[1:], rounds=9, threads=2, layers=6)[0])
