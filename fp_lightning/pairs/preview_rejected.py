"""Examples of rejected candidates for the preview."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fp_lightning.media.decoding import VideoError
from fp_lightning.media.video import read_frames
from fp_lightning.pairs.grouping import grouped, spread
from fp_lightning.pairs.preview_images import Picture, picture
from fp_lightning.pairs.shards import read_record, shard_path

ROUNDED = 1e-4  # seconds by which a recorded time may be later than its frame
REASONS = {
    "too_short": "The video is too short for the minimum time between two frames.",
    "too_close": "The frames that were read are too close in time.",
    "not_decoded": "One of the two frames could not be decoded.",
    "cut": "The video cuts to another shot between the two frames.",
    "camera_or_global_motion": "Too little of the image is static: the camera moves, or almost everything does.",
    "inconsistent": "Forward and backward flow disagree, or the light changes, so the motion is uncertain.",
    "duplicate": "Both frames look like those of a pair that was kept.",
    "motion_too_small": "Too little of the image moves.",
    "motion_too_large": "The motion is too large for a reliable flow.",
}


class Candidate(NamedTuple):
    """Two frames that were tried and rejected."""

    video: str
    times: tuple[float, float]  # of source and target in seconds
    reason: str


@dataclass(frozen=True)
class RejectedCard:
    """A rejected candidate with its frames; None where the video has no such frame."""

    name: str
    source: Picture | None
    target: Picture | None


@dataclass(frozen=True)
class RejectedGroup:
    """Candidates that were rejected for the same reason."""

    reason: str
    why: str
    cards: list[RejectedCard]


@dataclass(frozen=True)
class Rejected:
    """The section of rejected candidates."""

    shown: int
    total: int
    groups: list[RejectedGroup]
    notes: list[str]  # why videos were left out


def rejected_examples(root: Path, manifest: Mapping[str, Any], count: int, seed: int) -> Rejected | None:
    """Choose at most `count` rejected candidates and read their frames; None if the records have no candidates."""
    candidates = list(_candidates(root, manifest["per_video"]))
    if not candidates or not count:
        return None
    missing = {video for video in {c.video for c in candidates} if not Path(video).exists()}
    readable = [c for c in candidates if c.video not in missing]
    shuffled = [readable[i] for i in np.random.default_rng(seed).permutation(len(readable))]
    chosen = spread(shuffled, lambda c: c.reason, lambda c: c.video)[:count]
    read, problems = _read_again(chosen, tuple(manifest["settings"]["size"]))
    groups = [
        RejectedGroup(reason, REASONS.get(reason, ""), [_card(*item) for item in group])
        for reason, group in sorted(grouped(read, lambda item: item[0].reason).items())
    ]
    problems = [f"{video} no longer exists" for video in sorted(missing)] + problems
    return Rejected(len(read), len(candidates), groups, problems)


def time_range(source: float, target: float) -> str:
    """Format the times of two frames, in seconds."""
    return f"{source:.2f} s → {target:.2f} s"


def _card(candidate: Candidate, source: Tensor | None, target: Tensor | None) -> RejectedCard:
    name = f"{Path(candidate.video).name}, {time_range(*candidate.times)}"
    return RejectedCard(name, picture(source), picture(target))


def _read_again(
    candidates: Sequence[Candidate], size: tuple[int, int]
) -> tuple[list[tuple[Candidate, Tensor | None, Tensor | None]], list[str]]:
    """Read the source and target frames of candidates at `size` (height, width), one video at a time.

    Returns:
        Candidates with their frames, uint8 [3, h, w] or None where the video has no such frame; and a message for each
        video that cannot be read.
    """
    read, problems = [], []
    for video, group in grouped(candidates, lambda c: c.video).items():
        try:
            clip = read_frames(video, sorted({time - ROUNDED for c in group for time in c.times}), size)
        except VideoError as error:
            problems.append(str(error))
            continue
        frames = {time: torch.from_numpy(image.copy()).permute(2, 0, 1) for time, (_, image) in clip.frames.items()}
        read += [(c, frames.get(c.times[0] - ROUNDED), frames.get(c.times[1] - ROUNDED)) for c in group]
    return read, problems


def _candidates(root: Path, records: Sequence[Mapping[str, Any]]) -> Iterator[Candidate]:
    """Yield the rejected candidates in the records beside the shards; older records have none."""
    for video in (record["video"] for record in records):
        path = shard_path(root, video).with_suffix(".json")
        if path.is_file():
            for source, target, reason in read_record(path).get("candidates", []):
                if reason is not None:
                    yield Candidate(video, (source, target), reason)
