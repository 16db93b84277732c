"""`fp-lightning bench gpu`: everything that is worth knowing of a GPU, in one run of at most ten minutes."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import diffusers
import torch
from lightning.fabric.utilities.throughput import get_available_flops

from fp_lightning.bench.gpu_edit import Editing
from fp_lightning.bench.gpu_rows import Bench, Row, Task, markdown
from fp_lightning.bench.gpu_train import matching_tasks, training_tasks
from fp_lightning.bench.networks import full_editor
from fp_lightning.errors import InputError
from fp_lightning.files import write_text
from fp_lightning.model.build import build_editor
from fp_lightning.model.editor import FramePainter
from fp_lightning.model.svd.prior import svd_prior
from fp_lightning.training.simulation import Setting


def bench_gpu(
    minutes: float = 10.0, dry_run: bool = False, json_file: Path | None = None, markdown_file: Path | None = None
) -> list[Row]:
    """Measure edits, training steps and the matching loss; print and return the rows.

    Args:
        minutes: budget of time. What does not fit is named with the reason.
        dry_run: run the same code on the CPU with the tiny build.
        json_file: file for the rows, see `Row`, and for what they were measured on.
        markdown_file: file for the table.

    Raises:
        InputError: there is no GPU and this is no dry run, or `minutes` is not positive.
    """
    if minutes <= 0:
        raise InputError(f"--minutes must be above 0, got {minutes:g}")
    if not dry_run and not torch.cuda.is_available():
        raise InputError(
            "bench gpu needs a GPU, and torch finds none; --dry-run runs it on the CPU with the tiny build"
        )
    device = "cpu" if dry_run else "cuda"
    tflops = get_available_flops(torch.device("cuda"), torch.bfloat16) if device == "cuda" else None
    bench = Bench(device, minutes * 60, tflops)
    for tasks, finish in _parts(device):
        bench.run(tasks, show)
        finish()
    machine = _machine(device)
    table = f"{_title(machine)}\n\n{markdown(bench.rows)}\n"
    print(f"\n{table}")
    if json_file is not None:
        write_text(json_file, json.dumps({"machine": machine, "rows": [asdict(row) for row in bench.rows]}, indent=2))
    if markdown_file is not None:
        write_text(markdown_file, table)
    return bench.rows


def _parts(device: str) -> list[tuple[list[Task], Callable[[], None]]]:
    """The tasks in the order of their worth, so that a short budget measures what matters most, and what ends each."""
    if device == "cpu":
        editing = Editing(_tiny_editor, (64, 64), 2, device, {"backend": "eager"})
        setting, matching = Setting("tiny", (64, 64), 1, "bf16-mixed"), (256, 2, 16, torch.float32)
        types = [torch.float32, torch.bfloat16]
    else:
        editing = Editing(full_editor, (576, 1024), 25, device)
        setting = Setting(size=(576, 1024), precision="bf16-mixed", gradient_checkpointing=True)
        matching, types = (9216, 5, 64, torch.bfloat16), [torch.float16, torch.bfloat16]
    return [
        (matching_tasks(*matching, device), lambda: None),
        (editing.tasks(types[0]), editing.release),  # training needs the memory
        (training_tasks(setting, device), lambda: None),
        (editing.tasks(types[1]), editing.release),
    ]


def _tiny_editor() -> FramePainter:
    """The tiny build with random weights, also in its last layer."""
    editor = build_editor("tiny", "random")
    with torch.no_grad():
        for parameter in svd_prior(editor.prior).unet.conv_out.parameters():
            parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    return editor


def _machine(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device == "cuda" else f"dry run on the CPU ({platform.machine()})"
    return {"device": name, "torch": torch.__version__, "diffusers": diffusers.__version__}


def _title(machine: dict[str, str]) -> str:
    return f"{machine['device']}, torch {machine['torch']}, diffusers {machine['diffusers']}. Random weights."


def show(row: Row) -> None:
    """Print a row as soon as it is known."""
    figures = f"{row.seconds:.3g} s" if row.seconds is not None else f"not measured: {row.reason}"
    print(f"{row.part}: {row.name}: {figures}", flush=True)
