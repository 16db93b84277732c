"""Finding videos and reading the frames of chosen times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from fp_lightning.errors import InputError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

Image = NDArray[np.uint8]  # [h, w, 3] RGB
EXTENSIONS = {".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".3gp"}
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

    Raises:
        InputError: a path does not exist, or a folder holds no video.
    """
    found: dict[Path, Path] = {}  # resolved → as given
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path} does not exist; name video files or folders of them")
        files = [path]
        if path.is_dir():
            files = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.name[0] != "." and p.is_file()
            )
            if not files:
                raise InputError(f"{path} holds no video; known endings are {' '.join(sorted(EXTENSIONS))}")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def duration(path: str | Path) -> float:
    """Length of the largest video stream in seconds, as the file states it, else from its packets.

    Raises:
        VideoError: the file cannot be read or has no video.
    """
    with _opened(path) as (container, stream):
        if stream.duration:
            return stream.duration * float(stream.time_base or 0)
        if container.duration:
            return container.duration / 1e6
        times = [float(packet.pts * packet.time_base) for packet in container.demux(stream) if packet.pts is not None]
        return max(times) - min(times) if times else 0.0


def read_frames(path: str | Path, times: Sequence[float], size: tuple[int, int]) -> Clip:
    """The first frame at or after each of `times` (seconds from the stream's start), at `size`.

    Frames are turned upright, resized to cover `size` (height, width) and cropped at the centre as
    they are decoded, so no more than `times` of them are held. What a damaged file still yields is
    returned, and `Clip.problem` says what is missing.

    Raises:
        VideoError: the file cannot be read, has no video, or yields no wanted frame.
    """
    import av

    clip, wanted = Clip(), sorted(times)
    reached = 0.0
    with _opened(path) as (container, stream):
        unit = float(stream.time_base or 1)
        start = (stream.start_time or 0) * unit
        while len(clip.frames) < len(wanted):
            ahead = wanted[len(clip.frames)]
            if ahead > reached + SEEK:
                with suppress(av.FFmpegError):  # what cannot seek is decoded up to there
                    container.seek(int((start + ahead) / unit), stream=stream)
            before = len(clip.frames)
            for frame in _decoded(container, stream, clip):
                reached = frame.time - start
                if reached < wanted[len(clip.frames)] - 1e-6:
                    continue
                image = fit(_upright(frame), size)
                while len(clip.frames) < len(wanted) and wanted[len(clip.frames)] <= reached + 1e-6:
                    clip.frames[wanted[len(clip.frames)]] = reached, image
                if len(clip.frames) == len(wanted) or wanted[len(clip.frames)] > reached + SEEK:
                    break
            if len(clip.frames) == before:  # the stream ended before it
                break
    if not clip.frames:
        raise VideoError(f"{path} gives no frame at {wanted[0]:.1f} s or later ({clip.problem or 'it ends before'})")
    if len(clip.frames) < len(wanted):
        clip.problem = (
            f"{path} ends at {reached:.1f} s, frames up to {wanted[-1]:.1f} s were expected; it may be cut off"
        )
    return clip


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


def _decoded(container: InputContainer, stream: av.VideoStream, clip: Clip) -> Iterator[av.VideoFrame]:
    """Frames that decode; a damaged packet is noted in `clip` and passed over."""
    import av

    for packet in container.demux(stream):
        try:
            for frame in packet.decode():
                if frame.pts is not None and not frame.is_corrupt:
                    yield frame
        except av.FFmpegError as error:
            clip.problem = f"{container.name} has damaged frames ({error.strerror})"


def _upright(frame: av.VideoFrame) -> Image:
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
