"""Prepare histograms of scores and the gallery of samples for the templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from torch import Tensor

from fp_lightning.evaluation.rows import COPY, ROWS, number
from fp_lightning.evaluation.samples import ReportSample
from fp_lightning.media.pictures import SMALL, data_url

BINS, BIN_WIDTH, HEIGHT = 24, 10, 60  # of a histogram, in units of its SVG
CARD_SCORES = (  # shown above the images of a sample: name, label, decimals, unit
    ("psnr_moving", "PSNR, moving region", 2, " dB"),
    ("psnr_moving" + COPY, "unedited source", 2, " dB"),
    ("ssim", "SSIM", 3, ""),
    ("lpips", "LPIPS", 3, ""),
    ("drag_distance", "drag distance", 1, " px"),
    ("sketch_distance", "sketch distance", 1, " px"),
)


def histograms(rows: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return a histogram for each metric with at least three scores and more than one value.

    Args:
        rows: scores by name, one mapping per image. Scores of the unedited source are drawn behind.
    """
    plots = []
    for key, (label, better, unit, decimals) in ROWS.items():
        scores = [row[key] for row in rows if key in row]
        floor = [row[key + COPY] for row in rows if key + COPY in row]
        if len(scores) >= 3 and len({*scores, *floor}) > 1:
            low, high = min([*scores, *floor]), max([*scores, *floor])
            plots.append(
                {
                    "label": label,
                    "better": better,
                    "width": BIN_WIDTH * BINS,
                    "height": HEIGHT,
                    "bars": _bars({"floor": floor, "ours": scores}, low, high),
                    "median": f"{(median(scores) - low) / (high - low) * BIN_WIDTH * BINS:.1f}",
                    "low": number(float(low), decimals, unit),
                    "high": number(float(high), decimals, unit),
                }
            )
    return plots


def _bars(sides: Mapping[str, Sequence[float]], low: float, high: float) -> list[dict[str, Any]]:
    """Return a bar for each bin that is not empty; heights are relative to the tallest bar of all sides."""
    counts = {side: [0] * BINS for side in sides}
    for side, values in sides.items():
        for value in values:
            counts[side][min(BINS - 1, int((value - low) / (high - low) * BINS))] += 1
    top = max(max(bins) for bins in counts.values())
    return [
        {
            "side": side,
            "x": BIN_WIDTH * i,
            "y": f"{HEIGHT - HEIGHT * n / top:.1f}",
            "width": BIN_WIDTH,
            "height": f"{HEIGHT * n / top:.1f}",
        }
        for side, bins in counts.items()
        for i, n in enumerate(bins)
        if n
    ]


def gallery(samples: Sequence[ReportSample]) -> dict[str, Any]:
    """Return the variables of the gallery: its samples, and the scores that sort them."""
    known = [key for key in ROWS if any(key in sample.scores for sample in samples)]
    options = [
        (f"{key} {sign}", f"{ROWS[key][0]}, {word} first")
        for key in known
        for word, sign in (("worst", ROWS[key][1]), ("best", -ROWS[key][1]))
    ]
    return {"samples": [_card(sample, known) for sample in samples], "sort_options": options}


def _card(sample: ReportSample, known: Sequence[str]) -> dict[str, Any]:
    return {
        "name": sample.name,
        "sort_keys": {key: f"{sample.scores[key]:.6g}" for key in known if key in sample.scores},
        "scores": [
            (label, number(sample.scores[key], decimals, unit))
            for key, label, decimals, unit in CARD_SCORES
            if key in sample.scores
        ],
        "images": [_image(sample, column, image) for column, image in sample.columns().items()],
    }


def _image(sample: ReportSample, column: str, image: Tensor | None) -> dict[str, Any]:
    """Return an image of a card. A missing image has no URL, and the size of the source."""
    height, width = (sample.source if image is None else image).shape[-2:]
    url = None if image is None else data_url(image)
    return {"column": column, "url": url, "width": width, "height": height, "small": width < SMALL}
