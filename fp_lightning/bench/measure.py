"""Two ways to do one thing, timed in turn, so that a busy machine disturbs both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Result:
    """One comparison. What was not measured is None.

    Ratios are reference / ours: above 1, ours is faster.
    """

    name: str
    ours: float | None = None  # seconds, median
    reference: float | None = None  # seconds, median
    ratio: float | None = None  # median over rounds
    ratio_low: float | None = None  # the least of any round
    ratio_high: float | None = None
    error: float | None = None  # how far the result is from the reference's or the truth; its unit is in settings
    flops_ours: int | None = None
    flops_reference: int | None = None
    peak_bytes_ours: int | None = None
    peak_bytes_reference: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def compare(
    name: str, ours: Callable[[], object], reference: Callable[[], object], rounds: int, **settings: Any
) -> Result:
    """Runs both `rounds` times in turn, the order changing from round to round."""
    times: dict[str, list[float]] = {"ours": [], "reference": []}
    sides = [("ours", ours), ("reference", reference)]
    for number in range(rounds):
        for side, work in sides if number % 2 else sides[::-1]:
            begin = time.perf_counter()
            work()
            times[side].append(time.perf_counter() - begin)
    ratios = [r / o for o, r in zip(times["ours"], times["reference"], strict=True)]
    return Result(
        name,
        ours=statistics.median(times["ours"]),
        reference=statistics.median(times["reference"]),
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        settings={"rounds": rounds, **settings},
    )
