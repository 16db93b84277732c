"""What an evaluation leaves behind: metrics.json, report.html and sheets of images.

The report is one file: images are inlined, nothing is requested from anywhere, and it follows the reader's
light or dark theme.
"""

from __future__ import annotations

import io
import json
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .files import write_atomic
from .types import EditBatch, to_uint8

COLUMNS = ("source", "signal", "edited", "target")
SMALL = 256  # pixels: narrower images are shown enlarged and stored without loss
GREY = 128  # separators and missing images of a contact sheet
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
    "lpips": ("LPIPS", -1, "", 3),
    "clip_fid": ("CLIP-FID", -1, "", 3),
}


@dataclass
class ReportSample:
    """One edit as the report shows it; images are uint8 [3, h, w], None where there is none."""

    name: str
    source: Tensor
    signal: Tensor | None
    edited: Tensor
    target: Tensor | None = None
    scores: dict[str, float] = field(default_factory=dict)  # as `EditMetrics.per_sample` has them

    @staticmethod
    def of(edited: Tensor, batch: EditBatch, limit: int | None = None) -> list[ReportSample]:
        """The first `limit` samples of a batch, on the CPU; edited is float [b, 3, h, w] in [-1, 1]."""
        return [
            ReportSample(
                name,
                source=to_uint8(batch.source[i]).cpu(),
                signal=signal_image(batch, i),
                edited=to_uint8(edited[i]).cpu(),
                target=None if batch.target is None else to_uint8(batch.target[i]).cpu(),
            )
            for i, name in enumerate(batch.name[:limit])
        ]


def signal_image(batch: EditBatch, index: int) -> Tensor | None:
    """What the user gave, uint8 [3, h, w] on the CPU: the control image, or the source, with drags as arrows.

    None if the sample has neither control nor points. An arrow ends in a dot, at the target position.
    """
    drawn = batch.control is not None and (batch.control_valid is None or bool(batch.control_valid[index]))
    if batch.control is not None and drawn:
        image = (batch.control[index].float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()
    else:
        image = to_uint8(batch.source[index]).cpu()
    points = torch.zeros(0, 4) if batch.points is None else batch.points[index]
    if batch.points_valid is not None:
        points = points[batch.points_valid[index]]
    if not len(points):
        return image if drawn else None
    canvas = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    draw, radius = ImageDraw.Draw(canvas), max(1, image.shape[-1] // 96)
    for x_src, y_src, x_tgt, y_tgt in (points.float().cpu() - 0.5).tolist():  # PIL counts from pixel centres
        draw.line((x_src, y_src, x_tgt, y_tgt), fill="#ffd60a", width=radius)
        draw.ellipse((x_tgt - radius, y_tgt - radius, x_tgt + radius, y_tgt + radius), fill="#ff2d55")
    return to_tensor(canvas)


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image → uint8 [3, h, w]."""
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(*image.size[::-1], 3).permute(2, 0, 1)


def encode(image: Tensor, image_format: str = "PNG", **options: Any) -> bytes:
    """uint8 [3, h, w] → the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, image_format, **options)
    return buffer.getvalue()


def contact_sheet(samples: Sequence[ReportSample], gap: int = 2) -> Tensor:
    """source | signal | edited | target, a row per sample, uint8 [3, H, W]; a missing image stays grey.

    Raises:
        ValueError: there is no sample, or the images differ in size.
    """
    images = [getattr(sample, column) for sample in samples for column in COLUMNS]
    sizes = sorted({tuple(image.shape) for image in images if image is not None})
    if len(sizes) != 1:
        raise ValueError(f"a contact sheet needs images of one size, got {[list(size) for size in sizes]}")
    _, height, width = sizes[0]
    sheet = torch.full(
        (3, len(samples) * (height + gap) - gap, len(COLUMNS) * (width + gap) - gap), GREY, dtype=torch.uint8
    )
    for i, image in enumerate(images):
        top, left = i // len(COLUMNS) * (height + gap), i % len(COLUMNS) * (width + gap)
        if image is not None:
            sheet[:, top : top + height, left : left + width] = image
    return sheet


def write_metrics(folder: str | Path, metrics: Mapping[str, Any]) -> Path:
    """Writes `<folder>/metrics.json`; a number that is not finite becomes null with its reason."""
    broken = {key: value for key, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)}
    reasons = {**metrics.get("not_measured", {}), **{key: f"the value is {value}" for key, value in broken.items()}}
    content = {**metrics, **dict.fromkeys(broken), "not_measured": reasons}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_atomic(Path(folder) / "metrics.json", text.encode())


