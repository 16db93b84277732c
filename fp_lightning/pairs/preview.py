"""preview.html: what a folder of pairs holds and what was turned away, for people to judge by looking.

One file in the style of the evaluation's report: images are inlined and nothing is requested.
Lengths of flow on the page are in pixels at 512 px width.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.evaluation.report import encode, html_page, signal_image
from fp_lightning.files import write_atomic
from fp_lightning.media.video import VideoError, read_frames
from fp_lightning.pairs.shards import MANIFEST, PairStore, shard_path
from fp_lightning.signals.coarse import coarse_edit
from fp_lightning.signals.points import points
from fp_lightning.signals.sketch import sketch
from fp_lightning.types import MOVING_PIXELS, MOVING_WIDTH, EditBatch, VideoPair, to_unit_range, token_centres

T = TypeVar("T")

WIDTH, QUALITY = 320, 88  # of every image on the page, in pixels and of WebP
LISTED = 200  # videos in the table at most
ROUNDED = 1e-4  # seconds by which a recorded time may be later than its frame
TOKENS = 40  # tokens across whose tracks are drawn; of a finer grid, some are left out
REASONS = {
    "too_short": "The video is too short for two frames that far apart.",
    "too_close": "The frames that were read are not far enough apart in time.",
    "not_decoded": "One of the two frames could not be read from the video.",
    "cut": "The video cuts to another shot between the two frames.",
    "camera_or_global_motion": "Too little stands still: the camera moves, or nearly everything does.",
    "inconsistent": "Flow there and back disagree or the light changes, so what moved where is uncertain.",
    "duplicate": "Both frames look like those of a pair that was kept.",
    "motion_too_small": "Too little of the image moves.",
    "motion_too_large": "Something moves further than its flow can be trusted.",
}


class Candidate(NamedTuple):
    """Two frames that were tried and rejected."""

    video: str
    times: tuple[float, float]  # of source and target in seconds
    reason: str


def write_preview(root: str | Path, count: int = 24, rejected: int = 24, seed: int = 0) -> Path:
    """Writes `<root>/preview.html` and returns its path.

    Args:
        root: a folder of pairs, as `build_pairs` leaves it; it may hold rejected candidates only.
        count: pairs shown at most, spread over the videos.
        rejected: rejected candidates shown at most, spread over reasons and videos. Their frames are
            read from the videos again; a video that is gone or unreadable is named instead.
        seed: decides which are shown, and the drag points.

    Raises:
        InputError: `root` has no manifest, or its shards are not readable.
    """
    root = Path(root)
    if not (root / MANIFEST).is_file():
        raise InputError(f"no pairs in {root} (no {MANIFEST}); make some with `fp-lightning pairs VIDEOS --out {root}`")
    manifest = json.loads((root / MANIFEST).read_text())
    title = f"Pairs in {root.resolve().name}"
    body = [
        f"<header><h1>{escape(title)}</h1>{_tiles(manifest)}</header>",
        _outcomes(manifest),
        f"<section>{_videos(manifest['per_video'])}{_settings(manifest['settings'])}</section>",
        _pairs(root, manifest["pairs"], count, seed),
        _rejected(root, manifest, rejected, seed),
    ]
    page = html_page(title, "".join(body), PAGE_STYLE)
    return write_atomic(root / "preview.html", page.encode())


def flow_colours(flow: Tensor, full: float) -> Tensor:
    """Flow [2, h, w] → uint8 [3, h, w]: its direction as hue, its length as saturation, rest is white.

    The wheel of the Middlebury flow benchmark (Baker et al. 2011) with the hues of HSV evenly around it:
    right is red, left is cyan.

    Args:
        full: the length with full saturation, in the flow's unit; what is longer looks the same.
    """
    hue = torch.atan2(flow[1], flow[0]) * (3 / math.pi)  # in sectors of 60°
    saturation = (flow.norm(dim=0) / full).clamp(max=1)
    sector = (hue + torch.tensor([5.0, 3.0, 1.0])[:, None, None]) % 6
    missing = torch.minimum(sector, 4 - sector).clamp(0, 1)  # of red, green, blue in the pure hue
    return ((1 - saturation * missing) * 255).round().to(torch.uint8)


def tracks_image(pair: VideoPair, full: float) -> Tensor:
    """Tracks over the darkened target, uint8 [3, h, WIDTH].

    A dot on each token that moved and is visible, a line from it to where it was, both in the colour of
    that displacement; tokens that are not visible in the source are hatched. Of a grid finer than `TOKENS`
    across, only every second (third, …) is drawn.

    Args:
        full: as in `flow_colours`, in pixels of the pair.
    """
    target = _shown(pair.target)
    height, width = target.shape[1:]
    hidden = F.interpolate((~pair.visible)[None, None].float(), (height, width), mode="nearest-exact")[0] > 0
    hatch = (torch.arange(height)[:, None] + torch.arange(width)) % 6 < 2
    canvas = torch.where(hidden & hatch, 180, target * 0.4).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    step = -(-pair.visible.shape[1] // TOKENS)
    every = (..., slice(step // 2, None, step), slice(step // 2, None, step))
    centres, sources = token_centres(pair.tracks, pair.size)[every], pair.tracks[every]
    moved = sources - centres
    drawn = pair.visible[every] & (moved.norm(dim=0) > MOVING_PIXELS * pair.size[1] / MOVING_WIDTH)
    pixels = torch.cat([centres, sources])[:, drawn] * (WIDTH / pair.size[1]) - 0.5  # OpenCV counts from centres
    colours = flow_colours(moved, full)[:, drawn].T.tolist()
    for (x, y, x_source, y_source), colour in zip((pixels * 16).round().int().T.tolist(), colours, strict=True):
        cv2.line(canvas, (x, y), (x_source, y_source), colour, 1, cv2.LINE_AA, shift=4)  # sixteenths of pixels
        cv2.circle(canvas, (x, y), 32, colour, -1, cv2.LINE_AA, shift=4)
    return torch.from_numpy(canvas).permute(2, 0, 1)


def _shown(image: Tensor) -> Tensor:
    """uint8 [3, h, w] → the same at WIDTH pixels' width; pixels of smaller images stay squares."""
    height, width = image.shape[1:]
    size = max(1, round(height * WIDTH / width)), WIDTH
    if width < WIDTH:
        return F.interpolate(image[None], size, mode="nearest-exact")[0]
    resized = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return resized.round().to(torch.uint8)


