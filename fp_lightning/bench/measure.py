"""Time two implementations alternately, so that other load on the machine affects both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class Result:
    """The result of one comparison; fields that were not measured are None.

    Ratios are reference / ours: above 1, ours is faster.
    """

    name: str
    ours: float | None = None  # seconds, median
    reference: float | None = None  # seconds, median
    ratio: float | None = None  # median over rounds
    ratio_low: float | None = None  # lowest of any round
    ratio_high: float | None = None  # highest of any round
    error: float | None = None  # distance from the reference or the ground truth; settings name its unit
    flops_ours: int | None = None
    flops_reference: int | None = None
    peak_bytes_ours: int | None = None
    peak_bytes_reference: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def flops(work: Callable[[], object]) -> int:
    """Count the floating-point operations of matrix products, convolutions and attention in `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def peak_bytes(work: Callable[[], object], device: str | None = None) -> int:
    """Return the peak memory in bytes of the tensors that `work` allocates on "cpu" or "cuda"; None: the GPU if any."""
    if device == "cuda" or (device is None and torch.cuda.is_available()):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = record.profiler.kineto_results.events()  # type: ignore[union-attr]
    live = peak = 0
    for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        live += change
        peak = max(peak, live)
    return peak


def compare(
    name: str,
    ours: Callable[[], object],
    reference: Callable[[], object],
    rounds: int,
    count: bool = False,
    **settings: Any,
) -> Result:
    """Run both implementations `rounds` times; which one is first alternates.

    Args:
        name: name of the result.
        ours, reference: the implementations.
        rounds: number of timed runs of each, at least 1.
        count: also count operations and peak memory, in one untimed run each.
        settings: kept in the result.
    """
    counted: dict[str, int] = {}
    if count:
        counted = {"flops_ours": flops(ours), "flops_reference": flops(reference)}
        counted |= {"peak_bytes_ours": peak_bytes(ours), "peak_bytes_reference": peak_bytes(reference)}
    times: dict[str, list[float]] = {"ours": [], "reference": []}
    sides = [("ours", ours), ("reference", reference)]
    for number in range(rounds):
        for side, work in sides if number % 2 else sides[::-1]:
            begin = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
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
        **counted,
    )
