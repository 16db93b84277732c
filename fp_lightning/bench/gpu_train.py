"""Tasks of `fp-lightning bench gpu`: training steps beside their plan, and the matching loss beside attention alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fp_lightning.bench.gpu_rows import Task
from fp_lightning.bench.plan import training_step
from fp_lightning.model.matching_loss import FORMS, matching_loss
from fp_lightning.training.footprint import footprint
from fp_lightning.training.simulation import Setting


def training_tasks(setting: Setting, device: str) -> list[Task]:
    """Return the tasks of training steps: all weights, LoRA, and cached latents.

    Args:
        setting: the setting with all weights.
        device: "cpu" or "cuda".
    """
    cached: dict[str, Any] = {"cached": True, "augmentation_draws": 4}
    ways = {
        "all weights": setting,
        "all weights, cached latents": replace(setting, **cached),
        "LoRA, rank 16": replace(setting, trains="lora"),
        "LoRA, rank 16, cached latents": replace(setting, trains="lora", **cached),
    }
    part = f"training step, batch {setting.batch_size}, {setting.precision}"

    def task(name: str, each: Setting) -> Task:
        def plan():
            return footprint(each, on_cpu=device == "cpu")

        return Task(
            part,
            name,
            lambda: training_step(each, device),
            needs=10.0 if setting.model == "tiny" else 45.0,
            reference=each is setting,
            samples=each.batch_size,
            operations=lambda: plan().operations,
            planned=lambda: plan().peak,
        )

    return [task(name, each) for name, each in ways.items()]


def matching_tasks(tokens: int, heads: int, width: int, dtype: torch.dtype, device: str) -> list[Task]:
    """Return the tasks of attention with each form of the matching loss, forward and backward, beside it alone.

    A quarter of the tokens is visible.
    """
    part = f"matching loss, {tokens} tokens, {str(dtype)[6:]}"

    def work(form: str | None) -> tuple[Callable[[], object], int]:
        g = torch.Generator().manual_seed(0)
        inputs = [torch.randn(1, heads, tokens, width, generator=g).to(device, dtype) for _ in range(3)]
        query, key, value = (x.requires_grad_() for x in inputs)
        index = torch.randint(tokens, (1, tokens), generator=g)
        index = index.where(torch.rand(1, tokens, generator=g) < 0.25, -1).to(device)

        def run() -> tuple[Tensor, ...]:
            total = F.scaled_dot_product_attention(query, key, value).sum()
            if form is not None:
                total = total + matching_loss(query, key, index, form)  # type: ignore[arg-type]
            return torch.autograd.grad(total, (query, key, value), allow_unused=True)

        return run, sum(x.nbytes for x in (*inputs, index))

    alone = Task(part, "attention alone", lambda: work(None), needs=5.0, reference=True)
    return [alone, *(Task(part, f"with {form}", partial(work, form), needs=10.0) for form in FORMS)]