def _img(image: Tensor | None, alt: str) -> str:
    """An image uint8 [3, h, w] as a tag that holds it; None leaves its place empty."""
    if image is None:
        return "<div class=none>no image</div>"
    shown = _shown(image)
    data = b64encode(encode(shown, "WEBP", quality=QUALITY)).decode()
    return f'<img width="{WIDTH}" height="{shown.shape[1]}" alt="{escape(alt)}" src="data:image/webp;base64,{data}">'


def _figure(image: Tensor | None, caption: str, name: str) -> str:
    return f"<figure>{_img(image, f'{caption} of {name}')}<figcaption>{caption}</figcaption></figure>"


def _blink(source: Tensor | None, target: Tensor | None, name: str) -> str:
    """Source and target side by side; a click, or space, lets them take turns in one place."""
    label = escape(f"source and target of {name} take turns in one place")
    return (
        f'<figure class=blink><label><input type="checkbox" aria-label="{label}">'
        f"{_img(source, f'source of {name}')}{_img(target, f'target of {name}')}</label>"
        "<figcaption><span>source</span><span>target</span></figcaption></figure>"
    )


def _scores(values: Mapping[str, str]) -> str:
    return "<p class=scores>" + " ".join(f"<span>{k} <b>{escape(v)}</b></span>" for k, v in values.items()) + "</p>"


def _times(source: float, target: float) -> str:
    return f"{source:.2f} s → {target:.2f} s"


def _tiles(manifest: Mapping[str, Any]) -> str:
    records = manifest["per_video"]
    used, failed = (sum(bool(record[key]) for record in records) for key in ("pairs", "error"))
    tiles = [
        (manifest["pairs"], "pairs"),
        (manifest["videos"], f"videos, {used} of them with pairs, {failed} with errors"),
        (sum(manifest["rejected"].values()), "candidates rejected"),
    ]
    return "<div class=tiles>" + "".join(f"<p><b>{n}</b>{label}</p>" for n, label in tiles) + "</div>"


def _outcomes(manifest: Mapping[str, Any]) -> str:
    """How many candidates were kept and how many rejected for each reason, as bars."""
    rejected = sorted(manifest["rejected"].items(), key=lambda item: -item[1])
    rows = [("kept", manifest["pairs"], ""), *((name, n, REASONS.get(name, "")) for name, n in rejected)]
    total = max(1, sum(n for _, n, _ in rows))
    body = "".join(
        f"<tr><th>{escape(name)}<small>{why}</small></th><td>{n}</td>"
        f'<td><div style="width: {n / total:.1%}"></div></td></tr>'
        for name, n, why in rows
    )
    return f"<section><h2>Candidates</h2><table class=bars>{body}</table></section>"


