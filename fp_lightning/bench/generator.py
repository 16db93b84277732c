"""Benchmark whether procedural clips are rendered as fast as a prior trains on them."""

from __future__ import annotations

import importlib
import itertools

import torch
from omegaconf import OmegaConf

from fp_lightning.bench.measure import Result, compare
from fp_lightning.bench.networks import DEVICE
from fp_lightning.model.build import build_editor
from fp_lightning.model.edm import seeded_generators
from fp_lightning.training.prior import VideoPriorModule
from fp_lightning.training.recipe_files import recipe_path
from fp_lightning.types import ClipBatch


def generator(rounds: int) -> list[Result]:
    """Time rendering a batch of recipes/tiny_svd.yaml in one process, against one training step on that batch.

    The ratio is the number of training processes that one loader process can feed.
    """
    return [_one(frames, rounds) for frames in (2, 4)]


def _one(frames: int, rounds: int) -> Result:
    options = OmegaConf.load(recipe_path("tiny_svd")).data.init_args
    data = importlib.import_module("datamodules").SceneClipDataModule(**{**options, "frames": (frames,)})
    module = VideoPriorModule(build_editor("tiny", "random", attention="temporal").to(DEVICE))
    optimiser = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], fused=True)
    batch: ClipBatch = data.batch("train", 0).to(DEVICE)
    numbers = itertools.count(1)

    def step() -> None:
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = module.loss(batch, seeded_generators(batch.name, 0))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    result = compare(f"generator/{frames}-frames", lambda: data.batch("train", next(numbers)), step, rounds)
    assert result.ours and result.reference
    result.settings |= {
        "frames": frames,
        "clips": len(batch),
        "clips_per_second": {
            "rendered": round(len(batch) / result.ours, 1),
            "trained_on": round(len(batch) / result.reference, 1),
        },
        "training": "bf16-mixed",
    }
    return result
