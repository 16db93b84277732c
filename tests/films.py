"""Small films that tests synthesise."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np

ONE = 0x10000  # of a display matrix
MATRICES = {  # of the `tkhd` box: x right, y down
    "left-right": (-ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30),
    "top-bottom": (ONE, 0, 0, 0, -ONE, 0, 0, 0, 1 << 30),
    "half turn": (-ONE, 0, 0, 0, -ONE, 0, 0, 0, 1 << 30),
    "quarter turn right": (0, ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30),
    "quarter turn left": (0, -ONE, 0, ONE, 0, 0, 0, 0, 1 << 30),
    "transposed": (0, ONE, 0, ONE, 0, 0, 0, 0, 1 << 30),
    "transposed and turned": (0, -ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30),
}


def levels(count: int, size: tuple[int, int] = (64, 96), step: int = 10) -> list[np.ndarray]:
    """Grey images; image i has the level `step` · i."""
    return [np.full((*size, 3), step * i, np.uint8) for i in range(count)]


def corners(size: tuple[int, int] = (64, 96)) -> np.ndarray:
    """Grey with red at the top left and blue at the bottom right."""
    image = np.full((*size, 3), 60, np.uint8)
    image[: size[0] // 2, : size[1] // 2] = (200, 40, 40)
    image[size[0] // 2 :, size[1] // 2 :] = (40, 40, 200)
    return image


def write_film(
    path: Path,
    frames: Iterable[np.ndarray | av.VideoFrame],
    *,
    fps: int = 8,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    stamp: Callable[[av.Packet], None] | None = None,
    **context: Any,
) -> Path:
    """Write RGB images [h, w, 3] or frames. `stamp` changes packets; `context` sets fields of the codec context."""
    with av.open(str(path), "w", format="h264" if path.suffix == ".h264" else None) as container:
        stream = container.add_stream(codec, rate=fps, options={"crf": "4"} | dict(options or {}))
        stream.pix_fmt = pix_fmt
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for index, image in enumerate([*frames, None]):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24") if isinstance(image, np.ndarray) else image
            if index == 0:
                stream.width, stream.height = frame.width, frame.height
            for packet in stream.encode(frame):
                if stamp is not None:
                    stamp(packet)
                container.mux(packet)
    return path


def flat(codes: tuple[int, int, int], pix_fmt: str = "yuv420p", size: tuple[int, int] = (64, 96)) -> av.VideoFrame:
    """A frame of one colour, given as its stored codes of Y, Cb and Cr."""
    frame = av.VideoFrame(size[1], size[0], pix_fmt)
    for plane, code in zip(frame.planes, codes, strict=True):
        dtype = np.uint16 if "p10" in pix_fmt else np.uint8
        plane.update(np.full(plane.buffer_size // np.dtype(dtype).itemsize, code, dtype).tobytes())
    return frame


def mux_again(source: Path, path: Path, stamp: Callable[[av.Packet], None]) -> Path:
    """Copy the packets of a film into another container, changed by `stamp`."""
    with av.open(str(source)) as read, av.open(str(path), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(read.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                stamp(packet)
                written.mux(packet)
    return path


def set_matrix(path: Path, matrix: tuple[int, ...]) -> Path:
    """Set the display matrix of an MP4."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    data[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)
    return path


def add_sound(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    """Write silence to the end of a container."""
    for begin in range(0, int(seconds * stream.rate), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = stream.rate, begin
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
