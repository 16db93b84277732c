"""Find the pairs of one video: choose candidate times, read their frames, and estimate, filter and deduplicate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch

from fp_lightning.media.video import duration, ends_early, stream_frames
from fp_lightning.pairs.flow.registry import flow_estimator
from fp_lightning.pairs.motion import chained_flow, continuity, link
from fp_lightning.pairs.settings import PairSettings
from fp_lightning.pairs.shards import FLOW_LIMIT, name_hash
from fp_lightning.pairs.tracks import point_tracker
from fp_lightning.types import Image, VideoPair

SAME = 12  # 8-bit levels: images whose thumbnails differ by at most this everywhere count as the same
SHORTENED = {"inconsistent", "motion_too_large", "cut"}  # reasons that may not apply over a shorter time
Window = tuple[float, float]  # source and target time of a candidate, in seconds


@dataclass
class VideoResult:
    """The pairs of one video, and why other candidates were rejected."""

    pairs: list[VideoPair] = field(default_factory=list)
    candidates: list[tuple[float, float, str | None]] = field(
        default_factory=list
    )  # source and target time, reason of rejection or None
    rejected: Counter[str] = field(default_factory=Counter)  # reason → number of candidates
    problem: str | None = None  # which part of the video could not be read


def build_video(path: str | Path, settings: PairSettings) -> VideoResult:
    """Find the pairs of one video, sorted by time. The result depends only on path, content and settings.

    Candidates are tried in rounds, and each round is spread over the whole video. If the first round succeeds,
    the video is read once. Only frames of candidates in progress are in memory.

    Raises:
        VideoError: the video cannot be read at all.
    """
    rng = np.random.default_rng([settings.seed, int(name_hash(str(path))[:12], 16)])
    windows = choose_windows(duration(path), settings, rng)
    result = VideoResult()
    if not windows:
        result.rejected["too_short"] = 1
    for begin in range(0, len(windows), settings.pairs_per_video):
        for window, frames in read_windows(path, windows[begin : begin + settings.pairs_per_video], settings):
            _try(path, window, frames, settings, result)
            if len(result.pairs) == settings.pairs_per_video:
                break
        else:
            continue
        break
    if result.rejected["not_decoded"]:
        result.problem = ends_early(
            path, max((end for _, end, why in result.candidates if why != "not_decoded"), default=0.0)
        )
    result.pairs.sort(key=lambda pair: pair.meta["times"])
    result.candidates.sort(key=lambda candidate: candidate[:2])
    result.rejected += Counter()  # drops zeros
    return result


def _try(
    path: str | Path, window: Window, frames: list[tuple[float, Image]], settings: PairSettings, result: VideoResult
) -> None:
    """Add the pair of a candidate, or the reason of its rejection, to `result`.

    If the motion is too large or leaves the image, a shorter time may still work. The shortest part at the
    start of the candidate and the one at its end are tried as well.
    """
    outcome: VideoPair | str = "too_close" if frames else "not_decoded"
    times = [frames[0][0], frames[-1][0]] if frames else list(window)
    for part in _parts(frames, settings.min_gap):
        attempt = make_pair([image for _, image in part], settings)
        if isinstance(attempt, VideoPair) and any(_same(attempt, pair) for pair in result.pairs):
            attempt = "duplicate"
        if outcome == "too_close" or isinstance(attempt, VideoPair):  # report the reason for the whole candidate
            outcome, times = attempt, [part[0][0], part[-1][0]]
        if isinstance(attempt, VideoPair) or attempt not in SHORTENED:
            break
    times = [round(float(time), 4) for time in times]
    if isinstance(outcome, VideoPair):
        outcome.meta = {"video": str(path), "times": times, "flow": settings.flow, "tracks": settings.tracker}
        result.pairs.append(outcome)
    else:
        result.rejected[outcome] += 1
    result.candidates.append((times[0], times[1], outcome if isinstance(outcome, str) else None))


def _parts(frames: list[tuple[float, Image]], min_gap: float) -> Iterator[list[tuple[float, Image]]]:
    """Yield all frames, then the shortest parts at the start and at the end that are longer than `min_gap` seconds."""
    if not frames or frames[-1][0] - frames[0][0] <= min_gap:
        return
    yield frames
    first = next(index for index, (time, _) in enumerate(frames) if time - frames[0][0] > min_gap)
    last = max(index for index, (time, _) in enumerate(frames) if frames[-1][0] - time > min_gap)
    if first < len(frames) - 1:
        yield frames[: first + 1]
        yield frames[last:]


def choose_windows(length: float, settings: PairSettings, rng: np.random.Generator) -> list[Window]:
    """Choose candidate (source, target) times in seconds, spread over the video, in random order.

    Args:
        length: length of the video in seconds.
        settings: gaps, spacing and number of candidates.
        rng: decides offset, gaps and order.

    Returns:
        The windows; an empty list if the video is too short.
    """
    span = length - settings.min_gap
    if span <= 0:
        return []
    step = max(min(settings.spacing, span / 4), span / settings.candidates)
    starts = np.arange(rng.uniform(0, min(step, span)), span, step)[: settings.candidates]
    longest = np.minimum(settings.max_gap, length - starts)
    gaps = settings.min_gap + (longest - settings.min_gap) * rng.uniform(0.05, 1, len(starts))
    return [(float(starts[i]), float(starts[i] + gaps[i])) for i in rng.permutation(len(starts))]


def read_windows(
    path: str | Path, windows: Sequence[Window], settings: PairSettings
) -> Iterator[tuple[Window, list[tuple[float, Image]]]]:
    """Yield each window with its frames (time, image), about `settings.step` seconds apart, in order of target time.

    The list is empty if the source or the target is missing. Missing frames in between are left out.
    """
    instants: dict[Window, list[float]] = {}
    for start, end in windows:
        links = max(1, round((end - start) / settings.step)) if settings.step else 1
        instants[start, end] = [float(time) for time in np.linspace(start, end, links + 1)]
    waiting = sorted(windows, key=lambda window: window[1])
    held: dict[float, tuple[float, Image]] = {}
    times = [time for window in windows for time in instants[window]]
    for requested, actual, image in stream_frames(path, times, settings.size):
        held[requested] = actual, image
        while waiting and waiting[0][1] <= requested:
            window = waiting.pop(0)
            complete = all(time in held for time in window)
            frames = {held[time][0]: held[time][1] for time in instants[window] if time in held}  # no duplicates
            yield window, list(frames.items()) if complete else []
            oldest = min((start for start, _ in waiting), default=requested)
            held = {time: frame for time, frame in held.items() if time >= oldest}
    yield from ((window, []) for window in waiting)


def make_pair(frames: Sequence[Image], settings: PairSettings) -> VideoPair | str:
    """Make a pair of the first and the last frame, with flow chained through the frames between (paper, section 3.3).

    Cheap filters run first.

    Args:
        frames: images uint8 [h, w, 3], in order of time.
        settings: estimators and filters.

    Returns:
        The pair, or the reason of its rejection.
    """
    source, target = frames[0], frames[-1]
    estimate = flow_estimator(settings.flow, settings.flow_weights)
    limits = settings.filter
    if continuity(frames) < limits.min_continuity:
        return "cut"
    jump = estimate([target], [source])[0]
    if limits.camera_moves(jump, target):
        return "camera_or_global_motion"
    if limits.nothing_changes(jump, source, target):
        return "motion_too_small"
    to_source, to_target = chained_flow(frames, link(frames, estimate), estimate)
    if max(float(to_source.abs().max()), float(to_target.abs().max())) > FLOW_LIMIT:
        return "motion_too_large"
    track = point_tracker(settings.tracker, settings.tracker_weights, settings.accept_license)
    tracks, visible = track(frames, to_source, to_target)
    visible &= limits.explained(tracks, source, target)  # objects that appear or vanish can have zero flow
    images = [torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).contiguous() for image in (source, target)]
    pair = VideoPair(images[0], images[1], to_source, to_target, tracks, visible)
    return limits.reason(pair) or pair


def _same(a: VideoPair, b: VideoPair) -> bool:
    """Whether both source and target of two pairs look the same."""
    return all(
        np.abs(_thumbnail(first) - _thumbnail(second)).max() <= SAME
        for first, second in ((a.source, b.source), (a.target, b.target))
    )


def _thumbnail(image: torch.Tensor) -> np.ndarray:
    """Shrink an image [3, h, w] to a width of 32 px: float32 [h, 32, 3]."""
    height, width = image.shape[-2:]
    small = cv2.resize(image.permute(1, 2, 0).numpy(), (32, round(32 * height / width)), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32)
