"""The whole path in one go, by the same commands that a user would type."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table

from fp_lightning.errors import InputError
from fp_lightning.files import read_json, require_writable
from fp_lightning.pairs.shards import MANIFEST, read_manifest

RECIPES = ["--config", "tiny", "--config", "signals/sketch"]


def quickstart(
    videos: list[str], out: Path, steps: int, clips: int = 128, weights: Literal["pretrained", "random"] = "pretrained"
) -> None:
    """`clips` clips (or `videos`) → pairs → fit → validate → predict under the folder `out`, replacing what is there.

    Args:
        videos: files and folders, see `split_names`.
        weights: what training starts from, the prior in this package or random ones.

    Raises:
        InputError: a command failed; it has said why.
    """
    videos = [name for text in videos for name in split_names(text)]
    console, began, times = Console(), time.monotonic(), {}
    marker, parts = out / ".quickstart", [out / name for name in ("clips", "pairs", "run", "heldout")]
    if not marker.exists() and any(part.exists() for part in parts):
        raise InputError(f"{out} holds folders that no quickstart wrote; choose another --out")
    if any(Path(video).resolve().is_relative_to(out.resolve()) for video in videos):
        raise InputError(f"the videos lie in {out}, which the quickstart replaces; choose another --out")
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)
    require_writable(out, "--out")
    marker.touch()

    def step(name: str, *arguments: object) -> None:
        words = [str(argument) for argument in arguments]
        console.rule(f"[bold]{name}")
        console.print(f"$ fp-lightning {' '.join(words)}", soft_wrap=True, style="dim", markup=False)
        start = time.monotonic()
        if subprocess.run([sys.executable, "-m", "fp_lightning", *words]).returncode:
            raise InputError(f"the quickstart stopped at `fp-lightning {words[0]}`, which says why above")
        times[name] = time.monotonic() - start

    held = ["--data.holdout", out / "heldout" / "heldout.json"]
    run = ["--data.pairs", out / "pairs", *held, "--trainer.default_root_dir", out / "run"]
    checkpoint = ["--ckpt_path", out / "run" / "checkpoints" / "last.ckpt"]
    side, few = 256, list[object]()  # px of the pairs, which training shrinks to 64
    if not videos:
        side, few = 128, ["--pairs-per-video", 3, "--candidates", 12, "--min-gap", 1.5, "--largest", 180]
        shown = ["--size", side, side, "--motion", 0.35, 0.6, "--radius", 0.13, 0.2, "--detail", 0.15, "--clarity", 1]
        step("clips", "clips", out / "clips", "--count", clips, *shown)
        videos = [str(out / "clips")]
    step("pairs", "pairs", *videos, "--out", out / "pairs", "--size", side, side, *few)
    made = read_manifest(out / "pairs" / MANIFEST)["pairs"]
    count = max(1, min(24, made // 8))
    step("benchmark", "benchmark", "--pairs", out / "pairs", "--count", count, "--out", out / "heldout")
    half = ["--trainer.max_steps", steps, "--trainer.val_check_interval", max(1, steps // 2)]
    start = ["--config", "cached", "--model.editor.weights", weights, "--model.warmup", 50]
    start += ["--model.editor.augmentation_draws", 1, "--model.optimizer", "muon"]
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 has none
    if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"):  # on other CPUs bfloat16 is the slower one
        start += ["--trainer.precision", "bf16-mixed"]
    data = ["--data.batch_size", 8, "--data.flip", "true"]
    step("fit", "fit", *RECIPES, *start, *run, *data, *half)
    step("validate", "validate", *RECIPES, *run, *checkpoint)
    predict = ["--data.inputs", out / "heldout" / "inputs"]
    step("predict", "predict", *RECIPES, *run, *checkpoint, *predict)

    metrics = read_json(out / "run" / "metrics.json")
    table = Table(title=f"Quickstart, {time.monotonic() - began:.0f} s in all")
    for column in ("step", "seconds", "result"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    results = {
        "clips": str(out / "clips"),
        "pairs": str(out / "pairs" / "manifest.json"),
        "benchmark": f"{out / 'heldout'}, photos and sketches that are not trained on",
        "fit": f"{steps} steps, {out / 'run' / 'checkpoints'}, {out / 'run' / 'samples'}",
        "validate": f"PSNR where things move {metrics['psnr_moving']:.2f} dB "
        f"(source unchanged {metrics['psnr_moving_copy_source']:.2f} dB), SSIM {metrics['ssim']:.3f}",
        "predict": f"{out / 'heldout' / 'inputs'} → {out / 'run' / 'predictions'}",
    }
    for name, seconds in times.items():
        table.add_row(name, f"{seconds:.0f}", results[name])
    console.print(table)
    console.print(f"Look at {out / 'run' / 'report.html'} first.")


def split_names(text: str) -> list[str]:
    """Split a text of names with spaces between them, such as `make quickstart VIDEOS="a.mp4 My Films"` passes on.

    Names may hold spaces: the longest name that exists is taken first. A text that is a name is not split.

    Raises:
        InputError: a part of the text is not the name of a file or folder.
    """
    words, names = text.split(" "), list[str]()
    while words:
        candidates = (" ".join(words[:end]) for end in range(len(words), 0, -1))
        name = next((name for name in candidates if name and Path(name).exists()), None)
        if name is None and words[0]:
            raise InputError(f"no video or folder {' '.join(words)}; check its name in --videos (VIDEOS of make)")
        del words[: name.count(" ") + 1 if name else 1]
        names += [name] if name else []
    return names
