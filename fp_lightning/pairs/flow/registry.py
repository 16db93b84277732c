"""Optical flow estimators by name. To add one, write its file and put its loader into `FLOWS`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from fp_lightning.pairs.flow.dis import dis_flow
from fp_lightning.pairs.flow.estimator import FlowEstimator


def _raft(weights: str | None) -> FlowEstimator:
    from fp_lightning.pairs.flow.raft import load_raft

    return load_raft(weights)


def _sea_raft(weights: str | None) -> FlowEstimator:
    from fp_lightning.pairs.flow.sea_raft import load_sea_raft

    return load_sea_raft(weights)


FLOWS: dict[str, Callable[[str | None], FlowEstimator]] = {
    "dis": lambda weights: dis_flow,
    "raft": _raft,
    "sea_raft": _sea_raft,
}


@lru_cache(maxsize=1)
def flow_estimator(name: str, weights: str | None = None) -> FlowEstimator:
    """Return the estimator called `name`, a key of `FLOWS`. It is loaded once per process.

    Raises:
        InputError: its weights or its package are missing.
    """
    return FLOWS[name](weights)
