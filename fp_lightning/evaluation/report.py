"""Write the results of an evaluation: metrics.json and report.html."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fp_lightning.evaluation.gallery import gallery, histograms
from fp_lightning.evaluation.rows import COPY, PAPER, ROWS, interval_text, number, reasons
from fp_lightning.evaluation.samples import ReportSample
from fp_lightning.files import write_text
from fp_lightning.media.pages import write_page


def write_metrics(folder: str | Path, metrics: Mapping[str, Any]) -> Path:
    """Write `<folder>/metrics.json`. A number that is not finite becomes null, with its reason."""
    broken = {key: value for key, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)}
    not_measured = {
        **metrics.get("not_measured", {}),
        **{key: f"the value is {value}" for key, value in broken.items()},
    }
    content = {**metrics, **dict.fromkeys(broken), "not_measured": not_measured}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_text(Path(folder) / "metrics.json", text)


def write_report(
    folder: str | Path,
    metrics: Mapping[str, Any],
    samples: Sequence[ReportSample],
    title: str,
    settings: Mapping[str, Any] | None = None,
    correspondence: Mapping[str, Mapping[str, float]] | None = None,
) -> Path:
    """Write `<folder>/report.html`: one file that requests nothing and follows the reader's light or dark theme.

    Args:
        metrics: result of `EditMetrics.compute`. Each unknown number gets its own row.
        settings: listed on the page. If "signal" is "sketch", "coarse" or "points", the page shows the paper's values
            for that signal alone, otherwise for all three.
        correspondence: result of `CorrespondenceMetrics.compute`, by layer.
    """
    settings = settings or {}
    signals = [s for s in PAPER if s == settings.get("signal")] or list(PAPER)
    return write_page(
        Path(folder) / "report.html",
        "fp_lightning.evaluation",
        "report.html",
        title=title,
        tiles=_tiles(metrics),
        signals=signals,
        rows=[_row(key, metrics, signals) for key in ROWS],
        other_metrics=_other_metrics(metrics),
        missing=reasons(metrics.get("not_measured", {})),
        layers=_layers(correspondence or {}),
        histograms=histograms([sample.scores for sample in samples]),
        settings=settings,
        **gallery(samples),
    )


def _tiles(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (number(metrics.get("psnr_moving_gain"), 2, " dB", "+"), "PSNR gain over the unedited source, moving region"),
        (number(metrics.get("ssim")), "SSIM"),
        (number(metrics.get("n")), f"images, {number(metrics.get('n_moving'))} of them with motion"),
    ]


def _row(key: str, metrics: Mapping[str, Any], signals: Sequence[str]) -> dict[str, Any]:
    """Return one metric: of the edited images, of the unedited source, their difference, and the paper's value."""
    label, better, unit, decimals = ROWS[key]
    value, floor, target = metrics.get(key), metrics.get(key + COPY), metrics.get(f"{key}_target")
    difference = value - floor if value is not None and floor is not None else None
    return {
        "label": label,
        "better": better,
        "measured": value is not None or key not in metrics.get("not_measured", {}),
        "value": number(value, decimals, unit),
        "interval": interval_text(metrics.get("intervals", {}).get(key), decimals),
        "floor": number(floor, decimals, unit),
        "target": None if target is None else number(target, decimals, unit),  # of metrics that are estimates
        "difference": number(difference, decimals, unit, "+"),
        "verdict": ("better" if difference * better > 0 else "worse") if difference else None,
        "paper": [number(PAPER[signal].get(key)) for signal in signals],
    }


def _other_metrics(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the numbers among the metrics that are not in `ROWS`."""
    known = {*ROWS, *(key + COPY for key in ROWS), "n", "n_moving", "psnr_moving_gain"}
    known |= {"drag_distance_target", "sketch_distance_target"}
    return [(k, number(v)) for k, v in metrics.items() if k not in known and isinstance(v, int | float)]


def _layers(correspondence: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return the correspondence of each layer (the paper's Figure 8 as numbers)."""
    return [
        {
            "name": name,
            "tokens": row["tokens"],
            "error": number(row["error"], 1, " px"),
            "within": [f"{100 * row[f'within_{n}']:.1f} %" for n in (1, 2, 4)],
        }
        for name, row in correspondence.items()
    ]
