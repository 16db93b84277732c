"""Find videos and read their frames at chosen times, from video files or folders of frames."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from fp_lightning.errors import InputError
from fp_lightning.types import Image

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

EXTENSIONS = {
    *(".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv"),
    *(".ogv", ".3gp", ".mxf", ".vob", ".y4m", ".gif", ".apng"),
}
FRAMES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
FRAME_RATE = 24.0  # frames per second of a folder of frames
LATE = 0.2  # seconds: the last frame also serves times up to this much later, since stated durations are inexact
SEEK = 10.0  # seconds: over longer gaps between requested frames, seeking is faster than decoding


class VideoError(InputError):
    """A video that cannot be read."""


@dataclass
class Clip:
    """Frames of one video, by requested time. `problem` says which frames are missing."""

    frames: dict[float, tuple[float, Image]] = field(
        default_factory=dict
    )  # requested time → (actual time, image), in seconds
    problem: str | None = None


def list_videos(paths: Sequence[str | Path]) -> list[Path]:
    """List the given files and all videos inside the given folders, in order and without duplicates.

    Folders are searched recursively. A folder that holds images and no video file counts as a video with one
    frame per image. A given file counts as a video whatever its extension.

    Raises:
        InputError: a path does not exist, or a folder holds no video.
    """
    found: dict[Path, Path] = {}  # resolved path → path as given
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path} does not exist; give video files or folders of them")
        files = [path]
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if not any(part[0] == "." for part in p.relative_to(path).parts))
            videos = [p for p in inside if p.suffix.lower() in EXTENSIONS and p.is_file()]
            with_videos = {p.parent for p in videos}
            with_images = {p.parent for p in inside if p.suffix.lower() in FRAMES and p.is_file()}
            files = sorted([*videos, *(with_images - with_videos)])
            if not files:
                raise InputError(
                    f"{path} holds no video; use folders of images or files with {' '.join(sorted(EXTENSIONS))}"
                )
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def duration(path: str | Path) -> float:
    """Return the length in seconds of the largest video stream, from the file's header or else from its packets.

    Raises:
        VideoError: the file cannot be read or has no video.
    """
    if Path(path).is_dir():
        return len(_frame_files(path)) / FRAME_RATE
    with _opened(path) as (container, stream):
        if stream.duration:
            return stream.duration * float(stream.time_base or 0)
        if container.duration:
            return container.duration / 1e6
        times = [float(packet.pts * packet.time_base) for packet in container.demux(stream) if packet.pts is not None]
        return max(times) - min(times) if times else 0.0


def stream_frames(
    path: str | Path, times: Sequence[float], size: tuple[int, int]
) -> Iterator[tuple[float, float, Image]]:
    """Yield (requested time, actual time, image) for the first frame at or after each of `times`, in order of time.

    The last frame also serves times up to 0.2 s after it. Frames are rotated upright, resized to cover `size`,
    and cropped at the centre as they are decoded, so that at most one is in memory here. Damaged frames are
    skipped. A video that ends early yields the frames it has.

    Args:
        path: video file, or folder of frames at 24 per second.
        times: seconds from the start.
        size: (height, width) of the images in pixels.

    Raises:
        VideoError: the file cannot be read or has no video.
    """
    requested = sorted(set(times))
    yield from _from_folder(path, requested, size) if Path(path).is_dir() else _from_file(path, requested, size)


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


def _from_file(path: str | Path, requested: list[float], size: tuple[int, int]) -> Iterator[tuple[float, float, Image]]:
    """`stream_frames` of a video file; `requested` is sorted."""
    import av

    reached, done, frame = 0.0, 0, None
    with _opened(path) as (container, stream):
        unit = float(stream.time_base or 1)
        start = (stream.start_time or 0) * unit
        while done < len(requested):
            if requested[done] > reached + SEEK:
                with suppress(av.FFmpegError):  # a file that cannot seek is decoded instead
                    container.seek(int((start + requested[done]) / unit), stream=stream)
            before = done
            for time, frame in _decoded(container, stream):
                reached = time - start
                if reached < requested[done] - 1e-6:
                    continue
                image = fit(_upright(frame), size)
                while done < len(requested) and requested[done] <= reached + 1e-6:
                    yield requested[done], reached, image
                    done += 1
                if done == len(requested) or requested[done] > reached + SEEK:
                    break
            if done == before:  # the stream ended before the requested time
                break
        if frame is not None and done < len(requested) and requested[done] <= reached + LATE:
            image = fit(_upright(frame), size)
            yield from ((time, reached, image) for time in requested[done:] if time <= reached + LATE)


def _from_folder(
    path: str | Path, requested: list[float], size: tuple[int, int]
) -> Iterator[tuple[float, float, Image]]:
    """`stream_frames` of a folder of frames; `requested` is sorted."""
    files = _frame_files(path)
    for time in requested:
        index = max(0, math.ceil(time * FRAME_RATE - 1e-6))
        if index >= len(files) + LATE * FRAME_RATE:
            return
        index = min(index, len(files) - 1)
        image = cv2.imread(str(files[index]), cv2.IMREAD_COLOR)  # applies the EXIF orientation
        if image is not None:
            yield time, index / FRAME_RATE, fit(np.ascontiguousarray(image[..., ::-1]), size)


def _frame_files(path: str | Path) -> list[Path]:
    """List the images of a folder in natural order: frame2 comes before frame10."""
    files = [p for p in Path(path).iterdir() if p.suffix.lower() in FRAMES and p.name[0] != "."]
    return sorted(files, key=lambda p: [(int(s), "") if s.isdigit() else (-1, s) for s in re.split(r"(\d+)", p.name)])


def fit(image: Image, size: tuple[int, int]) -> Image:
    """Crop the centre of an image to the aspect ratio of `size` (height, width) and resize it to that size."""
    height, width = image.shape[:2]
    scale = min(height / size[0], width / size[1])
    h, w = min(height, round(size[0] * scale)), min(width, round(size[1] * scale))
    top, left = (height - h) // 2, (width - w) // 2
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    crop = np.ascontiguousarray(image[top : top + h, left : left + w])
    return cv2.resize(crop, (size[1], size[0]), interpolation=method).astype(np.uint8, copy=False)


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """Open a file and yield the container and its largest video stream.

    Raises:
        VideoError: opening or reading fails, here or inside the block.
    """
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{path} has no video stream")
            stream = max(container.streams.video, key=lambda s: s.width * s.height)
            stream.codec_context.thread_count = 1  # parallelism is over videos, one process each
            yield container, stream
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path} cannot be read ({error.strerror or error})") from error


def _decoded(container: InputContainer, stream: av.VideoStream) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yield (time in seconds, frame) for every frame that can be decoded.

    Frames without a time stamp get one from their number and the stream's frame rate.
    """
    import av

    count, step = 0, 1 / float(stream.average_rate or FRAME_RATE)
    for packet in container.demux(stream):
        with suppress(av.FFmpegError):  # a damaged packet
            for frame in packet.decode():
                if not frame.is_corrupt:
                    yield (count * step if frame.time is None else frame.time), frame
                count += 1


def _upright(frame: av.VideoFrame) -> Image:
    """Convert a frame to RGB [h, w, 3], rotated as its metadata says."""
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
