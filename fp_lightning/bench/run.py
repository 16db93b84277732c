"""Run benchmarks, print their table and write their results as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fp_lightning.bench.checkpoint import checkpoint
from fp_lightning.bench.demo import demo
from fp_lightning.bench.edit import edit, unet
from fp_lightning.bench.few_steps import few_steps
from fp_lightning.bench.generator import generator
from fp_lightning.bench.loader import loader
from fp_lightning.bench.matching import matching
from fp_lightning.bench.measure import Result
from fp_lightning.bench.pairs import correspondence, pairs
from fp_lightning.bench.plan import plan
from fp_lightning.bench.train_step import train_step
from fp_lightning.errors import InputError
from fp_lightning.files import write_text

BENCHMARKS: dict[str, Callable[[int], list[Result]]] = {
    "unet": unet,
    "matching": matching,
    "edit": edit,
    "few-steps": few_steps,
    "train-step": train_step,
    "pairs": pairs,
    "correspondence": correspondence,
    "loader": loader,
    "generator": generator,
    "plan": plan,
    "checkpoint": checkpoint,
    "demo": demo,
}


def bench(names: Sequence[str], rounds: int = 3, json_file: Path | None = None) -> list[Result]:
    """Run benchmarks and print a table of their results.

    Args:
        names: keys of `BENCHMARKS`; all of them if empty.
        rounds: number of timed runs of each implementation, at least 1.
        json_file: file for the results, see `Result`.

    Raises:
        InputError: a name is unknown, or `rounds` is below 1.
    """
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown or rounds < 1:
        raise InputError(
            f"there is no benchmark {unknown[0]}; choose from {', '.join(BENCHMARKS)}"
            if unknown
            else f"--rounds must be 1 or more, got {rounds}"
        )
    results = [result for name in names or BENCHMARKS for result in BENCHMARKS[name](rounds)]
    if json_file is not None:
        write_text(json_file, json.dumps([asdict(result) for result in results], indent=2))
    Console().print(_table(results))
    return results


def _table(results: Sequence[Result]) -> Table:
    table = Table("benchmark", title="ratio = reference / ours: above 1 is faster", title_justify="left")
    for column in ("ours", "reference", "ratio", "least to most", "peak"):
        table.add_column(column, justify="right")
    table.add_column("settings", min_width=40)
    for result in results:
        spread = None if result.ratio_low is None else f"{result.ratio_low:.2f} to {result.ratio_high:.2f}"
        peak = None if result.peak_bytes_ours is None else f"{result.peak_bytes_ours / 2**20:.0f} MiB"
        cells = (
            _seconds(result.ours),
            _seconds(result.reference),
            result.ratio and f"{result.ratio:.2f}",
            spread,
            peak,
        )
        table.add_row(result.name, *(cell or "–" for cell in cells), _flat(result.settings))
    return table


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g} s"


def _flat(settings: dict[str, Any]) -> str:
    return ", ".join(f"{k}: {_flat(v) if isinstance(v, dict) else v}" for k, v in settings.items())
