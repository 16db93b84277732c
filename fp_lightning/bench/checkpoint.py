"""Benchmark how long a checkpoint blocks training: `CheckpointWriter` against Lightning's writer."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from fp_lightning.bench.measure import Result, compare
from fp_lightning.bench.networks import DEVICE
from fp_lightning.training.checkpoints import CheckpointWriter

WEIGHTS = 64 * 2**20  # about the parameters of LoRA adapters, matching branch and control encoder of SVD
MATRICES = 64


def checkpoint(rounds: int) -> list[Result]:
    """Time saving weights and both moments of AdamW.

    `CheckpointWriter` sometimes saves twice in a row, as happens with best.ckpt and last.ckpt.
    """
    parts = ("weights", "exp_avg", "exp_avg_sq")
    state = {f"{part}.{i}": torch.randn(WEIGHTS // MATRICES).to(DEVICE) for part in parts for i in range(MATRICES)}
    with tempfile.TemporaryDirectory() as folder:
        ours, lightning = CheckpointWriter(), TorchCheckpointIO()
        path, other = Path(folder) / "ours.ckpt", Path(folder) / "plain.ckpt"

        def reference() -> None:
            ours._wait()  # not part of our time, because training would continue
            lightning.save_checkpoint(state, other)

        result = compare("checkpoint", lambda: ours.save_checkpoint(state, path), reference, rounds)
        saved = [ours.load_checkpoint(file, weights_only=True) for file in (path, other)]
        ours.teardown()
        result.error = float(any(not torch.equal(tensor, saved[1][name].cpu()) for name, tensor in saved[0].items()))
        result.settings |= {"bytes": path.stat().st_size, "error": "1 if the files differ"}
    return [result]
