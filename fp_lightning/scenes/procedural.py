"""Write pairs of procedural scenes, with exact flow and tracks, in the format of pairs from video."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fp_lightning.errors import InputError
from fp_lightning.files import locked
from fp_lightning.pairs.engines import cores, one_thread
from fp_lightning.pairs.shards import MANIFEST, write_manifest, write_shard
from fp_lightning.scenes.content import SceneContent
from fp_lightning.scenes.scene import Scene

PER_SHARD = 50  # scenes per shard; a shard counts as one video


def write_scene_pairs(
    out: str | Path,
    count: int,
    size: tuple[int, int] = (64, 64),
    seed: int = 0,
    stride: int = 4,
    workers: int | None = None,
    content: SceneContent | None = None,
) -> dict[str, Any]:
    """Write one pair each for the scenes with seeds `seed`, `seed + 1` and so on, and return the manifest.

    Args:
        out: folder for the pairs, which must not have any yet.
        count: number of pairs; 50 of them count as one video.
        size: (height, width) in pixels.
        seed: first seed.
        stride: pixels between tracked token centres.
        workers: number of processes; None for one per core.
        content: what the scenes show; None for the defaults.

    Raises:
        InputError: a number is out of range, the folder already has pairs, or another run writes to it.
    """
    out, content = Path(out), content or SceneContent()
    if stride < 1 or (workers is not None and workers < 1):
        raise InputError(f"stride and workers must be 1 or more, got {stride} and {workers}")
    if count < 1 or min(size) < stride or any(side % stride for side in size):
        raise InputError(
            f"count must be 1 or more and both sides of size multiples of {stride}, got {count} and {size}"
        )
    if (out / MANIFEST).exists():
        raise InputError(f"{out} already holds pairs; choose another folder")
    Scene(seed, size, content)  # invalid values fail here, before anything is written
    with locked(out):
        return _write(out, count, size, seed, stride, workers, content)


def _write(
    out: Path, count: int, size: tuple[int, int], seed: int, stride: int, workers: int | None, content: SceneContent
) -> dict[str, Any]:
    """`write_scene_pairs`, with the folder locked and the arguments checked."""
    starts = range(seed, seed + count, PER_SHARD)
    shards = [(first, min(PER_SHARD, seed + count - first)) for first in starts]
    work = partial(_write_shard, out, size, stride, content)
    if workers == 1:
        records = [work(shard) for shard in shards]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers or cores(), mp_context=context, initializer=one_thread) as pool:
            records = list(pool.map(work, shards))
    settings = {"scenes": count, "seed": seed, "size": list(size), "stride": stride, **asdict(content)}
    return write_manifest(out, records, settings)


def _write_shard(
    out: Path, size: tuple[int, int], stride: int, content: SceneContent, shard: tuple[int, int]
) -> dict[str, Any]:
    """Write the scenes of `shard` (first seed, count) and return its record, see `write_manifest`."""
    first, count = shard
    name = f"scenes-{first:06d}"
    pairs = [Scene(seed, size, content).pair(stride=stride) for seed in range(first, first + count)]
    write_shard(out, name, pairs)
    return {"video": name, "pairs": count, "rejected": {}, "error": None}
