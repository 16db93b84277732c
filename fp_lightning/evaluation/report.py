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
from statistics import median
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fp_lightning.files import write_atomic
from fp_lightning.types import EditBatch, to_uint8

COLUMNS = ("source", "signal", "edited", "target")
SMALL = 256  # pixels: narrower images are shown enlarged and stored without loss
QUALITY = 85  # of WebP
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
BINS = 24  # of a histogram


@dataclass
class ReportSample:
    """One edit as the report shows it; images are uint8 [3, h, w], None where there is none."""

    name: str
    source: Tensor
    signal: Tensor | None
    edited: Tensor
    target: Tensor | None = None
    scores: dict[str, float] = field(default_factory=dict)  # as `EditMetrics.per_sample` has them
    others: dict[str, Tensor] = field(default_factory=dict)  # the same edit by other systems, by their names
    label: str = "edited"  # what the edited image is called

    def columns(self) -> dict[str, Tensor | None]:
        """The images by what they are called, in the order in which they are shown."""
        return {
            "source": self.source, "signal": self.signal, self.label: self.edited, **self.others, "target": self.target
        }  # fmt: skip

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
    correspondence: Mapping[str, Mapping[str, float]] | None = None,
) -> Path:
    """Writes `<folder>/report.html`.

    Args:
        metrics: as `EditMetrics.compute` returns them; unknown numbers get a row of their own.
        settings: shown as they are; with "signal" among them ("sketch", "coarse" or "points"), only the
            paper's row for that signal stands beside the metrics, else all three do.
        correspondence: by layer, as `CorrespondenceMetrics.compute` returns it.
    """
    settings = settings or {}
    signals = [s for s in PAPER if s == settings.get("signal")] or list(PAPER)
    missing = metrics.get("not_measured", {})
    body = [
        f"<header><h1>{escape(title)}</h1>{_headline(metrics)}</header>",
        f"<section><h2>Metrics</h2>{_table(metrics, signals)}{NOTE}{missing_list(missing)}</section>",
        _correspondence(correspondence or {}),
        distributions([sample.scores for sample in samples]),
        gallery(samples),
    ]
    if settings:
        body.append(settings_table(settings))
    return write_page(Path(folder) / "report.html", title, body)


def _correspondence(layers: Mapping[str, Mapping[str, float]]) -> str:
    """The paper's Figure 8 as numbers, a row a layer."""
    if not layers:
        return ""
    rows = [
        "<tr><th>Layer</th><th>Tokens</th><th>Mean error</th><th>within 1 token</th><th>2</th><th>4</th></tr>",
        *(
            f"<tr><th>{escape(name)}</th><td>{row['tokens']}</td><td>{number(row['error'], 1, ' px')}</td>"
            + "".join(f"<td>{100 * row[f'within_{n}']:.1f} %</td>" for n in (1, 2, 4))
            + "</tr>"
            for name, row in layers.items()
        ),
    ]
    return (
        "<section><h2>Correspondence</h2><p class=note>How far the source token with the most attention is from the "
        "tracked one, over all target tokens with a visible track; pixels at 512 px width.</p>"
        f"<div class=scroll><table class=metrics>{''.join(rows)}</table></div></section>"
    )


def write_page(path: Path, title: str, body: Sequence[str]) -> Path:
    """Writes an HTML page of sections that holds all that it needs, the gallery's script too."""
    return write_atomic(path, html_page(title, "".join(body), script=SCRIPT).encode())


