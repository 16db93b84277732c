"""Decode the film of a video file: its stream, its length, and progressive frames with their times."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cv2

from fp_lightning.errors import InputError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.filter import Graph

FRAME_RATE = 24.0  # frames per second where nothing else is known
MAX_PIXELS = 2**26  # of a frame; 8192 × 8192
UNTIMED = 0x80  # AVFMT_NOTIMESTAMPS: a raw stream
PROBED = 5  # frames whose time stamps are checked; decoders hold back at most that many in practice
CUT_SHORT = 1.0  # seconds by which a file's content is shorter than its header says if it is truncated
DECODING = (OSError, ValueError, RuntimeError, ArithmeticError, LookupError, MemoryError, cv2.error)
Timed = tuple[float, "av.VideoFrame"]  # seconds from the start of the stream, frame
SAME = 1e-6  # seconds within which two times are equal


class VideoError(InputError):
    """A video that cannot be read."""


@contextmanager
def opened(path: str | Path) -> Iterator[Film]:
    """Open a video file and yield its film.

    Raises:
        VideoError: opening or reading fails, here or inside the block.
    """
    import av

    try:
        # as `file:`, since "Trip: Rome.mp4" would be a protocol; nothing but files, since playlists name servers
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}) as container:
            yield Film(container, _choose_stream(container))
    except InputError as error:
        raise VideoError(f"{path} cannot be read: {error}") from error
    except (av.FFmpegError, *DECODING) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise VideoError(f"{path} cannot be read ({reason})") from error


def _choose_stream(container: InputContainer) -> av.VideoStream:
    """Return the largest film: a stream of more than one picture that is not marked as a cover or thumbnails.

    Raises:
        InputError: there is no video, or it cannot be decoded.
    """
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        cover = ", only a cover picture" if container.streams.video else ""
        raise InputError(f"it has no video stream{cover}")
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise InputError("this build of FFmpeg has no decoder for it; convert it to H.264")
    stream = max(
        decodable, key=lambda s: (s.frames != 1, s.width * s.height, bool(s.disposition & Disposition.default))
    )
    if stream.width * stream.height > MAX_PIXELS:
        raise InputError(f"{stream.width} × {stream.height} pixels are more than {MAX_PIXELS}; scale it down")
    stream.codec_context.thread_count = 1  # parallelism is over videos, one process each
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


@dataclass
class Film:
    """The video stream of an open container."""

    container: InputContainer
    stream: av.VideoStream

    def __post_init__(self) -> None:
        stream = self.stream
        self.error: BaseException | None = None  # of the last packet that could not be decoded
        self.stamps: list[int] | None = None  # a heap of those in use, if frames are not stamped in their order
        self.has_times = not self.container.format.flags & UNTIMED
        self.seekable = self.has_times
        self.unit = float(stream.time_base or 1)  # seconds
        self.start = (stream.start_time or 0) * self.unit  # seconds
        self.step = 1 / float(stream.guessed_rate or stream.average_rate or FRAME_RATE)  # seconds
        self.aspect = float(stream.sample_aspect_ratio or 1)  # width of a stored pixel divided by its height

    def duration(self) -> float:
        """Return the length in seconds, from the header of the video stream or else from its packets.

        The container's own length is not used, since sound may go on after the last frame.

        Raises:
            InputError: the stream has no packets.
        """
        if self.has_times and (self.stream.duration or 0) > 0:
            return (self.stream.duration or 0) * self.unit
        return self._scanned()

    def _scanned(self) -> float:
        """Read all packets for their times, and return the length in seconds.

        If all streams end earlier than the header says, the file is truncated, and the header's length is returned.
        """
        count, last, longest = 0, 0.0, 0.0
        with suppress(*_reading_errors()):
            for packet in self.container.demux():
                own = packet.stream_index == self.stream.index
                count += bool(own and packet.size)
                if packet.pts is not None and packet.time_base:
                    end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                    longest = max(longest, end)
                    last = max(last, end) if own else last
        if not count:
            raise InputError("it has no frames")
        begin, stated = ((ticks or 0) / 1e6 for ticks in (self.container.start_time, self.container.duration))
        if self.has_times and longest - begin + CUT_SHORT < stated:
            return stated
        return last - self.start if last > self.start else count * self.step

    def shown(self, frame: av.VideoFrame) -> float:
        """Return for how many seconds a frame is shown."""
        return float(frame.duration * frame.time_base) if frame.duration and frame.time_base else self.step

    def frames(self, after: float | None = None) -> Iterator[Timed]:
        """Yield every frame from here on that can be decoded, progressive, with its time.

        Damaged frames are left out. Interlaced frames are deinterlaced by FFmpeg's bwdif.

        Args:
            after: time in seconds; frames begin with the last key frame at or before it. If the file cannot be
                searched for it, they begin with the first frame, and `seekable` becomes False.

        Raises:
            InputError: interlaced frames cannot be deinterlaced.
        """
        if after is not None:
            self._seek(after)
            frames = self._progressive()
            first = next(frames, None)
            if first is not None and first[0] <= after + SAME:
                yield first
                yield from frames
                return
            self.seekable = False
            self._seek(0.0)
        yield from self._progressive()

    def _seek(self, time: float) -> None:
        with suppress(*_reading_errors()):
            self.container.seek(int((self.start + time) / self.unit), stream=self.stream)

    def _progressive(self) -> Iterator[Timed]:
        """Yield decoded frames that are whole, deinterlaced, with their times."""
        weaver: Deinterlacer | None = None
        for time, frame in self._timed():
            if frame.is_corrupt:
                continue
            if weaver is not None and not weaver.takes(frame):
                yield from weaver.finish()
                weaver = None
            if weaver is None and frame.interlaced_frame:
                weaver = Deinterlacer(frame)
            if weaver is None:
                yield time, frame
            else:
                yield from weaver.push(time, frame)
        if weaver is not None:
            yield from weaver.finish()

    def _timed(self) -> Iterator[Timed]:
        """Yield decoded frames with increasing times.

        Some containers, above all AVI, stamp frames in the order of decoding although B-frames are shown in another.
        If the first frames are out of order, their sorted time stamps are used. A frame without a time stamp
        follows the frame before it by the average step.
        """
        self.stamps = [] if self.stream.codec_context.has_b_frames else None
        frames = self._decoded()
        probed = list(itertools.islice(frames, PROBED)) if self.stamps is not None else []
        known = [frame.pts for frame in probed if frame.pts is not None]
        if all(a < b for a, b in itertools.pairwise(known)):
            self.stamps = None
        time: float | None = None
        for frame in itertools.chain(probed, frames):
            stamp = heapq.heappop(self.stamps) if self.stamps else frame.pts
            stamped = None if stamp is None else stamp * self.unit - self.start
            if stamped is None or (time is not None and stamped <= time):
                stamped = 0.0 if time is None else time + self.step
            time = stamped
            yield time, frame

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Yield decoded frames, and push the time stamps of their packets to `stamps`.

        Damaged packets are left out. An error of the file ends the film. The last of these errors is in `error`.
        """
        packets = iter(self.container.demux(self.stream))
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except _reading_errors() as error:
                self.error = error
                return
            if self.stamps is not None and packet.pts is not None and packet.size:
                heapq.heappush(self.stamps, packet.pts)
            try:
                yield from packet.decode()
            except _reading_errors() as error:
                self.error = error


