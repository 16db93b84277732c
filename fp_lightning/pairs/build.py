"""Builds a folder of pairs from videos. A video is the unit of work: one shard, one record, one seed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from fp_lightning.errors import InputError
from fp_lightning.files import written_beside
from fp_lightning.pairs.filters import PairFilter
from fp_lightning.pairs.flow import FLOWS, settle
from fp_lightning.pairs.tracks import TRACKERS
from fp_lightning.pairs.video import Image, duration, list_videos, read_frames
from fp_lightning.shards import FOLDER, MANIFEST, shard_path, write_shard
from fp_lightning.types import TRACK_STRIDE, VideoPair

END = 0.2  # seconds at the end of a video that are not asked for: stated lengths are not exact


@dataclass(frozen=True)
class PairSettings:
    """What pairs are made. The paper: frames more than 1 s apart; all else is not stated.

    Raises:
        InputError: a side is no multiple of the track stride, or a name or a range is unknown.
    """

    size: tuple[int, int] = (320, 512)  # (height, width) in pixels
    min_gap: float = 1.0  # the frames of a pair are more seconds apart than this
    max_gap: float = 3.0  # and no more than about this
    pairs_per_video: int = 8  # kept at most
    candidates: int = 32  # tried at most; their frames are held in memory
    spacing: float = 0.25  # seconds between the source frames of any two candidates at least
    flow: str = "dis"
    tracker: str = "flow"
    seed: int = 0
    filter: PairFilter = field(default_factory=PairFilter)

    def __post_init__(self) -> None:
        problems = []
        if any(side < 64 or side % TRACK_STRIDE for side in self.size):
            problems.append(f"size must be two multiples of {TRACK_STRIDE} from 64 on, got {self.size}; try 320 512")
        if not 0 <= self.min_gap < self.max_gap:
            problems.append(f"max_gap must exceed min_gap, got {self.min_gap:g} and {self.max_gap:g}")
        if min(self.pairs_per_video, self.candidates) < 1 or self.spacing <= 0:
            problems.append("pairs_per_video and candidates must be 1 or more, spacing above 0")
        for kind, name, known in (("flow", self.flow, FLOWS), ("tracker", self.tracker, TRACKERS)):
            if name not in known:
                problems.append(f"{kind} {name} is unknown; known: {', '.join(known)}")
        if problems:
            raise InputError("; ".join(problems))


@dataclass
class VideoResult:
    """What became of one video."""

    pairs: list[VideoPair]
    rejected: dict[str, int]  # reason → candidates
    problem: str | None = None  # what of the video could not be read


def build_video(path: str | Path, settings: PairSettings) -> VideoResult:
    """The pairs of one video, in order of time; a function of its name, its content and the settings.

    Raises:
        VideoError: nothing of it can be read.
    """
    rng = np.random.default_rng([settings.seed, int(hashlib.sha1(str(path).encode()).hexdigest()[:12], 16)])
    windows = choose_windows(duration(path) - END, settings, rng)
    if not windows:
        return VideoResult([], {"too_short": 1})
    clip = read_frames(path, sorted({time for window in windows for time in window}), settings.size)
    pairs: list[VideoPair] = []
    rejected: Counter[str] = Counter()
    for window in windows:
        if len(pairs) == settings.pairs_per_video:
            break
        if not all(time in clip.frames for time in window):
            rejected["not_decoded"] += 1
            continue
        (source_time, source), (target_time, target) = (clip.frames[time] for time in window)
        if target_time - source_time <= settings.min_gap:
            rejected["too_close"] += 1
            continue
        pair = make_pair(source, target, settings)
        if isinstance(pair, str):
            rejected[pair] += 1
            continue
        times = [round(source_time, 4), round(target_time, 4)]
        pair.meta = {"video": str(path), "times": times, "flow": settings.flow, "tracks": settings.tracker}
        pairs.append(pair)
    pairs.sort(key=lambda pair: pair.meta["times"])
    return VideoResult(pairs, dict(rejected), clip.problem)


def choose_windows(length: float, settings: PairSettings, rng: np.random.Generator) -> list[tuple[float, float]]:
    """(source, target) times in seconds in `length`, spread over it, in random order; none if it is too short."""
    room = length - settings.min_gap
    if room <= 0:
        return []
    step = max(settings.spacing, room / settings.candidates)
    starts = np.arange(rng.uniform(0, min(step, room)), room, step)[: settings.candidates]
    longest = np.minimum(settings.max_gap, length - starts)
    gaps = settings.min_gap + (longest - settings.min_gap) * rng.uniform(0.05, 1, len(starts))
    return [(float(starts[i]), float(starts[i] + gaps[i])) for i in rng.permutation(len(starts))]


def make_pair(source: Image, target: Image, settings: PairSettings) -> VideoPair | str:
    """Flow both ways and tracks between two images [h, w, 3], or the reason to reject them."""
    estimate = FLOWS[settings.flow]
    to_source = estimate(target, source)
    if settings.filter.camera_moves(to_source, target):
        return "camera_or_global_motion"
    to_source, to_target = settle(to_source, target, source), settle(estimate(source, target), source, target)
    tracks, visible = TRACKERS[settings.tracker](to_source, to_target)
    images = [torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).contiguous() for image in (source, target)]
    pair = VideoPair(images[0], images[1], to_source, to_target, tracks, visible)
    return settings.filter.reason(pair) or pair


def build_pairs(
    videos: Sequence[str | Path],
    out: str | Path,
    settings: PairSettings | None = None,
    workers: int = 1,
    resume: bool = False,
) -> dict[str, Any]:
    """Builds the pairs of all videos (files, or folders of them) into `out` and returns its manifest.

    A video that fails is recorded with its error and the others go on. The result does not depend
    on `workers`. With `resume`, videos that are done are not read again.

    Raises:
        InputError: no videos, `out` is in use, or no pair at all was kept (the manifest says why).
    """
    settings, out = settings or PairSettings(), Path(out)
    paths = [str(path) for path in list_videos(videos)]
    stated = json.loads(json.dumps(asdict(settings)))  # as it reads back
    done = {path: record for path in paths if resume and (record := _finished(out, path, stated))}
    if not resume and ((out / MANIFEST).exists() or any((out / FOLDER).glob("*"))):
        raise InputError(f"{out} already holds pairs; choose another --out, delete it, or go on with --resume")
    todo = [path for path in paths if path not in done]
    for path, record in _progress(_process_all(todo, out, settings, stated, workers), len(todo)):
        done[path] = record
    records = [done[path] for path in paths]
    manifest = {
        "videos": len(records),
        "pairs": sum(record["pairs"] for record in records),
        "rejected": dict(sorted(sum((Counter(record["rejected"]) for record in records), Counter()).items())),
        "settings": stated,
        "per_video": records,
    }
    with written_beside(out / MANIFEST) as partial:
        partial.write_text(json.dumps(manifest, indent=2))
    if not manifest["pairs"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in manifest["rejected"].items())
        errors = [record["error"] for record in records if record["error"]]
        raise InputError(
            f"no pair was kept of {len(records)} videos ({reasons or 'no candidates'}; {len(errors)} with errors"
            f"{', first: ' + errors[0] if errors else ''}); give it static-camera videos in which something moves"
        )
    return manifest


def process_video(path: str, out: Path, settings: PairSettings, stated: dict[str, Any]) -> dict[str, Any]:
    """Builds one video, writes its shard and its record beside it, and returns the record."""
    record: dict[str, Any] = {"video": path, "pairs": 0, "rejected": {}, "error": None}
    shard = shard_path(out, path)
    try:
        result = build_video(path, settings)
        if result.pairs:
            write_shard(out, path, result.pairs)
        record |= {"pairs": len(result.pairs), "rejected": result.rejected, "error": result.problem}
    except Exception as error:  # whatever one video holds, the others go on
        record["error"] = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    if not record["pairs"]:
        shard.unlink(missing_ok=True)
    with written_beside(shard.with_suffix(".json")) as partial:
        partial.write_text(json.dumps({"record": record, "settings": stated}))
    return record


def _finished(out: Path, path: str, stated: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a video that needs no more work; one with an error is tried again."""
    shard = shard_path(out, path)
    if not shard.with_suffix(".json").exists():
        return None
    saved = json.loads(shard.with_suffix(".json").read_text())
    if saved["settings"] != stated:
        raise InputError(f"{out} was begun with other settings; choose another --out, or resume with the same settings")
    record: dict[str, Any] = saved["record"]
    return record if record["error"] is None and (shard.exists() or not record["pairs"]) else None


def _process_all(
    paths: list[str], out: Path, settings: PairSettings, stated: dict[str, Any], workers: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    if workers <= 1:
        yield from ((path, process_video(path, out, settings, stated)) for path in paths)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        futures = {pool.submit(process_video, path, out, settings, stated): path for path in paths}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _one_thread() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _progress(results: Iterator[tuple[str, dict[str, Any]]], total: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Passes results on, with a bar that shows videos done, pairs kept, rate and time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("videos"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    pairs = 0
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("videos", total=total, note="")
        for count, (path, record) in enumerate(results, start=1):
            pairs += record["pairs"]
            elapsed = max(bar.tasks[task].elapsed or 0, 1e-3)
            bar.update(task, advance=1, note=f"{pairs} pairs, {count / elapsed:.2f} videos/s")
            if record["error"]:
                bar.console.print(f"{path}: {record['error']}", markup=False)
            yield path, record
