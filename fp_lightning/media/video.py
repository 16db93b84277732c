"""Read frames at chosen times, from video files or folders of frames."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from fp_lightning.media.decoding import FRAME_RATE, SAME, Film, VideoError, opened
from fp_lightning.media.display import as_shown, fit
from fp_lightning.media.finding import frame_files
from fp_lightning.types import Image

LATE = 0.2  # seconds: the last frame also serves times up to this much later, since stated durations are inexact
SEEK = 10.0  # seconds: over longer gaps between requested frames, seeking is faster than decoding


@dataclass
class Clip:
    """Frames of one video, by requested time. `problem` says which frames are missing."""

    frames: dict[float, tuple[float, Image]] = field(
        default_factory=dict
    )  # requested time → (actual time, image), in seconds
    problem: str | None = None


def duration(path: str | Path) -> float:
    """Return the length in seconds of the film, from its header or else from its packets.

    Raises:
        VideoError: the file cannot be read, or has no video or no frames.
    """
    if Path(path).is_dir():
        return len(frame_files(path)) / FRAME_RATE
    with opened(path) as film:
        return film.duration()


def stream_frames(
    path: str | Path, times: Sequence[float], size: tuple[int, int]
) -> Iterator[tuple[float, float, Image]]:
    """Yield (requested time, actual time, image) for the first frame at or after each of `times`, in order of time.

    The last frame also serves times while it is shown, and up to 0.2 s after it. Frames come out as players show
    them: rotated, flipped, with square pixels, deinterlaced, in SDR with the colours of BT.709. They are resized
    to cover `size` and cropped at the centre as they are decoded, so that only a few are in memory here. Damaged
    frames are skipped. A video that ends early yields the frames it has.

    Args:
        path: video file, or folder of frames at 24 per second.
        times: seconds from the start.
        size: (height, width) of the images in pixels.

    Raises:
        VideoError: the file cannot be read or has no video, or its frames cannot be converted.
    """
    requested = sorted(set(times))
    if Path(path).is_dir():
        yield from _from_folder(path, requested, size)
    else:
        with opened(path) as film:
            yield from _from_film(film, requested, size)


def read_frames(path: str | Path, times: Sequence[float], size: tuple[int, int]) -> Clip:
    """Read all frames of `stream_frames` into memory. `Clip.problem` says which frames are missing.

    Raises:
        VideoError: the file cannot be read, has no video, or yields no requested frame.
    """
    clip = Clip({requested: (actual, image) for requested, actual, image in stream_frames(path, times, size)})
    if not clip.frames:
        raise VideoError(f"{path} gives no frame at {min(times):.1f} s or later; it is too short or damaged")
    if len(clip.frames) < len(set(times)):
        clip.problem = ends_early(path, max(actual for actual, _ in clip.frames.values()))
    return clip


def ends_early(path: str | Path, last: float) -> str:
    """Describe a video whose last readable frame is at `last` seconds."""
    return f"{path}: frames after {last:.1f} s are missing; the file may be truncated or damaged"


def _from_film(film: Film, requested: list[float], size: tuple[int, int]) -> Iterator[tuple[float, float, Image]]:
    """`stream_frames` of a video file; `requested` is sorted."""
    reached, done, frame = 0.0, 0, None
    while done < len(requested):
        before = done
        far = film.seekable and requested[done] > reached + SEEK
        for time, frame in film.frames(requested[done] if far else None):
            reached = time
            if reached < requested[done] - SAME:
                continue
            image = as_shown(frame, film.aspect, size)
            while done < len(requested) and requested[done] <= reached + SAME:
                yield requested[done], reached, image
                done += 1
            if done == len(requested) or (film.seekable and requested[done] > reached + SEEK):
                break
        if done == before:  # the stream ended before the requested time
            break
    if frame is None and film.error is not None:
        raise film.error
    late = LATE if frame is None else max(LATE, film.shown(frame))
    if frame is not None and done < len(requested) and requested[done] <= reached + late:
        image = as_shown(frame, film.aspect, size)
        yield from ((time, reached, image) for time in requested[done:] if time <= reached + late)


def _from_folder(
    path: str | Path, requested: list[float], size: tuple[int, int]
) -> Iterator[tuple[float, float, Image]]:
    """`stream_frames` of a folder of frames; `requested` is sorted."""
    files = frame_files(path)
    for time in requested:
        index = max(0, math.ceil(time * FRAME_RATE - SAME))
        if index >= len(files) + LATE * FRAME_RATE:
            return
        index = min(index, len(files) - 1)
        image = _read_image(files[index])
        if image is not None:
            yield time, index / FRAME_RATE, fit(np.ascontiguousarray(image[..., ::-1]), size)


def _read_image(path: Path) -> Image | None:
    """Read BGR [h, w, 3], rotated as the EXIF orientation says; None if the file cannot be read."""
    try:
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error):
        return None
    return None if image is None else image.astype(np.uint8, copy=False)
