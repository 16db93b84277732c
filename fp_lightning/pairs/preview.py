"""preview.html: what a folder of pairs holds and what was turned away, for people to judge by looking.

One file in the style of the evaluation's report: images are inlined and nothing is requested.
Lengths of flow on the page are in pixels at 512 px width.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.media.pages import write_page
from fp_lightning.media.pictures import encode, signal_image
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
    records = manifest["per_video"]
    return write_page(
        root / "preview.html",
        "fp_lightning.pairs",
        "preview.html",
        title=f"Pairs in {root.resolve().name}",
        tiles=_tiles(manifest),
        outcomes=_outcomes(manifest),
        videos=_videos(records),
        unlisted=max(0, len(records) - LISTED),
        settings=list(_flattened(manifest["settings"])),
        wheel=_picture(_wheel()),
        moving_width=MOVING_WIDTH,
        rejected=_rejected(root, manifest, rejected, seed),
        **_pairs(root, manifest["pairs"], count, seed),
    )


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


def _picture(image: Tensor | None) -> dict[str, Any] | None:
    """Return an image uint8 [3, h, w] for the template, None for a missing one."""
    if image is None:
        return None
    shown = _shown(image)
    data = b64encode(encode(shown, "WEBP", quality=QUALITY)).decode()
    return {"width": WIDTH, "height": shown.shape[1], "url": f"data:image/webp;base64,{data}"}


def _times(source: float, target: float) -> str:
    return f"{source:.2f} s → {target:.2f} s"


def _tiles(manifest: Mapping[str, Any]) -> list[tuple[int, str]]:
    records = manifest["per_video"]
    used, failed = (sum(bool(record[key]) for record in records) for key in ("pairs", "error"))
    return [
        (manifest["pairs"], "pairs"),
        (manifest["videos"], f"videos, {used} of them with pairs, {failed} with errors"),
        (sum(manifest["rejected"].values()), "candidates rejected"),
    ]


def _outcomes(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return how many candidates were kept, and how many were rejected for each reason."""
    rejected = sorted(manifest["rejected"].items(), key=lambda item: -item[1])
    rows = [("kept", manifest["pairs"], ""), *((name, n, REASONS.get(name, "")) for name, n in rejected)]
    total = max(1, sum(n for _, n, _ in rows))
    return [{"name": name, "count": n, "reason": why, "share": f"{n / total:.1%}"} for name, n, why in rows]


def _videos(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "video": record["video"],
            "pairs": record["pairs"],
            "rejected": ", ".join(f"{n} {reason}" for reason, n in record["rejected"].items()),
            "error": record["error"] or "",
        }
        for record in records[:LISTED]
    ]


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _pairs(root: Path, total: int, count: int, seed: int) -> dict[str, Any]:
    """Return the pairs to show, spread over the videos, and the number of all pairs."""
    if not total:
        return {"pairs": [], "total": 0}
    store = PairStore(root)
    shuffled = np.random.default_rng(seed).permutation(len(store)).tolist()
    chosen = _spread(shuffled, lambda index: store.videos[index])[:count]
    pairs = [_pair(store[i], store.name(i), np.random.default_rng([seed, i])) for i in chosen]
    return {"pairs": pairs, "total": len(store)}


def _wheel() -> Tensor:
    """Return the colours of flow by direction, uint8 [3, WIDTH, WIDTH]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, WIDTH), torch.linspace(-1, 1, WIDTH), indexing="ij")
    return flow_colours(torch.stack([x, y]), 1)


def _pair(pair: VideoPair, name: str, rng: np.random.Generator) -> dict[str, Any]:
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
    return {
        "name": name,
        "facts": facts,
        "source": _picture(pair.source),
        "target": _picture(pair.target),
        "images": [(caption, _picture(image)) for caption, image in images.items()],
    }


def _levels(image: Tensor) -> Tensor:
    """float in [0, 1] → uint8."""
    return (image * 255).round().to(torch.uint8)


def _rejected(root: Path, manifest: Mapping[str, Any], count: int, seed: int) -> dict[str, Any] | None:
    """Return examples of rejected candidates by reason, None if the records hold none."""
    candidates = list(_candidates(root, manifest["per_video"]))
    if not candidates or not count:
        return None
    gone = {video for video in {c.video for c in candidates} if not Path(video).exists()}
    there = [c for c in candidates if c.video not in gone]
    shuffled = [there[i] for i in np.random.default_rng(seed).permutation(len(there))]
    chosen = _spread(shuffled, lambda c: c.reason, lambda c: c.video)[:count]
    read, problems = _read_again(chosen, tuple(manifest["settings"]["size"]))
    groups = [
        {
            "reason": reason,
            "why": REASONS.get(reason, ""),
            "cards": [
                {
                    "name": f"{Path(c.video).name}, {_times(*c.times)}",
                    "source": _picture(source),
                    "target": _picture(target),
                }
                for c, source, target in group
            ],
        }
        for reason, group in sorted(_grouped(read, lambda item: item[0].reason).items())
    ]
    notes = [f"{video} is no longer there" for video in sorted(gone)] + problems
    return {"shown": len(read), "total": len(candidates), "groups": groups, "notes": notes[:LISTED]}


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
