"""Group items, and spread a choice evenly over groups."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

T = TypeVar("T")


def grouped(items: Sequence[T], key: Callable[[T], Hashable]) -> dict[Any, list[T]]:
    """Group items by key, in order of first occurrence."""
    groups: dict[Any, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def spread(items: Sequence[T], *keys: Callable[[T], Hashable]) -> list[T]:
    """Reorder items so that any first n are spread evenly over groups.

    The groups of the first key take turns; within each group, those of the second key take turns, and so on.
    """
    if not keys:
        return list(items)
    turns = zip_longest(*(spread(group, *keys[1:]) for group in grouped(items, keys[0]).values()))
    return [item for turn in turns for item in turn if item is not None]