@dataclass
class Deinterlacer:
    """FFmpeg's bwdif for frames of one size and format; progressive frames pass unchanged.

    Raises:
        InputError: the filter cannot work on such frames, for example because they are too small.
    """

    first: av.VideoFrame
    graph: Graph = field(init=False)
    times: deque[float] = field(default_factory=deque)  # of the frames inside the filter

    def __post_init__(self) -> None:
        import av.filter

        frame, self.graph = self.first, av.filter.Graph()
        source = self.graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        filters = [source, self.graph.add("bwdif", "mode=send_frame:deint=interlaced"), self.graph.add("buffersink")]
        try:
            self.graph.link_nodes(*filters).configure()
        except _reading_errors() as error:
            raise InputError(f"its interlaced frames cannot be deinterlaced ({error})") from error

    def takes(self, frame: av.VideoFrame) -> bool:
        """Whether a frame has the size and format of the first one."""
        return (frame.width, frame.height, frame.format.name) == (
            self.first.width,
            self.first.height,
            self.first.format.name,
        )

    def push(self, time: float, frame: av.VideoFrame) -> Iterator[Timed]:
        """Take a frame and yield the frames that are ready, each with its time."""
        self.times.append(time)
        self.graph.vpush(frame)
        return self._ready()

    def finish(self) -> Iterator[Timed]:
        """Yield the remaining frames."""
        self.graph.vpush(None)
        return self._ready()

    def _ready(self) -> Iterator[Timed]:
        import av

        while self.times:
            try:
                frame = self.graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield self.times.popleft(), frame


def _reading_errors() -> tuple[type[BaseException], ...]:
    """Return the exceptions of damaged files."""
    import av

    return av.FFmpegError, *DECODING
