"""Benchmark the training loaders against reading and decoding the same files."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import cv2
from safetensors import safe_open

from fp_lightning.bench.measure import Result, compare
from fp_lightning.pairs.shards import FOLDER, write_manifest, write_shard
from fp_lightning.scenes.scene import Scene

SIZE, VIDEOS, PER_VIDEO, BATCH = (320, 512), 8, 8, 4


def loader(rounds: int) -> list[Result]:
    """Time one epoch of each signal's loader with 0, 1 and 2 workers, against reading and decoding the same files."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for video in range(VIDEOS):
            write_shard(root, str(video), [Scene(video * PER_VIDEO + i, SIZE).pair() for i in range(PER_VIDEO)])
        records: list[dict[str, Any]] = [
            {"video": str(v), "pairs": PER_VIDEO, "rejected": {}, "error": None} for v in range(VIDEOS)
        ]
        write_manifest(root, records)
        return [
            _one(root, signal, workers, rounds) for signal in ("Sketch", "Points", "Coarse") for workers in (0, 1, 2)
        ]


def _one(root: Path, signal: str, workers: int, rounds: int) -> Result:
    options: dict[str, Any] = {"size": SIZE, "batch_size": BATCH, "val_fraction": 0, "test_fraction": 0}
    data = getattr(importlib.import_module("datamodules"), f"{signal}DataModule")(
        pairs=str(root), num_workers=workers, **options
    )
    data.setup("fit")
    batches = data.train_dataloader()
    next(iter(batches))  # start the workers before the clock

    def decode() -> None:
        for path in (root / FOLDER).glob("*.safetensors"):
            with safe_open(str(path), "numpy") as shard:
                for key in shard.keys():  # noqa: SIM118 (a file, not a mapping)
                    cv2.imdecode(shard.get_tensor(key), cv2.IMREAD_UNCHANGED)

    samples = VIDEOS * PER_VIDEO
    result = compare(f"loader/{signal.lower()}/{workers}", lambda: [len(batch) for batch in batches], decode, rounds)
    assert result.ours and result.reference
    per_second = {"ours": round(samples / result.ours, 1), "reference": round(samples / result.reference, 1)}
    result.settings |= {"workers": workers, "samples": samples, "size": list(SIZE), "samples_per_second": per_second}
    return result
