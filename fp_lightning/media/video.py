"""Finding videos, and reading their frames of chosen times: files of any container, and folders of frames."""

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
LATE = 0.2  # seconds after the last frame up to which it still answers: stated lengths are not exact
SEEK = 10.0  # seconds to the next wanted frame from which seeking beats decoding on


class VideoError(InputError):
    """A video that cannot be read."""


@dataclass
class Clip:
    """Frames of one video by the wanted time they answer; `problem` says what was lost on the way."""

    frames: dict[float, tuple[float, Image]] = field(default_factory=dict)  # wanted → (actual time in seconds, image)
    problem: str | None = None


def list_videos(paths: Sequence[str | Path]) -> list[Path]:
    """The named files, and the videos in the named folders at any depth, each once, in order.

    A folder that holds images and no video file is itself a video, of one image a frame. A file that is
    named is taken whatever its ending.

    Raises:
        InputError: a path does not exist, or a folder holds no video.
    """
    found: dict[Path, Path] = {}  # resolved → as given
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path} does not exist; name video files or folders of them")
        files = [path]
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if not any(part[0] == "." for part in p.relative_to(path).parts))
            videos = [p for p in inside if p.suffix.lower() in EXTENSIONS and p.is_file()]
            holders = {p.parent for p in videos}
            frames = {p.parent for p in inside if p.suffix.lower() in FRAMES and p.is_file()}
            files = sorted([*videos, *(frames - holders)])
            if not files:
                raise InputError(
                    f"{path} holds no video; known are folders of images and the endings {' '.join(sorted(EXTENSIONS))}"
                )
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def duration(path: str | Path) -> float:
    """Length of the largest video stream in seconds, as the file states it, else from its packets.

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
    """Yields (wanted time, actual time, image) for the first frame at or after each of `times`, in order of time.

    Times are seconds from the start; the last frame also answers times shortly after it. Frames are turned
    upright, resized to cover `size` (height, width) and cropped at the centre as they are decoded: no
    more than one is held here. Damaged frames are passed over; a video that ends early yields what it has.

    Raises:
        VideoError: the file cannot be read or has no video.
    """
    wanted = sorted(set(times))
    yield from _from_folder(path, wanted, size) if Path(path).is_dir() else _from_file(path, wanted, size)


def read_frames(path: str | Path, times: Sequence[float], size: tuple[int, int]) -> Clip:
    """`stream_frames`, all held at once. `Clip.problem` says what is missing.

    Raises:
        VideoError: the file cannot be read, has no video, or yields no wanted frame.
    """
    clip = Clip({wanted: (actual, image) for wanted, actual, image in stream_frames(path, times, size)})
    if not clip.frames:
        raise VideoError(f"{path} gives no frame at {min(times):.1f} s or later; it ends before, or is damaged")
    if len(clip.frames) < len(set(times)):
        clip.problem = ends_early(path, max(actual for actual, _ in clip.frames.values()))
    return clip


def ends_early(path: str | Path, last: float) -> str:
    return f"{path}: frames after {last:.1f} s are missing; it may be cut off or damaged"


def _from_file(path: str | Path, wanted: list[float], size: tuple[int, int]) -> Iterator[tuple[float, float, Image]]:
    import av

    reached, done, frame = 0.0, 0, None
    with _opened(path) as (container, stream):
        unit = float(stream.time_base or 1)
        start = (stream.start_time or 0) * unit
        while done < len(wanted):
            if wanted[done] > reached + SEEK:
                with suppress(av.FFmpegError):  # what cannot seek is decoded up to there
                    container.seek(int((start + wanted[done]) / unit), stream=stream)
            before = done
            for time, frame in _decoded(container, stream):
                reached = time - start
                if reached < wanted[done] - 1e-6:
                    continue
                image = fit(_upright(frame), size)
                while done < len(wanted) and wanted[done] <= reached + 1e-6:
                    yield wanted[done], reached, image
                    done += 1
                if done == len(wanted) or wanted[done] > reached + SEEK:
                    break
            if done == before:  # the stream ended before it
                break
        if frame is not None and done < len(wanted) and wanted[done] <= reached + LATE:
            image = fit(_upright(frame), size)
            yield from ((time, reached, image) for time in wanted[done:] if time <= reached + LATE)


def _from_folder(path: str | Path, wanted: list[float], size: tuple[int, int]) -> Iterator[tuple[float, float, Image]]:
    files = _frame_files(path)
    for time in wanted:
        index = max(0, math.ceil(time * FRAME_RATE - 1e-6))
        if index >= len(files) + LATE * FRAME_RATE:
            return
        index = min(index, len(files) - 1)
        image = cv2.imread(str(files[index]), cv2.IMREAD_COLOR)  # honours the EXIF orientation
        if image is not None:
            yield time, index / FRAME_RATE, fit(np.ascontiguousarray(image[..., ::-1]), size)


def _frame_files(path: str | Path) -> list[Path]:
    """The images of a folder; numbers in their names count as numbers."""
    files = [p for p in Path(path).iterdir() if p.suffix.lower() in FRAMES and p.name[0] != "."]
    return sorted(files, key=lambda p: [(int(s), "") if s.isdigit() else (-1, s) for s in re.split(r"(\d+)", p.name)])


def fit(image: Image, size: tuple[int, int]) -> Image:
    """The central part with the aspect of `size` (height, width), resized to it; aspect is kept."""
    height, width = image.shape[:2]
    scale = min(height / size[0], width / size[1])
    h, w = min(height, round(size[0] * scale)), min(width, round(size[1] * scale))
    top, left = (height - h) // 2, (width - w) // 2
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    crop = np.ascontiguousarray(image[top : top + h, left : left + w])
    return cv2.resize(crop, (size[1], size[0]), interpolation=method).astype(np.uint8, copy=False)


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """The container and its largest video stream; whatever fails inside is a VideoError."""
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{path} has no video stream")
            stream = max(container.streams.video, key=lambda s: s.width * s.height)
            stream.codec_context.thread_count = 1  # videos are spread over processes instead
            yield container, stream
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path} cannot be read ({error.strerror or error})") from error


def _decoded(container: InputContainer, stream: av.VideoStream) -> Iterator[tuple[float, av.VideoFrame]]:
    """(time in seconds, frame) of all that decodes; frames without a time stamp are counted at the stream's rate."""
    import av

    count, step = 0, 1 / float(stream.average_rate or FRAME_RATE)
    for packet in container.demux(stream):
        with suppress(av.FFmpegError):  # a damaged packet
            for frame in packet.decode():
                if not frame.is_corrupt:
                    yield (count * step if frame.time is None else frame.time), frame
                count += 1


def _upright(frame: av.VideoFrame) -> Image:
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
