"""Damage files by chance, for tests of what readers make of them."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

COUNT = int(os.environ.get("FP_LIGHTNING_FUZZ", "40"))  # damaged files of each test
ODD_VALUES = (
    None,
    True,
    0,
    -1,
    3,
    1e300,
    float("nan"),
    "",
    "x",
    "../../x",
    "\udcff",
    [],
    [[]],
    {},
    {"a": None},
    [1, "b"],
)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits, cut off, remove or repeat a part, or write extreme numbers into the first or last kilobyte."""
    changed = bytearray(data)
    kind = rng.integers(5)
    if kind == 0:
        for _ in range(rng.integers(1, 30)):
            changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
    elif kind == 1:
        del changed[rng.integers(len(changed)) :]
    elif kind == 2:
        begin = rng.integers(len(changed))
        del changed[begin : begin + rng.integers(1, 2000)]
    elif kind == 3:
        begin = rng.integers(len(changed))
        changed[begin:begin] = changed[begin : begin + rng.integers(1, 2000)]
    else:
        for _ in range(rng.integers(1, 6)):
            place = rng.integers(min(1024, len(changed) - 8))
            place = place if rng.integers(2) else len(changed) - 8 - place
            value = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\x80\x00\x00\x00")[rng.integers(4)]
            changed[place : place + 4] = value
    return bytes(changed)


def misshapen(content: Any, rng: np.random.Generator) -> Any:
    """Replace, remove or rename one value somewhere in nested lists and dictionaries."""
    places: list[tuple[Any, Any]] = []
    content = json.loads(json.dumps(content))
    pending = [content]
    while pending:
        parent = pending.pop()
        for key in list(parent) if isinstance(parent, dict) else range(len(parent)):
            places.append((parent, key))
            if isinstance(parent[key], dict | list):
                pending.append(parent[key])
    if not places or rng.random() < 0.05:
        return ODD_VALUES[rng.integers(len(ODD_VALUES))]
    parent, key = places[rng.integers(len(places))]
    kind = rng.integers(4)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent["other"] = parent.pop(key)
    else:
        parent[key] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
    return content