def html_page(title: str, body: str, style: str = "", script: str = "") -> str:
    """A whole page in the project's style; nothing in it is requested from anywhere."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}{style}</style></head>\n'
        f"<body><main>{body}</main>{f'<script>{script}</script>' if script else ''}</body></html>\n"
    )


def settings_table(settings: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><th>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in settings.items())
    return f"<section><h2>Settings</h2><table class=settings>{rows}</table></section>"


def gallery(samples: Sequence[ReportSample]) -> str:
    """All samples, to be sorted by any of their scores, and a dialog that lays two images over each other."""
    if not samples:
        return "<section><h2>Samples</h2><p>None were kept.</p></section>"
    known = [key for key in ROWS if any(key in sample.scores for sample in samples)]
    options = "".join(
        f"<option value='{key} {sign}'>{ROWS[key][0]}, {word} first</option>"
        for key in known
        for word, sign in (("worst", ROWS[key][1]), ("best", -ROWS[key][1]))
    )
    choose = f"<label>Sort by <select id=sort><option value=''>name</option>{options}</select></label>" if known else ""
    cards = "".join(_sample(sample, known) for sample in samples)
    return (
        f"<section><h2>Samples</h2><p class=bar>{choose}<span>Click an image to compare it with another.</span></p>"
        f"<div id=gallery>{cards}</div></section>{DIALOG}"
    )


def distributions(rows: Sequence[Mapping[str, float]], label: str = "edited", title: str = "Distributions") -> str:
    """Histograms of every score over images, with the source's own behind; nothing for less than three images."""
    plots = []
    for key, (name, better, unit, decimals) in ROWS.items():
        ours = [row[key] for row in rows if key in row]
        floor = [row[key + COPY] for row in rows if key + COPY in row]
        if len(ours) >= 3 and len({*ours, *floor}) > 1:
            arrow = "↑" if better > 0 else "↓"
            plot = _histogram(ours, floor, unit, decimals)
            plots.append(f"<figure>{plot}<figcaption>{name} <span>{arrow}</span></figcaption></figure>")
    if not plots:
        return ""
    colours = f"<i class=ours></i>{escape(label)} <i class=floor></i>source, unedited"
    legend = f"<p class=note>{colours}. The line is the median.</p>"
    return f"<section><h2>{escape(title)}</h2>{legend}<div class=plots>{''.join(plots)}</div></section>"


def _histogram(ours: Sequence[float], floor: Sequence[float], unit: str, decimals: int) -> str:
    low, high = min([*ours, *floor]), max([*ours, *floor])

    def counts(values: Sequence[float]) -> list[int]:
        bins = [0] * BINS
        for value in values:
            bins[min(BINS - 1, int((value - low) / (high - low) * BINS))] += 1
        return bins

    sides = [("floor", counts(floor)), ("ours", counts(ours))]
    top = max(max(bins) for _, bins in sides)
    bars = "".join(
        f'<rect class={side} x="{10 * i}" y="{60 - 60 * n / top:.1f}" width="10" height="{60 * n / top:.1f}"/>'
        for side, bins in sides
        for i, n in enumerate(bins)
        if n
    )
    at = (median(ours) - low) / (high - low) * 10 * BINS
    ends = (number(float(value), decimals, unit) for value in (low, high))
    return (
        f'<svg viewBox="0 0 {10 * BINS} 60" preserveAspectRatio="none" role="img" aria-label="histogram">{bars}'
        f'<path d="M{at:.1f} 0V60"/></svg><p class=ends><span>{"</span><span>".join(ends)}</span></p>'
    )


def number(value: Any, decimals: int = 3, unit: str = "", sign: str = "") -> str:
    """A number as it is printed on a page; a dash for anything else."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:{sign}d}" if isinstance(value, int) else f"{value:{sign}.{decimals}f}{unit}".replace("-", "−")


def _headline(metrics: Mapping[str, Any]) -> str:
    tiles = [
        (number(metrics.get("psnr_moving_gain"), 2, " dB", "+"), "over the unedited source, where something moves"),
        (number(metrics.get("ssim")), "SSIM"),
        (number(metrics.get("n")), f"images, {number(metrics.get('n_moving'))} of them with motion"),
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
            f"<td><b>{number(value, decimals, unit)}</b>{interval_text(metrics, key, decimals)}</td>"
            if value is not None or key not in metrics.get("not_measured", {})
            else "<td class=none>not measured</td>",
            f"<td>{number(floor, decimals, unit)}{_truth(metrics, key, decimals, unit)}</td>",
            f"<td{verdict}>{number(lead, decimals, unit, '+')}</td>",
            *(f"<td>{number(PAPER[signal].get(key))}</td>" for signal in signals),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    known = {*ROWS, *(key + COPY for key in ROWS), "n", "n_moving", "psnr_moving_gain"}
    known |= {"drag_distance_target", "sketch_distance_target"}
    for key, value in metrics.items():
        if key not in known and isinstance(value, int | float):
            rows.append(f"<tr><th>{escape(key)}</th><td><b>{number(value)}</b></td></tr>")
    return f"<div class=scroll><table class=metrics>{''.join(rows)}</table></div>"


def _truth(metrics: Mapping[str, Any], key: str, decimals: int, unit: str) -> str:
    """The true target's own score, of what is measured by estimates."""
    value = metrics.get(f"{key}_target")
    return "" if value is None else f"<small>true target {number(value, decimals, unit)}</small>"


