"""Write preview.html: the pairs of a folder and the candidates that were rejected, for people to check.

The page is one self-contained file: images are inlined and nothing is requested from the network. Lengths of flow are
in pixels at a width of 512.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fp_lightning.errors import InputError
from fp_lightning.media.pages import write_page
from fp_lightning.media.pictures import signal_image
from fp_lightning.pairs.grouping import spread
from fp_lightning.pairs.preview_images import (
    WIDTH,
    at_page_width,
    colour_wheel,
    flow_colours,
    picture,
    tracks_image,
)
from fp_lightning.pairs.preview_rejected import REASONS, rejected_examples, time_range
from fp_lightning.pairs.shards import MANIFEST, PairStore, read_manifest
from fp_lightning.signals.coarse import coarse_edit
from fp_lightning.signals.points import points
from fp_lightning.signals.sketch import sketch
from fp_lightning.types import MOVING_PIXELS, MOVING_WIDTH, EditBatch, VideoPair, to_unit_range

LISTED = 200  # maximum number of videos in the table


def write_preview(root: str | Path, count: int = 24, rejected: int = 24, seed: int = 0) -> Path:
    """Write `<root>/preview.html` and return its path.

    Args:
        root: folder written by `build_pairs`; it may hold rejected candidates only.
        count: maximum number of pairs, spread over the videos.
        rejected: maximum number of rejected candidates, spread over reasons and videos. Their frames are read from the
            videos again; a video that is missing or unreadable is listed instead.
        seed: determines the choice of pairs and candidates, and the drag points.

    Raises:
        InputError: `root` has no manifest, or its shards are not readable.
    """
    root = Path(root)
    if not (root / MANIFEST).is_file():
        raise InputError(
            f"no pairs in {root} (no {MANIFEST}); create some with `fp-lightning pairs VIDEOS --out {root}`"
        )
    manifest = read_manifest(root / MANIFEST)
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
        wheel=picture(colour_wheel()),
        moving_width=MOVING_WIDTH,
        rejected=rejected_examples(root, manifest, rejected, seed),
        **_pairs(root, manifest["pairs"], count, seed),
    )


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
    """Yield nested settings as (dotted name, value)."""
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
    chosen = spread(shuffled, lambda index: store.videos[index])[:count]
    pairs = [_pair(store[i], store.name(i), np.random.default_rng([seed, i])) for i in chosen]
    return {"pairs": pairs, "total": len(store)}


def _pair(pair: VideoPair, name: str, rng: np.random.Generator) -> dict[str, Any]:
    unit = pair.size[1] / MOVING_WIDTH  # pixels of the pair per pixel at 512 px width
    length = (pair.flow_to_source.norm(dim=0) / unit).numpy()
    moving = length[length > MOVING_PIXELS]
    median, high = np.percentile(moving, (50, 99)) if moving.size else (0.0, 0.0)
    full = max(min(2 * median, high), MOVING_PIXELS)  # a few pixels of large motion must not make the others pale
    source_time, target_time = pair.meta["times"]
    facts = {
        "video": pair.meta["video"],
        "times": time_range(source_time, target_time),
        "time between": f"{target_time - source_time:.2f} s",
        "moving": f"{float(pair.moving().float().mean()):.1%}",
        "flow, median and 99 %": f"{median:.1f} and {high:.1f} px",
        "full colour": f"{full:.1f} px",
        "tokens visible": f"{float(pair.visible.float().mean()):.1%}",
    }
    drags = points(pair, rng) * (WIDTH / pair.size[1])
    with_drags = EditBatch(to_unit_range(at_page_width(pair.source))[None], [name], points=drags[None])
    images = {
        "flow target → source": flow_colours(pair.flow_to_source, full * unit),
        "flow source → target": flow_colours(pair.flow_to_target, full * unit),
        "tracks": tracks_image(pair, full * unit),
        "sketch": _levels(sketch(pair)),
        "points": signal_image(with_drags, 0),
        "coarse edit": _levels(coarse_edit(pair)),
    }
    return {
        "name": name,
        "facts": facts,
        "source": picture(pair.source),
        "target": picture(pair.target),
        "images": [(caption, picture(image)) for caption, image in images.items()],
    }


def _levels(image: Tensor) -> Tensor:
    """float in [0, 1] → uint8."""
    return (image * 255).round().to(torch.uint8)
