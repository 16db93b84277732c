"""The Triton kernels compile for every supported GPU, within its shared memory and registers. No GPU is needed.

`pytest tests/gpu_paths/test_compiled_kernels.py -s` prints the table.
"""

import re
import subprocess

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed with torch here, so there are no kernels")
kernels = pytest.importorskip("fp_lightning.model.matching_triton")
if not torch.version.cuda:
    pytest.skip("this torch is not built for NVIDIA GPUs", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB that a block may use, by compute capability
REGISTERS = 2**16  # of a multiprocessor, for all threads of a block
SPILLED = 64  # bytes per thread; a spill of a few registers outside of the inner loop costs nothing measurable
TENSOR_MEMORY = 512  # columns, on 100
NAMES = ("_rows", "_query_gradient", "_key_gradient")
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
}
CASES = [(64, torch.bfloat16), (64, torch.float16), (64, torch.float32)]  # 64 is SVD's head width
WIDEST = [(256, torch.bfloat16), (256, torch.float32)]  # on the card with least memory


class Recorded:
    """Stands for a kernel, and keeps what it would be launched with."""

    def __init__(self, kernel, launches) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *args, **options: self.launches.append((self.kernel, args, options))


def launches(width, dtype, monkeypatch):
    """What the three kernels are launched with, for queries and keys of this head width and type."""
    made = []
    for name in NAMES:
        monkeypatch.setattr(kernels, name, Recorded(getattr(kernels, name), made))
    query, key = (torch.zeros(1, 5, 64, width, dtype=dtype) for _ in range(2))  # 64 tokens: a multiple of 16, as SVD's
    index = torch.zeros(1, 64, dtype=torch.long)
    rows = kernels.rows(query, key, index, True)
    kernels.rows_backward(rows[0], query, key, index, *rows[1:], True)
    return made


def compiled(kernel, args, options, capability):
    """Compile for a GPU as Triton does at the first launch with such arguments."""
    signature, constants, aligned = {}, {}, {}
    for number, (parameter, value) in enumerate(zip(kernel.params, args, strict=True)):
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        runtime = not parameter.is_constexpr
        if runtime and (isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)):
            aligned[(number,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def registers_and_spills(binary, folder):
    """Registers and bytes of local memory of each thread, which these kernels only have for spilled registers."""
    file = folder / "kernel.cubin"
    file.write_bytes(binary.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    said = subprocess.run([tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said)
    return int(found[1]), int(found[2]) + int(found[3])


@pytest.mark.parametrize("capability", SHARED)
def test_kernels_fit_the_gpu(capability, tmp_path, monkeypatch):
    for width, dtype in CASES + (WIDEST if capability == 86 else []):
        for kernel, args, options in launches(width, dtype, monkeypatch):
            binary = compiled(kernel, args, options, capability)
            registers, spilled = registers_and_spills(binary, tmp_path)
            shared, threads = binary.metadata.shared / 1024, 32 * binary.metadata.num_warps
            name = f"sm_{capability} {kernel.__name__:<15} {POINTERS[dtype][1:]} width {width:<3}"
            print(f"{name} shared {shared:5.1f} KiB, {registers:3} registers, {spilled:2} bytes spilled")
            assert shared <= SHARED[capability], name
            assert registers * threads <= REGISTERS, name
            assert spilled <= SPILLED, name
            assert binary.metadata.tmem_size <= TENSOR_MEMORY, name
        monkeypatch.undo()


def test_larger_blocks_would_be_caught(tmp_path, monkeypatch):
    """Blocks of 64 × 64 in float32 spill, and at width 256 they exceed the memory of a consumer card."""
    monkeypatch.setattr(kernels, "block_side", lambda width, dtype: 64)
    made = launches(64, torch.float32, monkeypatch)
    assert registers_and_spills(compiled(*made[0], 86), tmp_path)[1] > SPILLED
    monkeypatch.undo()
    monkeypatch.setattr(kernels, "block_side", lambda width, dtype: 64)
    made = launches(256, torch.bfloat16, monkeypatch)
    assert compiled(*made[1], 86).metadata.shared > SHARED[86] * 1024
