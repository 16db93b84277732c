"""Write procedural scenes as video files."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

from fp_lightning.errors import InputError
from fp_lightning.files import written_beside
from fp_lightning.scenes.content import SceneContent
from fp_lightning.scenes.scene import Scene


def write_clip(scene: Scene, path: str | Path, seconds: float = 4.0, fps: float = 8.0) -> Path:
    """Write a scene, from time 0 to 1, as an H.264 video of `seconds` at `fps`; return `path`. The write is atomic.

    Raises:
        InputError: a side of the scene is odd (4:2:0 video needs even sides), there are less than two frames, or the
            file cannot be written.
    """
    import av

    path, count = Path(path), round(seconds * fps)
    height, width = scene.size
    if height % 2 or width % 2 or count < 2:
        raise InputError(
            f"a clip needs even sides and two frames or more, got {height}x{width} and {count} frames; "
            f"try {height + height % 2}x{width + width % 2} and {max(seconds, 2 / fps):g} s"
        )
    kind = {".mkv": "matroska"}.get(path.suffix.lower(), path.suffix[1:].lower() or "mp4")
    with written_beside(path) as partial, av.open(os.fspath(partial), "w", format=kind) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "10", "threads": "1"}
        for index in range(count):
            image = scene.frame(index / (count - 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_clips(
    out: str | Path,
    count: int,
    size: tuple[int, int] = (256, 256),
    seed: int = 0,
    seconds: float = 4.0,
    fps: float = 8.0,
    content: SceneContent | None = None,
) -> list[Path]:
    """Write `count` clips as `out/scene-SEED.mp4`, for the seeds `seed`, `seed + 1` and so on, and return their paths.

    Args:
        out: folder for the clips.
        count: number of clips.
        size: (height, width) in pixels, even.
        seed: first seed.
        seconds: duration of a clip.
        fps: frames per second.
        content: what the scenes show; None for the defaults.

    Raises:
        InputError: see `write_clip`.
    """
    return [
        write_clip(Scene(s, size, content), Path(out) / f"scene-{s}.mp4", seconds, fps)
        for s in range(seed, seed + count)
    ]