def interval_text(metrics: Mapping[str, Any], key: str, decimals: int) -> str:
    """A metric's 95 % interval as small print, nothing where there is none."""
    found = metrics.get("intervals", {}).get(key)
    return "" if not found else f"<small>{' to '.join(number(float(x), decimals) for x in found)}</small>"


def missing_list(missing: Mapping[str, str]) -> str:
    """What was not measured and why, nothing if all was."""
    by_reason: dict[str, list[str]] = {}
    for key, reason in missing.items():
        by_reason.setdefault(reason, []).append(key)
    items = "".join(f"<li><b>{escape(', '.join(keys))}</b>: {escape(why)}</li>" for why, keys in by_reason.items())
    return f"<p class=note>Not measured:</p><ul class=note>{items}</ul>" if items else ""


NOTE = (
    "<p class=note>PSNR, SSIM and LPIPS are means over images of 8 bits, distances in pixels at 512 px width; the "
    "small print is the 95 % bootstrap interval over images. ↑ more is better, ↓ less is better. "
    "“Source, unedited” scores the source itself: the floor to beat where something moves, "
    "and close to the best there is in the background.<br>"
    "* FramePainter (arXiv 2501.08225), Table 1: Stable Video Diffusion at 576 × 1024 on the paper's own "
    "evaluation pairs. Other data and sizes: <b>not directly comparable</b>.</p>"
)


def _sample(sample: ReportSample, sorted_by: Sequence[str]) -> str:
    scores = "".join(
        f"<span>{label} <b>{number(sample.scores[key], decimals, unit)}</b></span>"
        for key, label, decimals, unit in (
            ("psnr_moving", "PSNR, moving", 2, " dB"),
            ("psnr_moving" + COPY, "source unedited", 2, " dB"),
            ("ssim", "SSIM", 3, ""),
            ("lpips", "LPIPS", 3, ""),
            ("drag_distance", "drags", 1, " px"),
            ("sketch_distance", "lines", 1, " px"),
        )
        if key in sample.scores
    )
    data = "".join(f' data-{key}="{sample.scores[key]:.6g}"' for key in sorted_by if key in sample.scores)
    columns = sample.columns()
    figures = "".join(_figure(sample, column, image) for column, image in columns.items())
    heading = f"<h3>{escape(sample.name)}</h3><p class=scores>{scores}</p>"
    return f"<article{data}>{heading}<div class=row style='--columns: {len(columns)}'>{figures}</div></article>"


def _figure(sample: ReportSample, column: str, image: Tensor | None) -> str:
    height, width = (sample.source if image is None else image).shape[-2:]
    caption = f"<figcaption>{escape(column)}</figcaption>"
    if image is None:
        return f'<figure><div class=none style="aspect-ratio: {width} / {height}">no {column}</div>{caption}</figure>'
    small = " class=small" if width < SMALL else ""
    return (
        f'<figure><img{small} width="{width}" height="{height}" decoding="async" '
        f'alt="{escape(column)} of {escape(sample.name)}" src="{data_url(image)}">{caption}</figure>'
    )


def data_url(image: Tensor) -> str:
    """uint8 [3, h, w] as it stands in a page: without loss if it is small, else WebP."""
    small = image.shape[-1] < SMALL
    data = encode(image) if small else encode(image, "WEBP", quality=QUALITY)
    return f"data:image/{'png' if small else 'webp'};base64,{b64encode(data).decode()}"