def _videos(records: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><th>{escape(record['video'])}</th><td>{record['pairs']}</td>"
        f"<td>{escape(', '.join(f'{n} {reason}' for reason, n in record['rejected'].items()))}</td>"
        f"<td class=bad>{escape(record['error'] or '')}</td></tr>"
        for record in records[:LISTED]
    )
    more = f"<p class=note>{len(records) - LISTED} more are not listed.</p>" if len(records) > LISTED else ""
    return (
        "<details><summary>Videos</summary><div class=scroll><table class=videos>"
        f"<tr><th>Video</th><th>Pairs</th><th>Rejected</th><th>Error</th></tr>{rows}</table></div>{more}</details>"
    )


def _settings(settings: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in _flattened(settings))
    return f"<details><summary>Settings</summary><table class=settings>{rows}</table></details>"


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _pairs(root: Path, total: int, count: int, seed: int) -> str:
    if not total:
        return "<section><h2>Pairs</h2><p>None was kept.</p></section>"
    store = PairStore(root)
    shuffled = np.random.default_rng(seed).permutation(len(store)).tolist()
    chosen = _spread(shuffled, lambda index: store.videos[index])[:count]
    articles = [_pair(store[i], store.name(i), np.random.default_rng([seed, i])) for i in chosen]
    y, x = torch.meshgrid(torch.linspace(-1, 1, WIDTH), torch.linspace(-1, 1, WIDTH), indexing="ij")
    wheel = _img(flow_colours(torch.stack([x, y]), 1), "the colours of flow by where they point to")
    return (
        f"<section><h2>Pairs</h2><div class=legend>{wheel}<p class=note>{len(chosen)} of {len(store)} pairs. "
        "Click on source or target, or press space there, and they take turns in one place: what rests must stay "
        "where it is.<br>Flow: a pixel goes from the middle of the wheel to where the wheel has its colour; the "
        "rim is the length of “full colour”, and beyond it; white rests.<br>Tracks: a dot on the target, and a line "
        "to where that was in the source; hatched tokens are not visible there.<br>Lengths are in pixels at "
        f"{MOVING_WIDTH} px width; median and 99th percentile are of the pixels that move.</p></div>"
        f"{''.join(articles)}</section>"
    )


def _pair(pair: VideoPair, name: str, rng: np.random.Generator) -> str:
    unit = pair.size[1] / MOVING_WIDTH  # the pair's pixels in one at 512 px width
    length = (pair.flow_to_source.norm(dim=0) / unit).numpy()
    moving = length[length > MOVING_PIXELS]
    median, high = np.percentile(moving, (50, 99)) if moving.size else (0.0, 0.0)
    full = max(min(2 * median, high), MOVING_PIXELS)  # few pixels of large motion must not pale the others
    source_time, target_time = pair.meta["times"]
    facts = {
        "video": pair.meta["video"],
        "times": _times(source_time, target_time),
        "apart": f"{target_time - source_time:.2f} s",
        "moving": f"{float(pair.moving().float().mean()):.1%}",
        "flow, median and 99 %": f"{median:.1f} and {high:.1f} px",
        "full colour": f"{full:.1f} px",
        "tokens visible": f"{float(pair.visible.float().mean()):.1%}",
    }
    drags = points(pair, rng) * (WIDTH / pair.size[1])
    drawn = EditBatch(to_unit_range(_shown(pair.source))[None], [name], points=drags[None])
    images = {
        "flow target → source": flow_colours(pair.flow_to_source, full * unit),
        "flow source → target": flow_colours(pair.flow_to_target, full * unit),
        "tracks": tracks_image(pair, full * unit),
        "sketch": _levels(sketch(pair)),
        "points": signal_image(drawn, 0),
        "coarse edit": _levels(coarse_edit(pair)),
    }
    figures = "".join(_figure(image, caption, name) for caption, image in images.items())
    return (
        f"<article><h3>{escape(name)}</h3>{_scores(facts)}"
        f"<div class=row>{_blink(pair.source, pair.target, name)}{figures}</div></article>"
    )


def _levels(image: Tensor) -> Tensor:
    """float in [0, 1] → uint8."""
    return (image * 255).round().to(torch.uint8)


def _rejected(root: Path, manifest: Mapping[str, Any], count: int, seed: int) -> str:
    """Examples of rejected candidates by reason; nothing if the records hold none."""
    candidates = list(_candidates(root, manifest["per_video"]))
    if not candidates or not count:
        return ""
    gone = {video for video in {c.video for c in candidates} if not Path(video).exists()}
    there = [c for c in candidates if c.video not in gone]
    shuffled = [there[i] for i in np.random.default_rng(seed).permutation(len(there))]
    chosen = _spread(shuffled, lambda c: c.reason, lambda c: c.video)[:count]
    read, problems = _read_again(chosen, tuple(manifest["settings"]["size"]))
    articles = []
    for reason, group in sorted(_grouped(read, lambda item: item[0].reason).items()):
        cards = []
        for c, source, target in group:
            name = f"{Path(c.video).name}, {_times(*c.times)}"
            cards.append(f"<div>{_blink(source, target, name)}<p class=scores>{escape(name)}</p></div>")
        articles.append(
            f"<article><h3>{escape(reason)}</h3><p class=scores>{REASONS.get(reason, '')}</p>"
            f"<div class=cards>{''.join(cards)}</div></article>"
        )
    notes = [f"{video} is no longer there" for video in sorted(gone)] + problems
    items = "".join(f"<li>{escape(note)}</li>" for note in notes[:LISTED])
    return (
        f"<section><h2>Rejected</h2><p class=note>{len(read)} of {len(candidates)} candidates. Source and target "
        f"take turns here too.</p>{''.join(articles)}"
        f"{f'<p class=note>Left out:</p><ul class=note>{items}</ul>' if notes else ''}</section>"
    )


