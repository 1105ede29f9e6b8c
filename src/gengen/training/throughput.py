"""How fast a run is against what its machine could do."""

import time

import torch

DENSE_BF16 = {  # FLOP/s without sparsity, from the vendors' data sheets
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "V100": 125e12,
    "RTX 5090": 210e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "T4": 65e12,
}


def peak_flops(device: str, precision: str) -> float | None:
    """Peak FLOP/s of one device: from the table for a known GPU, measured on a CPU, None where neither is known."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        dense = next((peak for key, peak in DENSE_BF16.items() if key in name), None)
        return dense if precision == "bf16" else None
    return matmul_flops(torch.bfloat16 if precision == "bf16" else torch.float32)


def matmul_flops(dtype: torch.dtype, n: int = 1024, repeats: int = 5) -> float:
    """The best FLOP/s of a few (n, n) x (n, n) products on the CPU; about 0.1 s."""
    a = torch.ones(n, n, dtype=dtype)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best
