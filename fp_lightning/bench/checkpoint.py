"""How long training stands still for a checkpoint: ours in the background against Lightning's."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from fp_lightning.bench.measure import Result, compare
from fp_lightning.bench.networks import DEVICE
from fp_lightning.training.checkpoints import CheckpointWriter

WEIGHTS = 64 * 2**20  # about as many as adapters, matching branch and control encoder of SVD have
MATRICES = 64


def checkpoint(rounds: int) -> list[Result]:
    """Of weights and both moments of AdamW; ours are sometimes two in a row, as best.ckpt and last.ckpt are."""
    parts = ("weights", "exp_avg", "exp_avg_sq")
    state = {f"{part}.{i}": torch.randn(WEIGHTS // MATRICES).to(DEVICE) for part in parts for i in range(MATRICES)}
    with tempfile.TemporaryDirectory() as folder:
        ours, plain = CheckpointWriter(), TorchCheckpointIO()
        path, other = Path(folder) / "ours.ckpt", Path(folder) / "plain.ckpt"

        def theirs() -> None:
            ours._wait()  # does not count as ours: the loop goes on meanwhile
            plain.save_checkpoint(state, other)

        result = compare("checkpoint", lambda: ours.save_checkpoint(state, path), theirs, rounds)
        saved = [ours.load_checkpoint(file, weights_only=True) for file in (path, other)]
        ours.teardown()
        result.error = float(any(not torch.equal(tensor, saved[1][name].cpu()) for name, tensor in saved[0].items()))
        result.settings |= {"bytes": path.stat().st_size, "error": "1 if the files differ"}
    return [result]
