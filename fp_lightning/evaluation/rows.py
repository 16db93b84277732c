"""How metrics are written in reports: labels, directions, units, and the values of the paper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

PAPER = {  # FramePainter's row of Table 1, by signal
    "sketch": {"clip_fid": 7.783, "lpips": 0.140, "ssim": 0.859},
    "coarse": {"clip_fid": 7.573, "lpips": 0.132, "ssim": 0.888},
    "points": {"clip_fid": 8.513, "lpips": 0.166, "ssim": 0.825},
}
COPY = "_copy_source"  # ends the name of a score of the unedited source


class Row(NamedTuple):
    """How a metric is written in pages and tables."""

    label: str
    better: int  # 1 if higher is better, -1 if lower is better
    unit: str
    decimals: int

    @property
    def arrow(self) -> str:
        """↑ if higher is better, else ↓."""
        return "↑" if self.better > 0 else "↓"


ROWS = {  # by name in metrics.json
    "psnr_moving": Row("PSNR, moving region", 1, " dB", 2),
    "psnr_background": Row("PSNR, background", 1, " dB", 2),
    "psnr": Row("PSNR", 1, " dB", 2),
    "ssim": Row("SSIM", 1, "", 3),
    "ssim_moving": Row("SSIM, moving region", 1, "", 3),
    "ssim_background": Row("SSIM, background", 1, "", 3),
    "lpips": Row("LPIPS", -1, "", 3),
    "lpips_moving": Row("LPIPS, moving region", -1, "", 3),
    "lpips_background": Row("LPIPS, background", -1, "", 3),
    "clip_fid": Row("CLIP-FID", -1, "", 3),
    "fidelity": Row("Fidelity to the source (1 − LPIPS)", 1, "", 3),
    "drag_distance": Row("Drag distance", -1, " px", 2),
    "sketch_distance": Row("Sketch distance", -1, " px", 2),
}


def number(value: Any, decimals: int = 3, unit: str = "", sign: str = "") -> str:
    """Format a number for a page; anything that is not a finite number becomes a dash.

    Args:
        decimals, unit: of floats; integers are printed plain.
        sign: "+" to print the sign of positive numbers.
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:{sign}d}" if isinstance(value, int) else f"{value:{sign}.{decimals}f}{unit}".replace("-", "−")


def interval_text(interval: Sequence[float] | None, decimals: int) -> str:
    """Format an interval, without unit; empty if there is none."""
    return " to ".join(number(float(x), decimals) for x in interval) if interval else ""


def reasons(not_measured: Mapping[str, str]) -> dict[str, list[str]]:
    """Group the names of metrics that were not measured by the reason."""
    by_reason: dict[str, list[str]] = {}
    for key, reason in not_measured.items():
        by_reason.setdefault(reason, []).append(key)
    return by_reason
