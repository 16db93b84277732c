"""Builds a folder of pairs from videos. A video is the unit of work: one shard, one record, one seed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from fp_lightning.errors import InputError
from fp_lightning.files import locked, written_beside
from fp_lightning.media.video import duration, ends_early, list_videos, stream_frames
from fp_lightning.pairs.engines import ENGINES, Engine, Task, default_workers, progress
from fp_lightning.pairs.flow.registry import flow_estimator
from fp_lightning.pairs.motion import chained_flow, continuity, link
from fp_lightning.pairs.preview import write_preview
from fp_lightning.pairs.settings import PairSettings
from fp_lightning.pairs.shards import FLOW_LIMIT, FOLDER, MANIFEST, shard_path, write_manifest, write_shard
from fp_lightning.pairs.tracks import point_tracker
from fp_lightning.types import Image, VideoPair

ALIKE = 12  # 8-bit levels: two images whose thumbnails differ by no more anywhere are the same
SHORTENED = {"inconsistent", "motion_too_large", "cut"}  # reasons that a shorter time may mend
Window = tuple[float, float]  # source and target time of a candidate, in seconds


@dataclass
class VideoResult:
    """What became of one video."""

    pairs: list[VideoPair] = field(default_factory=list)
    candidates: list[tuple[float, float, str | None]] = field(default_factory=list)  # times, why rejected
    rejected: Counter[str] = field(default_factory=Counter)  # reason → candidates
    problem: str | None = None  # what of the video could not be read


def build_video(path: str | Path, settings: PairSettings) -> VideoResult:
    """The pairs of one video, in order of time; a function of its name, its content and the settings.

    Candidates are tried in rounds that each spread over the video, so that a video whose first ones
    are good is read once, and only the frames of the candidates under way are held.

    Raises:
        VideoError: nothing of it can be read.
    """
    rng = np.random.default_rng([settings.seed, int(hashlib.sha1(str(path).encode()).hexdigest()[:12], 16)])
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
    """Makes a pair of a candidate's frames, or notes in `result` why not.

    What moves too far or out of sight may be kept over a shorter time: the shortest one at the candidate's
    beginning and that at its end are tried as well.
    """
    made: VideoPair | str = "too_close" if frames else "not_decoded"
    times = [frames[0][0], frames[-1][0]] if frames else list(window)
    for part in _parts(frames, settings.min_gap):
        attempt = make_pair([image for _, image in part], settings)
        if isinstance(attempt, VideoPair) and any(_alike(attempt, pair) for pair in result.pairs):
            attempt = "duplicate"
        if made == "too_close" or isinstance(attempt, VideoPair):  # the reason told is that of the whole
            made, times = attempt, [part[0][0], part[-1][0]]
        if isinstance(attempt, VideoPair) or attempt not in SHORTENED:
            break
    times = [round(float(time), 4) for time in times]
    if isinstance(made, VideoPair):
        made.meta = {"video": str(path), "times": times, "flow": settings.flow, "tracks": settings.tracker}
        result.pairs.append(made)
    else:
        result.rejected[made] += 1
    result.candidates.append((times[0], times[1], made if isinstance(made, str) else None))


def _parts(frames: list[tuple[float, Image]], min_gap: float) -> Iterator[list[tuple[float, Image]]]:
    """All the frames, the first few and the last few, each more than `min_gap` seconds."""
    if not frames or frames[-1][0] - frames[0][0] <= min_gap:
        return
    yield frames
    first = next(index for index, (time, _) in enumerate(frames) if time - frames[0][0] > min_gap)
    last = max(index for index, (time, _) in enumerate(frames) if frames[-1][0] - time > min_gap)
    if first < len(frames) - 1:
        yield frames[: first + 1]
        yield frames[last:]


def choose_windows(length: float, settings: PairSettings, rng: np.random.Generator) -> list[Window]:
    """(source, target) times in seconds in `length`, spread over it, in random order; none if it is too short."""
    room = length - settings.min_gap
    if room <= 0:
        return []
    step = max(min(settings.spacing, room / 4), room / settings.candidates)
    starts = np.arange(rng.uniform(0, min(step, room)), room, step)[: settings.candidates]
    longest = np.minimum(settings.max_gap, length - starts)
    gaps = settings.min_gap + (longest - settings.min_gap) * rng.uniform(0.05, 1, len(starts))
    return [(float(starts[i]), float(starts[i] + gaps[i])) for i in rng.permutation(len(starts))]


def read_windows(
    path: str | Path, windows: Sequence[Window], settings: PairSettings
) -> Iterator[tuple[Window, list[tuple[float, Image]]]]:
    """Yields each window with its frames (time, image), about `settings.step` seconds apart, in order of its end.

    The list is empty if an end is missing; a frame between that is missing is left out.
    """
    instants: dict[Window, list[float]] = {}
    for start, end in windows:
        links = max(1, round((end - start) / settings.step)) if settings.step else 1
        instants[start, end] = [float(time) for time in np.linspace(start, end, links + 1)]
    waiting = sorted(windows, key=lambda window: window[1])
    held: dict[float, tuple[float, Image]] = {}
    times = [time for window in windows for time in instants[window]]
    for wanted, actual, image in stream_frames(path, times, settings.size):
        held[wanted] = actual, image
        while waiting and waiting[0][1] <= wanted:
            window = waiting.pop(0)
            whole = all(time in held for time in window)
            frames = {held[time][0]: held[time][1] for time in instants[window] if time in held}  # each frame once
            yield window, list(frames.items()) if whole else []
            oldest = min((start for start, _ in waiting), default=wanted)
            held = {time: frame for time, frame in held.items() if time >= oldest}
    yield from ((window, []) for window in waiting)


def make_pair(frames: Sequence[Image], settings: PairSettings) -> VideoPair | str:
    """The pair of the first image [h, w, 3] and the last, seen through those between, or why it is rejected.

    What costs little is asked first.
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
    visible &= limits.explained(tracks, source, target)  # what comes or goes looks at rest to its flow
    images = [torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).contiguous() for image in (source, target)]
    pair = VideoPair(images[0], images[1], to_source, to_target, tracks, visible)
    return limits.reason(pair) or pair