def write_report(
    folder: str | Path,
    metrics: Mapping[str, Any],
    samples: Sequence[ReportSample],
    title: str,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `<folder>/report.html`.

    Args:
        metrics: as `EditMetrics.compute` returns them; unknown numbers get a row of their own.
        settings: shown as they are; with "signal" among them ("sketch", "coarse" or "points"), only the
            paper's row for that signal stands beside the metrics, else all three do.
    """
    settings = settings or {}
    signals = [s for s in PAPER if s == settings.get("signal")] or list(PAPER)
    missing = metrics.get("not_measured", {})
    body = [
        f"<header><h1>{escape(title)}</h1>{_headline(metrics)}</header>",
        f"<section><h2>Metrics</h2>{_table(metrics, signals)}{_notes(missing)}</section>",
        f"<section><h2>Samples</h2>{''.join(map(_sample, samples)) or '<p>None were kept.</p>'}</section>",
    ]
    if settings:
        rows = "".join(f"<tr><th>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in settings.items())
        body.append(f"<section><h2>Settings</h2><table class=settings>{rows}</table></section>")
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
    return write_atomic(Path(folder) / "report.html", page.encode())


def _number(value: Any, decimals: int = 3, unit: str = "", sign: str = "") -> str:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:{sign}d}" if isinstance(value, int) else f"{value:{sign}.{decimals}f}{unit}".replace("-", "−")


def _headline(metrics: Mapping[str, Any]) -> str:
    tiles = [
        (_number(metrics.get("psnr_moving_gain"), 2, " dB", "+"), "over the unedited source, where something moves"),
        (_number(metrics.get("ssim")), "SSIM"),
        (_number(metrics.get("n")), f"images, {_number(metrics.get('n_moving'))} of them with motion"),
    ]
    return "<div class=tiles>" + "".join(f"<p><b>{value}</b>{label}</p>" for value, label in tiles) + "</div>"


def _table(metrics: Mapping[str, Any], signals: Sequence[str]) -> str:
    """A row per metric: edited, the source unchanged, the difference, the paper's."""
    paper = "".join(f"<th>Paper*<small>{signal}</small></th>" for signal in signals)
    rows = [f"<tr><th>Metric</th><th>Edited</th><th>Source, unedited</th><th>Difference</th>{paper}</tr>"]
    for key, (label, better, unit, decimals) in ROWS.items():
        value, floor = metrics.get(key), metrics.get(key + COPY)
        lead = value - floor if value is not None and floor is not None else None
        verdict = ""
        if lead:
            verdict = " class=good title=better" if lead * better > 0 else " class=bad title=worse"
        cells = [
            f"<th>{label} <span>{'↑' if better > 0 else '↓'}</span></th>",
            f"<td><b>{_number(value, decimals, unit)}</b></td>"
            if value is not None or key not in metrics.get("not_measured", {})
            else "<td class=none>not measured</td>",
            f"<td>{_number(floor, decimals, unit)}</td>",
            f"<td{verdict}>{_number(lead, decimals, unit, '+')}</td>",
            *(f"<td>{_number(PAPER[signal].get(key))}</td>" for signal in signals),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    known = {*ROWS, *(key + COPY for key in ROWS), "n", "n_moving", "psnr_moving_gain"}
    for key, value in metrics.items():
        if key not in known and isinstance(value, int | float):
            rows.append(f"<tr><th>{escape(key)}</th><td><b>{_number(value)}</b></td></tr>")
    return f"<div class=scroll><table class=metrics>{''.join(rows)}</table></div>"


def _notes(missing: Mapping[str, str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for key, reason in missing.items():
        by_reason.setdefault(reason, []).append(key)
    items = "".join(f"<li><b>{escape(', '.join(keys))}</b>: {escape(why)}</li>" for why, keys in by_reason.items())
    return (
        "<p class=note>PSNR, SSIM and LPIPS are means over images of 8 bits. ↑ more is better, ↓ less is better. "
        "“Source, unedited” scores the source itself: the floor to beat where something moves, "
        "and close to the best there is in the background.<br>"
        "* FramePainter (arXiv 2501.08225), Table 1: Stable Video Diffusion at 576 × 1024 on the paper's own "
        "evaluation pairs. Other data and sizes: <b>not directly comparable</b>.</p>"
        + (f"<p class=note>Not measured:</p><ul class=note>{items}</ul>" if items else "")
    )


def _sample(sample: ReportSample) -> str:
    scores = "".join(
        f"<span>{label} <b>{_number(sample.scores[key], decimals, unit)}</b></span>"
        for key, label, decimals, unit in (
            ("psnr_moving", "PSNR, moving", 2, " dB"),
            ("psnr_moving" + COPY, "source unedited", 2, " dB"),
            ("ssim", "SSIM", 3, ""),
            ("lpips", "LPIPS", 3, ""),
        )
        if key in sample.scores
    )
    figures = "".join(_figure(sample, column) for column in COLUMNS)
    heading = f"<h3>{escape(sample.name)}</h3><p class=scores>{scores}</p>"
    return f"<article>{heading}<div class=row>{figures}</div></article>"


def _figure(sample: ReportSample, column: str) -> str:
    image: Tensor | None = getattr(sample, column)
    height, width = (sample.source if image is None else image).shape[-2:]
    if image is None:
        blank = f'<div class=none style="aspect-ratio: {width} / {height}">no {column}</div>'
        return f"<figure>{blank}<figcaption>{column}</figcaption></figure>"
    small = width < SMALL
    data = encode(image) if small else encode(image, "WEBP", quality=90)
    source = f"data:image/{'png' if small else 'webp'};base64,{b64encode(data).decode()}"
    return (
        f'<figure><img{" class=small" if small else ""} width="{width}" height="{height}" '
        f'alt="{column} of {escape(sample.name)}" src="{source}"><figcaption>{column}</figcaption></figure>'
    )


STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c2024; --soft: #60646c; --line: #e3e5e8; --tile: #f5f6f8;
  --good: #18794e; --bad: #c62a2f }
@media (prefers-color-scheme: dark) { :root { --page: #131416; --ink: #edeef0; --soft: #a0a4ab; --line: #303338;
  --tile: #1d1f22; --good: #4cc38a; --bad: #ff8589 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 20px; overflow-wrap: anywhere }
h2 { font-size: 18px; margin: 40px 0 12px }
h3 { font-size: 15px; margin: 0; overflow-wrap: anywhere }
.tiles { display: grid; grid-template-columns: 2fr 1fr 1fr; gap: 12px }
.tiles p { margin: 0; padding: 14px 16px; background: var(--tile); border-radius: 8px; color: var(--soft) }
.tiles b { display: block; color: var(--ink); font-size: 26px; line-height: 1.25; font-weight: 650 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); text-align: right; font-weight: 400 }
th:first-child, .settings td { text-align: left }
tr:first-child th { color: var(--soft); font-size: 13px; vertical-align: bottom }
th small { display: block; font-size: inherit }
th span, td.none, .note { color: var(--soft) }
td b { font-weight: 650 } .metrics td { white-space: nowrap }
.good { color: var(--good) } .bad { color: var(--bad) }
.settings th { color: var(--soft); font-size: 15px; width: 30%; vertical-align: top }
.settings td { overflow-wrap: anywhere }
.note { font-size: 13px; margin: 12px 0 0; overflow-wrap: anywhere }
ul.note { margin-top: 2px; padding-left: 18px }
article { padding: 16px 0; border-top: 1px solid var(--line) }
.scores { margin: 2px 0 10px; font-size: 13px; color: var(--soft) }
.scores span { margin-right: 16px; white-space: nowrap }
.scores b { color: var(--ink); font-variant-numeric: tabular-nums }
.row { display: grid; grid-template-columns: repeat(4, 1fr); gap: 10px }
figure { margin: 0 }
img { display: block; width: 100%; height: auto; border-radius: 4px }
img.small { image-rendering: pixelated }
figcaption { font-size: 13px; color: var(--soft); margin-top: 4px }
div.none { display: grid; place-items: center; border: 1px dashed var(--line); border-radius: 4px;
  color: var(--soft); font-size: 13px }
@media (max-width: 640px) { .row, .tiles { grid-template-columns: 1fr 1fr }
  .tiles p:first-child { grid-column: span 2 } }
"""