def _read_again(
    candidates: Sequence[Candidate], size: tuple[int, int]
) -> tuple[list[tuple[Candidate, Tensor | None, Tensor | None]], list[str]]:
    """Candidates with source and target at `size`, a video at a time, and which videos could not be read.

    A frame uint8 [3, h, w] is None where the video does not yield it.
    """
    read, problems = [], []
    for video, group in _grouped(candidates, lambda c: c.video).items():
        try:
            clip = read_frames(video, sorted({time - ROUNDED for c in group for time in c.times}), size)
        except VideoError as error:
            problems.append(str(error))
            continue
        frames = {time: torch.from_numpy(image.copy()).permute(2, 0, 1) for time, (_, image) in clip.frames.items()}
        read += [(c, frames.get(c.times[0] - ROUNDED), frames.get(c.times[1] - ROUNDED)) for c in group]
    return read, problems


def _candidates(root: Path, records: Sequence[Mapping[str, Any]]) -> Iterator[Candidate]:
    """The rejected candidates in the records beside the shards; older records hold none."""
    for video in (record["video"] for record in records):
        path = shard_path(root, video).with_suffix(".json")
        if path.is_file():
            for source, target, reason in json.loads(path.read_text()).get("candidates", []):
                if reason is not None:
                    yield Candidate(video, (source, target), reason)


def _spread(items: Sequence[T], *keys: Callable[[T], Hashable]) -> list[T]:
    """All items, those of different `keys[0]` in turn, of which those of different `keys[1]` in turn, and so on."""
    if not keys:
        return list(items)
    turns = zip_longest(*(_spread(group, *keys[1:]) for group in _grouped(items, keys[0]).values()))
    return [item for turn in turns for item in turn if item is not None]


def _grouped(items: Sequence[T], key: Callable[[T], Hashable]) -> dict[Any, list[T]]:
    groups: dict[Any, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


PAGE_STYLE = """
main { max-width: 1350px }
@media (min-width: 641px) { .tiles { grid-template-columns: 1fr 1fr 1fr } }
h2 + .note { margin-bottom: 12px }
.bars td:nth-child(2) { width: 80px } .bars td:last-child { width: 40% }
.bars div { height: 10px; border-radius: 3px; background: var(--soft) }
.bars tr:first-child th { color: var(--ink); font-size: inherit } .bars tr:first-child div { background: var(--good) }
.bars small { color: var(--soft); font-size: 13px }
.settings tr:first-child th { font-size: inherit }
summary { font-size: 18px; font-weight: 650; margin-top: 24px; cursor: pointer }
.videos td { vertical-align: top } .videos :is(th, td):nth-child(n + 3) { text-align: left; padding-left: 12px }
.videos th:first-child, td.bad { overflow-wrap: anywhere }
.legend { display: grid; grid-template-columns: 120px 1fr; gap: 20px; align-items: center; margin-bottom: 16px }
figure img { box-shadow: 0 0 0 1px var(--line) }
.legend img { border-radius: 50% } .legend p { margin: 0; max-width: 90ch }
.blink { grid-column: span 2 }
.blink label, .blink figcaption { display: grid; grid-template-columns: 1fr 1fr; gap: 10px }
.blink label { position: relative; cursor: pointer }
.blink input { position: absolute; opacity: 0 }
.blink :focus-visible ~ * { outline: 2px solid var(--ink); outline-offset: 2px }
.blink label > * { grid-row: 1 }
.blink :checked ~ * { grid-column: 1 }
.blink :checked ~ :last-child { animation: blink 1s steps(1) infinite }
@keyframes blink { 50% { opacity: 0 } }
@media (prefers-reduced-motion: reduce) { .blink :checked ~ :last-child { animation: none } }
div.none { aspect-ratio: 8 / 5 }
.cards { display: grid; grid-template-columns: 1fr 1fr; gap: 16px 30px }
@media (max-width: 640px) { .cards { grid-template-columns: 1fr } }
"""
