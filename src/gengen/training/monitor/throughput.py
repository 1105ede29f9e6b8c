"""How fast a run is against what its machine could do."""

import time

import torch

DENSE_BF16 = {  # TFLOP/s without sparsity, from the vendors' data sheets
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125, "V100": 125, "T4": 65,
    "RTX 5090": 210, "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip


def peak_flops(device: str, precision: str) -> float | None:
    """Peak FLOP/s of one device: from the table for a known GPU, measured on a CPU, None where neither is known."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        return next((1e12 * peak for key, peak in DENSE_BF16.items() if key in name and precision == "bf16"), None)
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
