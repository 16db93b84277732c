"""Run a baseline over a folder of examples: one file each, resumable, with the cost told before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fp_lightning.baselines.example import Files
from fp_lightning.baselines.registry import Baseline
from fp_lightning.files import require_writable, write_atomic
from fp_lightning.media.images import unsqueeze
from fp_lightning.media.pictures import encode
from fp_lightning.model.edm import seeded_generator

AREA, MULTIPLE = 512 * 512, 64  # pixels at which Stable Diffusion 1.x works, and multiple of both sides


def run_baseline(
    baseline: Baseline,
    files: Sequence[Files],
    out: Path,
    seed: int = 0,
    area: int | None = AREA,
    multiple: int = MULTIPLE,
) -> int:
    """Write NAME.png for every example that has none in `out` yet, and return how many were written.

    Args:
        baseline: the method.
        files: the examples, see `fp_lightning.baselines.example`.
        out: folder of the edited photos, at the sizes of the photos.
        seed: with a photo's name it decides all noise.
        area: pixels of the resized photo; None keeps its size.
        multiple: of both of its sides.

    Raises:
        InputError: an example cannot be read, or `out` cannot be written.
    """
    require_writable(out, "--out")
    left = [each for each in files if not (out / f"{each.name}.png").is_file()]
    console = Console(stderr=True)
    if len(left) < len(files):
        console.print(f"{len(files) - len(left)} of {len(files)} edited photos are in {out} and are kept")
    total = sum(baseline.cost(each.read(area, multiple)) for each in left)
    console.print(f"{len(left)} photos, at most {total:,} network evaluations")
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not left) as progress:
        task = progress.add_task("photos", total=len(left))
        for each in left:
            example = each.read(area, multiple)
            edited = baseline(example, seeded_generator("baseline", seed, each.name))
            write_atomic(out / f"{each.name}.png", encode(unsqueeze(edited, example.full_size or example.size)))
            progress.advance(task)
    return len(left)
