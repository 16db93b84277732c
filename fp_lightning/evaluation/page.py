"""Write report.html of a comparison: metrics, distributions, and every sample by every system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fp_lightning.evaluation.gallery import gallery, histograms
from fp_lightning.evaluation.rows import PAPER, ROWS, interval_text, number, reasons
from fp_lightning.evaluation.samples import ReportSample
from fp_lightning.media.pages import write_page

VERDICTS = {True: "good", False: "bad", None: None}  # CSS classes


def write_comparison_page(
    path: Path,
    comparison: Mapping[str, Any],
    samples: Sequence[ReportSample],
    rows: Mapping[str, Sequence[Mapping[str, float]]],
) -> Path:
    """Write the page.

    Args:
        comparison: the content of comparison.json, see `fp_lightning.evaluation.compare.evaluate`.
        samples: samples of the gallery; `others` holds the images of all systems but the first.
        rows: scores by system, then by image, for the distributions.
    """
    labels = list(rows)
    title = f"{' against '.join(labels)} on {comparison['n']} images"
    return write_page(
        path,
        "fp_lightning.evaluation",
        "comparison.html",
        title=title if len(labels) > 1 else f"Evaluation of {labels[0]}",
        first=comparison["first"],
        systems=list(comparison["systems"]),
        signals=list(PAPER),
        rows=[_row(name, comparison) for name in next(iter(comparison["systems"].values()))],
        missing=reasons(comparison["not_measured"]),
        regions=comparison["regions"],
        distributions=[(label, histograms(rows[label])) for label in labels],
        **gallery(samples),
    )


def _row(name: str, comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Return one metric of all systems; a cell is None if the system does not have the metric."""
    label, better, unit, decimals = ROWS[name]
    cells: list[dict[str, Any] | None] = []
    for system, scores in comparison["systems"].items():
        if name not in scores:
            cells.append(None)
            continue
        other = comparison["differences"].get(system, {}).get(name)
        cells.append(
            {
                "value": number(float(scores[name]["value"]), decimals, unit),
                "interval": interval_text(scores[name]["interval"], decimals),
                "difference": number(float(other["value"]), decimals, unit, "+") if other else None,
                "verdict": VERDICTS[other["better"]] if other else None,
            }
        )
    paper = [number(PAPER[signal].get(name)) for signal in PAPER]
    return {"label": label, "better": better, "cells": cells, "paper": paper}