def _alike(a: VideoPair, b: VideoPair) -> bool:
    """Whether two pairs show the same, source and target both."""
    return all(
        np.abs(_thumbnail(first) - _thumbnail(second)).max() <= ALIKE
        for first, second in ((a.source, b.source), (a.target, b.target))
    )


def _thumbnail(image: torch.Tensor) -> np.ndarray:
    height, width = image.shape[-2:]
    small = cv2.resize(image.permute(1, 2, 0).numpy(), (32, round(32 * height / width)), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32)


def build_pairs(
    videos: Sequence[str | Path],
    out: str | Path,
    settings: PairSettings | None = None,
    workers: int | None = 1,
    resume: bool = False,
    engine: Engine = "local",
) -> dict[str, Any]:
    """Builds the pairs of all videos (files, or folders of them) into `out`, with a preview; returns its manifest.

    A video that fails is recorded with its error and the others go on. The result depends neither on
    `workers` (None: one per core, or per GPU for learned estimators) nor on `engine`, nor on interruptions.
    With `resume`, videos that are done are not read again.

    Raises:
        InputError: no videos, `out` is in use or cannot be written, an estimator cannot be loaded, or no
            pair at all was kept (the manifest says why).
    """
    settings, out = settings or PairSettings(), Path(out)
    paths = [str(path) for path in list_videos(videos)]
    settings.load()
    try:
        with locked(out):
            return _build(paths, out, settings, workers or default_workers(settings), resume, engine)
    except OSError as error:
        raise InputError(
            f"{out} cannot be written ({error.strerror or error}); free space or choose another --out"
        ) from error


def _build(
    paths: list[str], out: Path, settings: PairSettings, workers: int, resume: bool, engine: Engine
) -> dict[str, Any]:
    if not resume and ((out / MANIFEST).exists() or any((out / FOLDER).glob("*"))):
        raise InputError(f"{out} already holds pairs; choose another --out, delete it, or go on with --resume")
    for left in (out / FOLDER).glob(".*.partial"):  # of a run that was killed
        left.unlink()
    done = {path: record for path in paths if resume and (record := _finished(out, path, settings))}
    tasks = [Task(path, out, settings) for path in paths if path not in done]
    for task, record in progress(ENGINES[engine](process_video, tasks, workers), len(tasks)):
        done[task.path] = record
    manifest = write_manifest(out, [done[path] for path in paths], settings.stated())
    write_preview(out)
    if not manifest["pairs"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in manifest["rejected"].items())
        errors = [record["error"] for record in manifest["per_video"] if record["error"]]
        raise InputError(
            f"no pair was kept of {len(paths)} videos ({reasons or 'no candidates'}; {len(errors)} with errors"
            f"{', first: ' + errors[0] if errors else ''}); give it static-camera videos in which something moves"
        )
    return manifest


def process_video(task: Task) -> dict[str, Any]:
    """Builds one video, writes its shard and then its record beside it, and returns the record."""
    record: dict[str, Any] = {"video": task.path, "pairs": 0, "rejected": {}, "error": None}
    shard, result = shard_path(task.out, task.path), VideoResult()
    try:
        result = build_video(task.path, task.settings)
        if result.pairs:
            write_shard(task.out, task.path, result.pairs)
        record |= {"pairs": len(result.pairs), "rejected": dict(result.rejected), "error": result.problem}
    except Exception as error:  # whatever one video holds, the others go on
        record["error"] = (
            str(error) if isinstance(error, InputError) else f"{task.path}: {type(error).__name__}: {error}"
        )
    if not record["pairs"]:
        shard.unlink(missing_ok=True)
    saved = {"record": record, "settings": task.settings.stated(), "candidates": result.candidates}
    try:
        with written_beside(shard.with_suffix(".json")) as partial:
            partial.write_text(json.dumps(saved))
    except OSError as error:  # without a record the video is built again
        record["error"] = record["error"] or f"{task.path}: its record cannot be written ({error.strerror or error})"
    return record


def _finished(out: Path, path: str, settings: PairSettings) -> dict[str, Any] | None:
    """The record of a video that needs no more work; one with an error is tried again."""
    shard = shard_path(out, path)
    if not shard.with_suffix(".json").exists():
        return None
    saved = json.loads(shard.with_suffix(".json").read_text())
    if saved["settings"] != settings.stated():
        raise InputError(f"{out} was begun with other settings; choose another --out, or resume with the same settings")
    record: dict[str, Any] = saved["record"]
    return record if record["error"] is None and (shard.exists() or not record["pairs"]) else None
