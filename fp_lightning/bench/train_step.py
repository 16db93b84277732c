"""Benchmark a training step with cached latents against the same step that encodes them."""

from __future__ import annotations

import torch

from fp_lightning.bench.measure import Result, compare
from fp_lightning.bench.networks import DEVICE, full_editor
from fp_lightning.model.build import build_editor
from fp_lightning.model.editor import FramePainter
from fp_lightning.model.edm import seeded_generators
from fp_lightning.model.svd.prior import svd_prior
from fp_lightning.model.trainable import choose_trainable
from fp_lightning.scenes.scene import Scene
from fp_lightning.signals.sketch import sketch
from fp_lightning.types import EditBatch, to_unit_range

SIZES = {"tiny": (64, 64), "full": (128, 192)}  # px
BATCH = {"tiny": 8, "full": 1}


def train_step(rounds: int) -> list[Result]:
    """Time losses, gradients and a step of AdamW, for the tiny build and for SVD at full size.

    At full size the matching branch and the control encoder train, so that 24 GB of memory are enough.
    """
    tiny = build_editor("tiny", "random", augmentation_draws=4)
    result = [_step("train-step/tiny", tiny.to(DEVICE), SIZES["tiny"], BATCH["tiny"], rounds)]
    full = full_editor()
    full.augmentation_draws = 4
    choose_trainable(svd_prior(full.prior).unet, full.control_encoder, "matching+control")
    return [*result, _step("train-step/full", full, SIZES["full"], BATCH["full"], rounds)]


def _step(name: str, editor: FramePainter, size: tuple[int, int], batch_size: int, rounds: int) -> Result:
    editor.train()
    trainable = [p for p in editor.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        trainable, lr=0.0, weight_decay=0.0, fused=True
    )  # with learning rate 0 every step computes the same
    batch = EditBatch.cat([_sample(seed, size) for seed in range(batch_size)]).to(DEVICE)
    with_latents = editor.with_latents(batch)

    def step(batch: EditBatch) -> float:
        loss = editor.losses(batch, seeded_generators(batch.name, 0)).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    first, second = step(with_latents), step(batch)
    result = compare(name, lambda: step(with_latents), lambda: step(batch), rounds, count=True)
    result.error = abs(first - second) / abs(second)
    result.settings |= {
        "error": "relative, of the loss",
        "size": list(size),
        "batch": batch_size,
        "trainable": sum(p.numel() for p in trainable),
    }
    return result


def _sample(seed: int, size: tuple[int, int]) -> EditBatch:
    pair = Scene(seed, size).pair()
    return EditBatch(
        to_unit_range(pair.source)[None],
        [str(seed)],
        target=to_unit_range(pair.target)[None],
        control=sketch(pair)[None],
        tracks=pair.tracks[None],
        visible=pair.visible[None],
    )
