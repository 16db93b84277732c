"""Benchmark an edit by a distilled editor against one of 25 guided steps."""

from __future__ import annotations

import torch
from torch import Tensor

from fp_lightning.bench.measure import Result, compare
from fp_lightning.bench.networks import DEVICE
from fp_lightning.inference.sampler import default_sampling, sample_latents
from fp_lightning.model.build import build_editor
from fp_lightning.types import EditBatch

STEPS, SIZE = 4, (64, 64)


@torch.no_grad()
def few_steps(rounds: int) -> list[Result]:
    """Time an edit of `STEPS` steps and its decoding on the tiny model, whose time does not depend on its weights."""
    editor = build_editor("tiny", "random").eval().to(DEVICE)
    g = torch.Generator().manual_seed(0)
    source, control = (torch.rand(1, 3, *SIZE, generator=g).to(DEVICE) for _ in range(2))
    batch = EditBatch(source * 2 - 1, ["noise"], control=control)

    def edit(distilled_steps: int | None) -> Tensor:
        editor.distilled_steps = distilled_steps
        settings = default_sampling(distilled_steps)
        return editor.decode(sample_latents(editor, batch, settings, [torch.Generator().manual_seed(1)]))

    calls = {"calls": f"{STEPS} and {2 * default_sampling(None).num_inference_steps}", "size": list(SIZE)}
    return [compare("few-steps/tiny", lambda: edit(STEPS), lambda: edit(None), rounds, count=True, **calls)]
