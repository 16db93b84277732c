"""The metrics as reports show them: labels, directions, units, and the paper's values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

PAPER = {  # FramePainter's row of Table 1
    "sketch": {"clip_fid": 7.783, "lpips": 0.140, "ssim": 0.859},
    "coarse": {"clip_fid": 7.573, "lpips": 0.132, "ssim": 0.888},
    "points": {"clip_fid": 8.513, "lpips": 0.166, "ssim": 0.825},
}
COPY = "_copy_source"
ROWS = {  # name in metrics.json: (label, sign of better, unit, decimals)
    "psnr_moving": ("PSNR where something moves", 1, " dB", 2),
    "psnr_background": ("PSNR of the background", 1, " dB", 2),
    "psnr": ("PSNR", 1, " dB", 2),
    "ssim": ("SSIM", 1, "", 3),
    "ssim_moving": ("SSIM where something moves", 1, "", 3),
    "ssim_background": ("SSIM of the background", 1, "", 3),
    "lpips": ("LPIPS", -1, "", 3),
    "lpips_moving": ("LPIPS where something moves", -1, "", 3),
    "lpips_background": ("LPIPS of the background", -1, "", 3),
    "clip_fid": ("CLIP-FID", -1, "", 3),
    "fidelity": ("Fidelity to the source, 1 − LPIPS", 1, "", 3),
    "drag_distance": ("Distance of dragged points", -1, " px", 2),
    "sketch_distance": ("Distance of drawn lines", -1, " px", 2),
}


def number(value: Any, decimals: int = 3, unit: str = "", sign: str = "") -> str:
    """Format a number for a page. Anything that is not a finite number is a dash."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:{sign}d}" if isinstance(value, int) else f"{value:{sign}.{decimals}f}{unit}".replace("-", "−")


def interval_text(interval: Sequence[float] | None, decimals: int) -> str:
    """Format a 95 % interval; empty if there is none."""
    return " to ".join(number(float(x), decimals) for x in interval) if interval else ""


def reasons(not_measured: Mapping[str, str]) -> dict[str, list[str]]:
    """Group the metrics that were not measured by the reason why."""
    by_reason: dict[str, list[str]] = {}
    for key, reason in not_measured.items():
        by_reason.setdefault(reason, []).append(key)
    return by_reason
