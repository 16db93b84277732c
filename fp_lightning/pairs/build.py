"""Build a folder of pairs from videos. Each video has its own shard, record and random seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fp_lightning.errors import InputError
from fp_lightning.files import locked, written_beside
from fp_lightning.media.finding import list_videos
from fp_lightning.pairs.candidates import VideoResult, build_video
from fp_lightning.pairs.engines import ENGINES, Engine, Task, default_workers, progress
from fp_lightning.pairs.preview import write_preview
from fp_lightning.pairs.settings import PairSettings
from fp_lightning.pairs.shards import FOLDER, MANIFEST, read_record, shard_path, write_manifest, write_shard
from fp_lightning.pairs.stored import StoredVideos, file_size, keep_pairs, real_path


def build_pairs(
    videos: Sequence[str | Path],
    out: str | Path,
    settings: PairSettings | None = None,
    workers: int | None = 1,
    resume: bool = False,
    engine: Engine = "local",
) -> dict[str, Any]:
    """Build the pairs of all videos into a folder, with a preview page.

    A failing video does not stop the others; its error is recorded. The pairs do not depend on `workers`, on
    `engine` or on interruptions.

    Args:
        videos: video files, or folders of them.
        out: folder of the pairs.
        settings: how pairs are chosen and filtered; None for the defaults.
        workers: number of processes; None for one per core, or one per GPU with learned estimators.
        resume: continue an interrupted run, or add videos to the folder. Finished videos are not read again, and
            nothing that the folder holds is dropped. A video is known by its real path, so that it is the same by a
            relative path, an absolute one or a link.
        engine: "local" or "ray".

    Returns:
        The manifest, see `write_manifest`.

    Raises:
        InputError: there are no videos, `out` is in use or cannot be written, an estimator cannot be loaded, or
            no pair was kept (the manifest has the reasons).
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
    """`build_pairs`, with the folder locked and estimators loaded."""
    if not resume and ((out / MANIFEST).exists() or any((out / FOLDER).glob("*"))):
        raise InputError(f"{out} already holds pairs; choose another --out, delete it, or continue with --resume")
    for leftover in (out / FOLDER).glob(".*.partial"):  # from a run that was killed
        leftover.unlink()
    stored = StoredVideos(out, settings.to_json())
    names = {stored.name(path): path for path in paths}
    tasks = [Task(path, out, settings, name) for name, path in names.items() if not stored.finished(name)]
    built = {}
    for task, record in progress(ENGINES[engine](process_video, tasks, workers), len(tasks)):
        built[task.video] = record
    manifest = write_manifest(out, stored.merged(names, built), settings.to_json())
    write_preview(out)
    if not manifest["pairs"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in manifest["rejected"].items())
        errors = [record["error"] for record in manifest["per_video"] if record["error"]]
        raise InputError(
            f"no pair was kept of {len(paths)} videos ({reasons or 'no candidates'}; {len(errors)} with errors"
            f"{', first: ' + errors[0] if errors else ''}); use static-camera videos in which something moves"
        )
    return manifest


def process_video(task: Task) -> dict[str, Any]:
    """Build the pairs of one video, write its shard and then its record, and return the record."""
    record: dict[str, Any] = {"video": task.video, "pairs": 0, "rejected": {}, "error": None}
    shard, result = shard_path(task.out, task.video), VideoResult()
    try:
        result = build_video(task.path, task.settings)
        if result.pairs:
            write_shard(task.out, task.video, result.pairs)
        record |= {"pairs": len(result.pairs), "rejected": dict(result.rejected), "error": result.problem}
    except Exception as error:  # one bad video must not stop the others
        record["error"] = (
            str(error) if isinstance(error, InputError) else f"{task.path}: {type(error).__name__}: {error}"
        )
    sidecar = shard.with_suffix(".json")
    if record["error"] and shard.exists() and sidecar.exists():
        kept = keep_pairs(read_record(sidecar)["record"], record)
        if kept is not record:
            return kept
    if not record["pairs"]:
        shard.unlink(missing_ok=True)
    saved: dict[str, Any] = {"record": record, "settings": task.settings.to_json(), "candidates": result.candidates}
    saved |= {"file": real_path(task.path), "bytes": file_size(task.path)}
    try:
        with written_beside(sidecar) as partial:
            partial.write_text(json.dumps(saved))
    except InputError as error:  # without a record, --resume builds the video again
        record["error"] = record["error"] or f"{task.path}: its record is missing: {error}"
    return record
