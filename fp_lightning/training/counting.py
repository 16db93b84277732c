"""Operations and bytes, counted without changing what is computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, UntypedStorage
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def operations(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    """Return the operations of a product that was called, by torch's formulas; 0 for what is not a product."""
    formula = flop_registry.get(func._overloadpacket)
    return 0 if formula is None else formula(*args, **kwargs, out_val=result)


class CountedOperations(TorchDispatchMode):
    """Counts the operations of the products within it, in `total`, by torch's formulas.

    Unlike under torch's `FlopCounterMode` every operation is the one that would be called without counting, so results
    are the same to the last bit: that mode takes SiLU's gradient apart, for one, which rounds otherwise.
    """

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.total += operations(func, args, kwargs or {}, result)
        return result


class LiveBytes:
    """Counts the bytes of tensors while they live, and the most of them at a time. A storage counts once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._known: dict[int, _Storage] = {}

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        self._known[key] = known = _Storage(storage, self._gone)
        known.key, known.count = key, storage.nbytes()
        self.now += known.count
        self.most = max(self.most, self.now)

    def _gone(self, known: _Storage) -> None:
        del self._known[known.key]
        self.now -= known.count


class _Storage(weakref.ref[UntypedStorage]):
    """A storage that may be gone, and what to forget then. `weakref.finalize` would take several times as long."""

    __slots__ = ("count", "key")
    key: int
    count: int

    def __new__(cls, storage: UntypedStorage, gone: Callable[[_Storage], None]) -> _Storage:
        return super().__new__(cls, storage, gone)
