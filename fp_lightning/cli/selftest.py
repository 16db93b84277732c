"""A self-test of at most a minute: a tiny edit, a training step, and on a GPU the kernels beside the plain version."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import torch
import transformers

from fp_lightning.cli.failures import line

DIFFERENCE = 0.02  # largest mean difference of an edit on the GPU from the same on the CPU, of 1


@dataclass(frozen=True)
class Check:
    """The outcome of one part of the self-test."""

    name: str
    passed: bool
    text: str  # what was measured, or why it failed
    seconds: float


def self_test(device: str | None = None) -> list[Check]:
    """Run all parts that the machine can run.

    Args:
        device: "cpu" or "cuda"; None takes a GPU if there is one.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    parts: dict[str, Callable[[str], str]] = {
        f"edit with tiny-editor on {device}": _edit,
        f"training step on {device}": _training_step,
    }
    if device == "cuda":
        parts |= {"edit on the GPU against the CPU": _same_edit, "kernels against the plain version": _kernels}
    return [_run(name, part, device) for name, part in parts.items()]


def _run(name: str, part: Callable[[str], str], device: str) -> Check:
    begin = time.perf_counter()
    try:
        text, passed = part(device), True
    except Exception as error:  # whatever is broken on this machine belongs into the report
        text, passed = line(error), False
    return Check(name, passed, text, time.perf_counter() - begin)


def _edited(device: str) -> torch.Tensor:
    """Edit a drawn photo: an image [3, 64, 64] in [0, 1]."""
    from PIL import Image, ImageDraw

    from fp_lightning.inference.pipeline import FramePainterPipeline

    pipe = FramePainterPipeline.from_pretrained("tiny-editor").to(device)
    pipe.set_progress_bar_config(disable=True)
    photo, sketch = Image.new("RGB", (64, 64), (90, 130, 80)), Image.new("RGB", (64, 64))
    ImageDraw.Draw(photo).ellipse((16, 20, 36, 40), fill=(220, 60, 40))
    ImageDraw.Draw(sketch).ellipse((26, 20, 46, 40), outline=(255, 255, 255))
    generator = torch.Generator().manual_seed(0)
    return pipe(photo, sketch, num_inference_steps=8, generator=generator, output_type="pt").images[0]


def _edit(device: str) -> str:
    image = _edited(device)
    if not image.isfinite().all() or image.std() < 0.01:
        raise RuntimeError(f"the edit has no contents: mean {image.mean():.3f}, standard deviation {image.std():.3f}")
    return f"mean {image.mean():.3f}, standard deviation {image.std():.3f}"


def _same_edit(device: str) -> str:
    difference = (_edited(device) - _edited("cpu")).abs().mean().item()
    if difference > DIFFERENCE:
        raise RuntimeError(f"the mean difference is {difference:.4f} of 1, above {DIFFERENCE}")
    return f"mean difference {difference:.4f} of 1"


def _training_step(device: str) -> str:
    from fp_lightning.model.build import build_editor
    from fp_lightning.model.edm import seeded_generators
    from fp_lightning.scenes.scene import Scene
    from fp_lightning.signals.sketch import sketch
    from fp_lightning.types import EditBatch, to_unit_range

    pair = Scene(0, (64, 64)).pair()
    batch = EditBatch(
        to_unit_range(pair.source)[None],
        ["self-test"],
        target=to_unit_range(pair.target)[None],
        control=sketch(pair)[None],
        tracks=pair.tracks[None],
        visible=pair.visible[None],
    ).to(device)
    editor = build_editor("tiny").to(device).train()
    trained = [weight for weight in editor.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    half = device == "cpu" or torch.cuda.is_bf16_supported()
    losses = []
    for _ in range(2):  # the same noise, so the loss must fall
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = editor.losses(batch, seeded_generators(batch.name, 0)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if not losses[1] < losses[0]:
        raise RuntimeError(f"the loss does not fall: {losses[0]:.4f}, then {losses[1]:.4f}")
    return f"loss {losses[0]:.4f}, then {losses[1]:.4f}, in {'bf16' if half else 'float32'}"


def _kernels(device: str) -> str:
    from fp_lightning.bench.matching import dense_loss
    from fp_lightning.model.matching_loss import FORMS, matching_loss

    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 5, 576, 64, generator=generator).to(device).requires_grad_() for _ in range(2))
    index = torch.randint(-1, 576, (1, 576), generator=generator).to(device)
    for form in FORMS:
        found, expected = (f(query, key, index, form) for f in (matching_loss, dense_loss))
        pairs = [(found, expected)]
        gradients = (torch.autograd.grad(loss, (query, key)) for loss in (found, expected))
        pairs += zip(*gradients, strict=True)
        worst = max(worst, *(((a - b).norm() / b.norm()).item() for a, b in pairs))
    if not worst < 1e-3:
        raise RuntimeError(f"the matching loss differs by {worst:.1e} from its definition")
    return f"largest relative difference {worst:.1e}"
