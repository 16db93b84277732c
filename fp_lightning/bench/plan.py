"""The memory that `fp-lightning plan` foretells, beside what a step takes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
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
from fp_lightning.training.distillation import DistillationModule
from fp_lightning.training.footprint import footprint
from fp_lightning.training.optimiser import make_optimizer
from fp_lightning.training.simulation import Setting, editor_of, empty_batch, module_of

TINY = Setting("tiny", (64, 64), 8)
MIDDLE = replace(TINY, size=(128, 192), batch_size=2)  # a U-Net of 49 million weights
SETTINGS = {
    "tiny": TINY,
    "tiny-bf16": replace(TINY, precision="bf16-mixed"),
    "tiny-checkpointing": replace(TINY, gradient_checkpointing=True),
    "tiny-cached": replace(TINY, cached=True, augmentation_draws=4),
    "tiny-lora": replace(TINY, trains="lora"),
    "tiny-accumulate": replace(TINY, accumulate=2),
    "tiny-distill": replace(TINY, distills=True),
    "tiny-distill-lora": replace(TINY, distills=True, trains="lora"),
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
    foretold, measured = footprint(setting, on_cpu=True).peak, measured_peak(setting, "cpu")
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


def measured_peak(setting: Setting, device: str) -> int:
    """Run two steps, and return the bytes of all tensors at the peak of the second one, on "cpu" or "cuda"."""
    step, still = training_step(setting, device)
    step()  # the moments are there from now on
    return still + peak_bytes(step, device)


def training_step(setting: Setting, device: str) -> tuple[Callable[[], None], int]:
    """Return a training step of random weights on an empty batch, and the bytes of weights, copies and moments."""
    editor = filled(editor_of(setting), device=device).train()
    batch = empty_batch(setting).map(torch.zeros_like).to(device)
    mixed = setting.precision == "bf16-mixed"
    if setting.cached:
        batch = editor.with_latents(batch)
    if mixed:
        store_frozen(editor, torch.bfloat16)
    module, copies = module_of(setting, editor).to(device), 0
    if isinstance(module, DistillationModule):
        module.keep_teacher()
        copies = sum(weight.nbytes for kept in (module.teacher, module.average) for weight in kept.values())
    trained = [p for p in editor.parameters() if p.requires_grad]
    optimiser = make_optimizer("adamw", trained)

    def step() -> None:
        optimiser.zero_grad()
        for _ in range(setting.accumulate):
            with MixedPrecision("bf16-mixed", device).forward_context() if mixed else nullcontext():
                loss = module.losses(batch, seeded_generators(batch.name, 0))["total"]
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    still = sum(p.nbytes for p in (*editor.parameters(), *editor.buffers())) + 2 * sum(p.nbytes for p in trained)
    return step, still + copies


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
