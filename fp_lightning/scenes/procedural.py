"""Pairs of procedural scenes, with exact flow and tracks, in the format of pairs from video."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from fp_lightning.errors import InputError
from fp_lightning.pairs.engines import cores, one_thread
from fp_lightning.pairs.shards import MANIFEST, write_manifest, write_shard
from fp_lightning.scenes.scene import Scene

PER_SHARD = 50  # scenes that count as one video


def write_scene_pairs(
    out: str | Path,
    count: int,
    size: tuple[int, int] = (64, 64),
    seed: int = 0,
    stride: int = 4,
    workers: int | None = None,
    scene: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes the pairs of the scenes of seeds `seed`, `seed + 1`, … and returns the manifest.

    Args:
        out: folder for the pairs, which must not hold any.
        count: of pairs; 50 of them count as one video.
        size: (height, width) in pixels.
        stride: pixels between tracked token centres.
        workers: processes; one a core by default.
        scene: further arguments of `Scene`.

    Raises:
        InputError: a number is out of range, or the folder holds pairs.
    """
    out = Path(out)
    if stride < 1 or (workers is not None and workers < 1):
        raise InputError(f"stride and workers must be 1 or more, got {stride} and {workers}")
    if count < 1 or min(size) < stride or any(side % stride for side in size):
        raise InputError(f"needs one pair or more and sides that are multiples of {stride}, got {count} and {size}")
    if (out / MANIFEST).exists():
        raise InputError(f"{out} holds pairs already; choose another folder")
    Scene(seed, size, **(scene or {}))  # what is wrong shows before anything is written
    starts = range(seed, seed + count, PER_SHARD)
    shards = [(first, min(PER_SHARD, seed + count - first)) for first in starts]
    work = partial(_shard, out, size, stride, dict(scene or {}))
    if workers == 1:
        records = [work(shard) for shard in shards]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers or cores(), mp_context=context, initializer=one_thread) as pool:
            records = list(pool.map(work, shards))
    settings = {"scenes": count, "seed": seed, "size": list(size), "stride": stride, **(scene or {})}
    return write_manifest(out, records, settings)


def _shard(
    out: Path, size: tuple[int, int], stride: int, scene: dict[str, Any], shard: tuple[int, int]
) -> dict[str, Any]:
    first, count = shard
    name = f"scenes-{first:06d}"
    pairs = [Scene(seed, size, **scene).pair(stride=stride) for seed in range(first, first + count)]
    write_shard(out, name, pairs)
    return {"video": name, "pairs": count, "rejected": {}, "error": None}
