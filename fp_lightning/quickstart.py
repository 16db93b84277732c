"""The whole path in one go, by the same commands that a user would type."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from fp_lightning.errors import InputError
from fp_lightning.shards import PairStore
from fp_lightning.signals.sketch import sketch

RECIPES = ["--config", "tiny", "--config", "signals/sketch"]


def quickstart(videos: list[str], out: Path, steps: int, clips: int = 24) -> None:
    """`clips` clips (or `videos`) → pairs → fit → validate → predict under the folder `out`, replacing what is there.

    Raises:
        InputError: a command failed; it has said why.
    """
    console, began, times = Console(), time.monotonic(), {}
    marker, parts = out / ".quickstart", [out / name for name in ("clips", "pairs", "run", "inputs")]
    if not marker.exists() and any(part.exists() for part in parts):
        raise InputError(f"{out} holds folders that no quickstart wrote; choose another --out")
    if any(Path(video).resolve().is_relative_to(out.resolve()) for video in videos):
        raise InputError(f"the videos lie in {out}, which the quickstart replaces; choose another --out")
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    marker.touch()

    def step(name: str, *arguments: object) -> None:
        words = [str(argument) for argument in arguments]
        console.rule(f"[bold]{name}")
        console.print(f"$ fp-lightning {' '.join(words)}", soft_wrap=True, style="dim", markup=False)
        start = time.monotonic()
        if subprocess.run([sys.executable, "-m", "fp_lightning", *words]).returncode:
            raise InputError(f"the quickstart stopped at `fp-lightning {words[0]}`, which says why above")
        times[name] = time.monotonic() - start

    run = ["--data.pairs", out / "pairs", "--trainer.default_root_dir", out / "run"]
    checkpoint = ["--ckpt_path", out / "run" / "checkpoints" / "last.ckpt"]
    if not videos:
        step("clips", "clips", out / "clips", "--count", clips)
        videos = [str(out / "clips")]
    step("pairs", "pairs", *videos, "--out", out / "pairs", "--size", 256, 256)
    half = ["--trainer.max_steps", steps, "--trainer.val_check_interval", max(1, steps // 2)]
    step("fit", "fit", *RECIPES, *run, "--data.batch_size", 8, "--model.warmup", 50, *half)
    step("validate", "validate", *RECIPES, *run, *checkpoint)
    write_inputs(out / "pairs", out / "inputs")
    predict = ["--data.inputs", out / "inputs"]
    step("predict", "predict", *RECIPES, *run, *checkpoint, *predict)

    metrics = json.loads((out / "run" / "metrics.json").read_text())
    table = Table(title=f"Quickstart, {time.monotonic() - began:.0f} s in all")
    for column in ("step", "seconds", "result"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    results = {
        "clips": str(out / "clips"),
        "pairs": str(out / "pairs" / "manifest.json"),
        "fit": f"{steps} steps, {out / 'run' / 'checkpoints'}, {out / 'run' / 'samples'}",
        "validate": f"PSNR where things move {metrics['psnr_moving']:.2f} dB "
        f"(source unchanged {metrics['psnr_moving_copy_source']:.2f} dB), SSIM {metrics['ssim']:.3f}",
        "predict": f"{out / 'inputs'} → {out / 'run' / 'predictions'}",
    }
    for name, seconds in times.items():
        table.add_row(name, f"{seconds:.0f}", results[name])
    console.print(table)
    console.print(f"Look at {out / 'run' / 'report.html'} first.")


def write_inputs(pairs: Path, folder: Path, count: int = 4) -> None:
    """A predict folder of `count` stored source images with the sketches of their targets."""
    store = PairStore(pairs)
    folder.mkdir(parents=True, exist_ok=True)
    for number, index in enumerate(np.linspace(0, len(store) - 1, min(count, len(store))).astype(int)):
        pair = store[int(index)]
        for suffix, image in (("", pair.source), (".sketch", sketch(pair).mul(255).byte())):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"edit-{number}{suffix}.png")
