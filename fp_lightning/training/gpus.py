"""GPUs that `plan` knows: their memory, their speed, and what of both a training can use."""

from __future__ import annotations

GIB = 2**30
GPUS = {  # memory in GiB, dense bfloat16 products in TFLOP/s, of the makers' data sheets
    "rtx-3090": (24, 71),
    "rtx-4090": (24, 165),
    "a6000": (48, 155),
    "l40s": (48, 362),
    "a100-40": (40, 312),
    "a100-80": (80, 312),
    "h100": (80, 989),
    "h200": (141, 989),
    "b200": (180, 2250),
}
RESERVED, FRAGMENTED = 1.5, 0.05  # GiB for CUDA, cuDNN and NCCL; share of the rest that the allocator loses


def fits(bytes_: int, memory: float) -> bool:
    """Return whether so many bytes of tensors fit a GPU of `memory` GiB."""
    return bytes_ / GIB <= (memory - RESERVED) * (1 - FRAGMENTED)


def seconds(operations: int, tflops: float, utilisation: float) -> float:
    """Return the time of so many operations at a share `utilisation` of `tflops` TFLOP/s."""
    return operations / (tflops * 1e12 * utilisation)
