"""The memory that `fp-lightning plan` foretells, beside what a step takes."""

from __future__ import annotations

import json
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from fp_lightning.bench.measure import Result, peak_bytes
from fp_lightning.bench.networks import filled
from fp_lightning.model.edm import seeded_generators
from fp_lightning.model.svd.load import SHIPPED
from fp_lightning.model.trainable import store_frozen
from fp_lightning.training.footprint import footprint
from fp_lightning.training.simulation import Setting, editor_of, empty_batch

TINY = Setting("tiny", (64, 64), 8)
MIDDLE = replace(TINY, size=(128, 192), batch_size=2)  # a U-Net of 49 million weights
SETTINGS = {
    "tiny": TINY,
    "tiny-bf16": replace(TINY, precision="bf16-mixed"),
    "tiny-checkpointing": replace(TINY, gradient_checkpointing=True),
    "tiny-cached": replace(TINY, cached=True, augmentation_draws=4),
    "tiny-lora": replace(TINY, trains="lora"),
    "tiny-accumulate": replace(TINY, accumulate=2),
    "middle": MIDDLE,
    "middle-bf16-checkpointing": replace(MIDDLE, precision="bf16-mixed", gradient_checkpointing=True),
    "middle-matching+control": replace(MIDDLE, trains="matching+control", cached=True, augmentation_draws=4),
}


def plan(rounds: int) -> list[Result]:
    """Bytes foretold (ours) and measured (reference) at the peak of a step on the CPU; the error is relative.

    `rounds` does not matter: nothing is timed.
    """
    with tempfile.TemporaryDirectory() as folder:
        middle = _middle(Path(folder))
        return [
            _one(name, replace(setting, model=middle) if name.startswith("middle") else setting)
            for name, setting in SETTINGS.items()
        ]


def _one(name: str, setting: Setting) -> Result:
    foretold = footprint(setting, on_cpu=True).peak
    editor = filled(editor_of(setting), device="cpu").train()
    batch = empty_batch(setting).map(torch.zeros_like)
    if setting.cached:
        batch = editor.with_latents(batch)
    if setting.precision == "bf16-mixed":
        store_frozen(editor, torch.bfloat16)
    trained = [p for p in editor.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, fused=True)
    mixed = MixedPrecision("bf16-mixed", "cpu")

    def step() -> None:
        optimiser.zero_grad()
        for _ in range(setting.accumulate):
            with mixed.forward_context() if setting.precision == "bf16-mixed" else nullcontext():
                loss = editor.losses(batch, seeded_generators(batch.name, 0)).total
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    step()  # the moments are there from now on
    still = sum(p.nbytes for p in (*editor.parameters(), *editor.buffers())) + 2 * sum(p.nbytes for p in trained)
    measured = still + peak_bytes(step)
    return Result(
        f"plan/{name}",
        error=abs(foretold - measured) / measured,
        peak_bytes_ours=foretold,
        peak_bytes_reference=measured,
        settings={
            "error": "relative, of the bytes",
            "measured": f"{measured / 2**20:.0f} MiB",
            "size": list(setting.size),
        },
    )


def _middle(folder: Path) -> str:
    """Configurations between the tiny build and SVD."""
    for part in ("unet", "vae", "image_encoder", "control_encoder"):
        (folder / part).mkdir()
        config = json.loads((SHIPPED["tiny"] / part / "config.json").read_text())
        if part == "unet":
            config |= {"block_out_channels": [128, 256], "num_attention_heads": [2, 4], "layers_per_block": 2}
        if part == "control_encoder":
            config |= {"out_channels": 128}
        (folder / part / "config.json").write_text(json.dumps(config))
    return str(folder)