DIALOG = """<dialog id=compare><div class=stage><img id=under alt=""><img id=over alt=""></div>
<p class=bar><select id=left></select><input id=share type=range min=0 max=100 value=50 aria-label="where they meet">
<select id=right></select><button id=blink>Blink</button><button id=close>Close</button></p></dialog>"""
SCRIPT = """
const $ = id => document.getElementById(id), list = $('gallery');
if ($('sort')) {
  const names = [...list.children];
  $('sort').onchange = () => {
    const [key, sign] = $('sort').value.split(' ');
    const value = card => card.hasAttribute('data-' + key) ? sign * card.getAttribute('data-' + key) : Infinity;
    list.append(...(key ? [...names].sort((a, b) => value(a) - value(b)) : names));
  };
}
if ($('compare')) {
  let images = [], timer = 0;
  const meet = share => $('over').style.clipPath = `inset(0 ${100 - share}% 0 0)`;
  const stop = () => { clearInterval(timer); timer = 0; meet($('share').value) };
  const show = () => { $('over').src = images[$('left').value].src; $('under').src = images[$('right').value].src };
  list.onclick = event => {
    if (event.target.tagName != 'IMG') return;
    images = [...event.target.closest('.row').querySelectorAll('img')];
    const options = images.map((image, i) => new Option(image.nextSibling.textContent, i));
    $('left').replaceChildren(...options.map(option => option.cloneNode(true)));
    $('right').replaceChildren(...options);
    const picked = images.indexOf(event.target);
    $('left').value = picked ? 0 : images.length - 1;
    $('right').value = picked;
    $('over').className = $('under').className = event.target.className;
    show(); stop(); $('compare').showModal();
  };
  $('left').onchange = $('right').onchange = show;
  $('share').oninput = stop;
  $('blink').onclick = () => {
    if (timer) return stop();
    let on = 0;
    timer = setInterval(() => meet(100 * (on ^= 1)), 500);
  };
  $('close').onclick = () => $('compare').close();
  $('compare').onclose = stop;
}
"""
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
th span, td.none, .note, td small { color: var(--soft) } td small { display: block; font-size: 12px }
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
.row { display: grid; grid-template-columns: repeat(var(--columns, 4), 1fr); gap: 10px }
article { content-visibility: auto; contain-intrinsic-size: auto 340px } #gallery img { cursor: zoom-in }
.bar { display: flex; flex-wrap: wrap; gap: 12px; align-items: center; color: var(--soft); font-size: 13px }
select, button { font: inherit; color: inherit; background: var(--tile); border: 1px solid var(--line);
  border-radius: 6px; padding: 4px 8px }
button:disabled { opacity: .4 } input[type=range] { flex: 1; min-width: 120px }
dialog { border: 1px solid var(--line); border-radius: 10px; background: var(--page); color: var(--ink); width: 96vw;
  max-width: 1100px } dialog::backdrop { background: #0009 }
.stage { position: relative } .stage img { border-radius: 0; max-height: 78vh; object-fit: contain }
#over { position: absolute; inset: 0; height: 100% }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 18px }
svg { display: block; width: 100%; height: 72px } rect.ours { fill: #3b82f6; opacity: .75 }
rect.floor { fill: var(--soft); opacity: .35 } svg path { stroke: var(--ink); vector-effect: non-scaling-stroke }
.ends { display: flex; justify-content: space-between; margin: 2px 0 0; font-size: 12px; color: var(--soft) }
i.ours, i.floor { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin: 0 5px 0 10px;
  background: #3b82f6 } i.floor { background: var(--line) }
figure { margin: 0 }
img { display: block; width: 100%; height: auto; border-radius: 4px }
img.small { image-rendering: pixelated }
figcaption { font-size: 13px; color: var(--soft); margin-top: 4px }
div.none { display: grid; place-items: center; border: 1px dashed var(--line); border-radius: 4px;
  color: var(--soft); font-size: 13px }
@media (max-width: 640px) { .row, .tiles { grid-template-columns: 1fr 1fr }
  .tiles p:first-child { grid-column: span 2 } }
"""
