"""A GPU that is not there: tensors on it have a device, a shape and a type, but no contents."""

from __future__ import annotations

import traceback
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

ROOT = Path(__file__).parents[2]
GPU = torch.device("cuda", 0)
READING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal")
INDEXING = ("index", "index_put", "index_put_")


class HostWaits(Exception):
    """The host would wait for the GPU. The message names the operation and the line that calls it."""


class PretendedGPU(FakeTensorMode):
    """Operations on the CPU run as usual. Operations on the GPU give tensors without contents.

    As on a real GPU, an operation that mixes both devices raises RuntimeError, unless one is a scalar of the CPU.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.reads: int | None = None  # what every number on the GPU is once the host reads it; None forbids to read
        self._within = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    @contextmanager
    def reading(self, number: int = 1):
        """Allow the host to read within the block."""
        self.reads = number
        try:
            yield
        finally:
            self.reads = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        waits_for = _waits_for(name, args, kwargs)
        if waits_for and self.reads is None:
            raise HostWaits(f"the host waits for the GPU: {waits_for} in {_place()}")
        if waits_for and name == "_local_scalar_dense":
            return torch.tensor(self.reads, dtype=args[0].dtype).item()
        if self._within:  # an operation that another one consists of
            return super().__torch_dispatch__(func, types, args, kwargs)
        if not any(_on_gpu(leaf) for leaf in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if waits_for:
            if name == "copy_" and not _on_gpu(args[0]):
                return args[0].fill_(self.reads)
            if name == "nonzero":
                return self._positions(args[0]).T
            if name in INDEXING:
                args = (args[0], self._without_masks(args[1]), *args[2:])
        self._within = True
        try:
            args, kwargs = tree_map(self._without_contents, (args, kwargs))
            result = super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self._within = False
        return tree_map(self._on_host, result)

    def _without_contents(self, x):
        """Return a tensor of the CPU as one without contents, for an operation on the GPU; anything else as it is."""
        real = isinstance(x, torch.Tensor) and not isinstance(x, FakeTensor)
        return self.from_tensor(x, static_shapes=True) if real else x

    def _positions(self, mask):
        """The indices of all entries of a mask, [dimensions, entries]: each of them reads as true."""
        with self:
            return torch.zeros(mask.ndim, mask.numel() if self.reads else 0, dtype=torch.long, device=mask.device)

    def _without_masks(self, indices):
        """Indices of bools as indices of numbers."""
        found = []
        for index in indices:
            found += list(self._positions(index)) if index is not None and index.dtype == torch.bool else [index]
        return found

    def _on_host(self, x):
        """Return a tensor that was copied to the CPU with contents; anything else as it is."""
        if isinstance(x, FakeTensor) and x.device.type == "cpu":
            return torch.full(x.shape, self.reads or 0, dtype=x.dtype)
        return x


def _on_gpu(x) -> bool:
    device = x if isinstance(x, torch.device) else getattr(x, "device", None)
    return isinstance(device, torch.device) and device.type == "cuda"


def _waits_for(name, args, kwargs) -> str | None:
    """What the host would wait for in this operation, or None."""
    first = next((x for x in args if isinstance(x, torch.Tensor)), None)
    if name in READING and _on_gpu(first):
        return {"_local_scalar_dense": "item()"}.get(name, f"{name}()")
    if name in INDEXING and _on_gpu(first):
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                return "an index of bools"
            if index is not None and not _on_gpu(index) and index.ndim:
                return "an index on the CPU"
    if name == "repeat_interleave" and _on_gpu(args[-1]) and kwargs.get("output_size") is None:
        return "repeat_interleave() by a tensor without output_size"
    if name == "_to_copy" and (device := kwargs.get("device")) is not None and _on_gpu(first) != _on_gpu(device):
        if _on_gpu(first):
            return "a copy to the CPU"
        return None if kwargs.get("non_blocking") else "a copy from the CPU that is not asynchronous"
    if name == "copy_" and _on_gpu(args[0]) != _on_gpu(args[1]) and args[1].ndim:
        asynchronous = _on_gpu(args[0]) and len(args) > 2 and args[2]
        return None if asynchronous else "a copy between CPU and GPU"
    return None


def _place() -> str:
    """The innermost line of this project that is being run, as path:line, and its text."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and ".venv" not in path.parts and path != Path(__file__):
            return f"{path.relative_to(ROOT)}:{frame.lineno}: {frame.line}"
    return "a library"


def convert(self: nn.Module, function, recurse: bool = True) -> nn.Module:
    """Stand in for `nn.Module._apply`, which cannot move weights to a device that is not there."""
    for child in self.children():
        child._apply(function)
    with torch.no_grad():
        for name, weight in self._parameters.items():
            if weight is not None:
                self._parameters[name] = nn.Parameter(function(weight), weight.requires_grad)
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = function(buffer)
    return self
