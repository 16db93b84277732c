"""Operations and bytes, counted without changing what is computed."""

from __future__ import annotations

import weakref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class CountedOperations(TorchDispatchMode):
    """Counts the operations of the products within it, in `total`, by torch's formulas.

    Unlike under torch's `FlopCounterMode` every operation is the one that would be called without counting, so results
    are the same to the last bit: that mode takes SiLU's gradient apart, for one, which rounds otherwise.
    """

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make within it, and the most of them at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self._known: dict[int, weakref.ref] = {}

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        known = self._known.get(key)
        if known is not None and known() is storage:
            return
        self._known[key] = weakref.ref(storage)
        weakref.finalize(storage, self._gone, key, storage.nbytes())
        self.live += storage.nbytes()
        self.most = max(self.most, self.live)

    def _gone(self, key: int, count: int) -> None:
        self._known.pop(key, None)
        self.live -= count

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result
