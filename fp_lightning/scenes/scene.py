"""Procedural clips with exact flow, tracks and visibility: textured objects over textured ground.

A scene is a function of its seed and of time. Its objects' motion has a closed form and an inverse, so every
pixel's position at any other time is known exactly, and so is whether something hides it there.
"""

from __future__ import annotations

import math
import os
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fp_lightning.errors import InputError
from fp_lightning.scenes.shapes import Object, varied, vector
from fp_lightning.scenes.textures import Array, texture
from fp_lightning.types import TRACK_STRIDE, VideoPair

GROUND = -1  # layer index of the ground; objects count from 0, later ones lie on top


class Scene:
    """A procedural clip over time 0 to 1.

    Args:
        seed: decides everything; at another size of the same aspect it gives the same objects and
            paths (textures differ: theirs is the detail that the size can show).
        size: (height, width) in pixels.
        objects: least and greatest number of objects.
        motion: least and greatest displacement over the whole clip, in image widths
            (8 to 24 px at 64 px is 0.125 to 0.375).
        radius: least and greatest radius of an object, in image widths.
        turn: greatest rotation over the clip, in radians.
        growth: greatest change of log scale over the clip.
        exposure: 0 for well-lit scenes; up to 1 adds dark, bright, flat and tinted ones.
        variety: 0 for plain outlines that move by similarity transforms; up to 1, the probability with which an object
            is stretched, hollow, bends or has swinging limbs (`varied`), and with which the scene has shadows and a
            glossy floor that mirrors what stands on it. Neither is a surface of its own: flow and tracks are those
            of what they fall on.
        detail: of textures. At 1 they have all that the size can show; at 0.5 everything in them is twice as large.

    Raises:
        InputError: `exposure`, `variety` or `detail` is outside of [0, 1], or `objects`, `motion` or `radius` is not
            least and greatest.
    """

    def __init__(
        self,
        seed: int,
        size: tuple[int, int] = (64, 64),
        objects: tuple[int, int] = (1, 1),
        motion: tuple[float, float] = (0.125, 0.375),
        turn: float = 0.3,
        growth: float = 0.1,
        exposure: float = 0.0,
        variety: float = 0.0,
        radius: tuple[float, float] = (0.12, 0.24),
        detail: float = 1.0,
    ) -> None:
        for name, value in (("exposure", exposure), ("variety", variety), ("detail", detail)):
            if not 0 <= value <= 1:
                raise InputError(f"{name} of a scene must be between 0 and 1, got {value:g}")
        for name, (least, most) in (("objects", objects), ("motion", motion), ("radius", radius)):
            if not 0 <= least <= most:
                raise InputError(f"{name} of a scene are the least and the greatest, got {least:g} and {most:g}")
        self.seed, self.size, self._detail = seed, size, detail
        rng = np.random.default_rng(seed)
        self._paint = np.random.default_rng([seed, 1])  # its own generator: textures draw more at greater sizes
        self._texels = 1 << max(5, min(9, (size[1] - 1).bit_length()))
        self.ground = texture(self._paint, self._texels)
        aspect = size[0] / size[1]
        count = int(rng.integers(objects[0], objects[1] + 1))
        self.objects = [self._object(rng, aspect, motion, turn, growth, radius) for _ in range(count)]
        self._light = rng.uniform(0.75, 1.15), rng.normal(0, 0.12, 2)  # brightness and its slope
        self._gain = math.exp(exposure * rng.uniform(-1.2, 0.4))
        self._grey = 0.5 + exposure * (rng.uniform(-0.45, 0.45) + rng.normal(0, 0.05, 3))  # what middle grey becomes
        self._shadow: tuple[Array, float] | None = None  # where it falls from its object, and how dark it is
        self._gloss = 0.0  # of the floor: the share of the mirror image
        if variety:
            self._vary(np.random.default_rng([seed, 2]), variety)

    def _vary(self, rng: np.random.Generator, variety: float) -> None:
        def paint() -> Array:
            return texture(self._paint, self._texels)

        self.objects = [part for item in self.objects for part in varied(item, rng, variety, paint)]
        if rng.random() < variety:
            direction = rng.uniform(0, 2 * math.pi)
            cast = rng.uniform(0.02, 0.09) * np.array([math.cos(direction), math.sin(direction)])
            self._shadow = cast.astype(np.float32), rng.uniform(0.2, 0.6)
        if rng.random() < variety / 2:
            self._gloss = rng.uniform(0.15, 0.5)

    def _object(
        self,
        rng: np.random.Generator,
        aspect: float,
        motion: tuple[float, float],
        turn: float,
        growth: float,
        radius: tuple[float, float],
    ) -> Object:
        size = rng.uniform(*radius)
        length, extent = rng.uniform(*motion), np.array([1.0, aspect])
        for _ in range(100):  # a path that stays inside the image
            direction = rng.uniform(0, 2 * math.pi)
            start = rng.uniform(0.15, 0.85, 2) * extent
            step = length * np.array([math.cos(direction), math.sin(direction)])
            if np.all(start + step > 0.12) and np.all(start + step < extent - 0.12):
                break
        return Object(
            radius=size,
            harmonics=np.stack([rng.uniform(0, 0.14, 3), rng.uniform(0, 2 * math.pi, 3)], -1).astype(np.float32),
            corners=int(rng.choice([0, 0, 3, 4, 5])),
            start=start.astype(np.float32),
            motion=step.astype(np.float32),
            bend=rng.uniform(-0.2, 0.2),
            turn=rng.uniform(-turn, turn),
            growth=rng.uniform(-growth, growth),
            texture=texture(self._paint, self._texels),
        )

    def _grid(self, step: float) -> Array:
        """Image positions [n, m, 2], in widths, of the centres of squares of `step` pixels."""
        height, width = self.size
        y, x = np.mgrid[: round(height / step), : round(width / step)].astype(np.float32)
        return ((np.stack([x, y], -1) + 0.5) * (step / width)).astype(np.float32)

    def layer(self, points: Array, time: float) -> NDArray[np.int64]:
        """The topmost object at image positions [..., 2] (in widths), or GROUND."""
        top = np.full(points.shape[:-1], GROUND)
        for index, item in enumerate(self.objects):
            top[item.contains(item.to_local(points, time))] = index
        return top

    def correspond(self, points: Array, at: float, to: float) -> tuple[Array, NDArray[np.bool_]]:
        """Where what is seen at positions [..., 2] (in widths) at time `at` is at time `to`.

        Returns the positions [..., 2] in widths, and whether they are seen there [...].
        """
        layer, moved = self.layer(points, at), points.copy()
        for index, item in enumerate(self.objects):
            on = layer == index
            moved[on] = item.to_image(item.to_local(points[on], at), to)
        limit = np.array([1.0, self.size[0] / self.size[1]])
        inside = np.all((moved >= 0) & (moved < limit), axis=-1)
        return moved, inside & (self.layer(moved, to) == layer)

    def frame(self, time: float, supersample: int = 3) -> NDArray[np.uint8]:
        """The image at `time`, uint8 [h, w, 3]; each pixel is the mean of supersample² samples."""
        points = self._grid(1 / supersample)
        colour = self._sample(self.ground, points)
        bodies = [list(parts) for _, parts in groupby(self.objects, key=lambda item: id(item.root))]
        for parts in bodies:
            if self._shadow is not None:
                self._darken(colour, points, parts, time)
            if self._gloss:
                self._mirror(colour, points, parts, time)
            for item in parts:
                window, local, on = self._covered(item, points, time)
                colour[window][on] = self._sample(item.texture, local[on])
        height, width = self.size
        colour = vector(cv2.resize(colour, (width, height), interpolation=cv2.INTER_AREA))
        brightness, slope = self._light
        light = brightness + (self._grid(1) - 0.5) @ slope
        developed = (colour * light[..., None] - 0.5) * self._gain + self._grey
        return np.clip(developed * 255 + 0.5, 0, 255).astype(np.uint8)

    def _covered(
        self, item: Object, points: Array, time: float, shift: Array | None = None, sign: float = 1.0
    ) -> tuple[tuple[slice, slice], Array, NDArray[np.bool_]]:
        """The window of `points` that an object can reach, their object coordinates, and which of them it covers.

        `shift` moves the object's image, after a `sign` of −1 has mirrored it top to bottom.
        """
        flip, move = vector([1, sign]), vector([0, 0]) if shift is None else shift
        centre, radius = item.bounds(time)
        step = points[0, 1, 0] - points[0, 0, 0]
        low, high = ((centre * flip + move + end) / step for end in (-radius, radius))
        first, last = np.maximum(np.floor(low), 0).astype(int), np.maximum(np.ceil(high), 0).astype(int)
        window = slice(first[1], last[1]), slice(first[0], last[0])
        local = item.to_local((points[window] - move) * flip, time)
        return window, local, item.contains(local)

    def _darken(self, colour: Array, points: Array, parts: list[Object], time: float) -> None:
        """The shadow of one body on all that lies below it."""
        assert self._shadow is not None
        cast, strength = self._shadow
        shade = np.zeros(points.shape[:2], bool)
        for item in parts:
            window, _, on = self._covered(item, points, time, cast)
            shade[window] |= on
        colour[shade] *= 1 - strength

    def _mirror(self, colour: Array, points: Array, parts: list[Object], time: float) -> None:
        """The mirror image of one body on the floor below its lower edge."""
        body = parts[0].root
        centre, _, scale = body.pose(time)
        base = centre[1] + 0.9 * body.radius * body.stretch[1] * scale
        for item in parts:
            window, local, on = self._covered(item, points, time, vector([0, 2 * base]), -1.0)
            on &= points[window][..., 1] > base
            colour[window][on] += self._gloss * (self._sample(item.texture, local[on]) - colour[window][on])

    def travel(self, at: float, to: float) -> float:
        """The greatest displacement of a token between two times, in widths."""
        moved, _ = self.correspond(points := self._grid(TRACK_STRIDE / 2), at, to)
        return float(np.linalg.norm(moved - points, axis=-1).max())

    def _sample(self, image: Array, points: Array) -> Array:
        flat = (points.reshape(-1, 2) * (self._texels * self._detail)).astype(np.float32)
        if not len(flat):
            return np.empty((*points.shape[:-1], 3), np.float32)
        rows = np.resize(flat, (-(-len(flat) // 4096), 4096, 2))  # remap takes fewer than 2^15 columns
        colour = cv2.remap(image, rows[..., 0], rows[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        return colour.reshape(-1, 3)[: len(flat)].reshape(*points.shape[:-1], 3).astype(np.float32, copy=False)

    def flow(self, at: float, to: float) -> Array:
        """Exact flow [2, h, w] in pixels: position at time `at` + flow = position at time `to`."""
        points = self._grid(1)
        moved, _ = self.correspond(points, at, to)
        return np.moveaxis((moved - points) * self.size[1], -1, 0)

    def tracks(self, at: float, to: float, stride: float = TRACK_STRIDE) -> tuple[Array, NDArray[np.bool_]]:
        """Where the token centres at `at` are at time `to`: exact positions [2, h/stride, w/stride] in pixels.

        With it, whether each is seen there: bool [h/stride, w/stride].
        """
        moved, visible = self.correspond(self._grid(stride), at, to)
        return np.moveaxis(moved * self.size[1], -1, 0), visible

    def pair(self, source: float = 0.0, target: float = 1.0, stride: float = TRACK_STRIDE) -> VideoPair:
        """The exact `VideoPair` between two times, its tracks `stride` pixels apart."""
        tracks, visible = self.tracks(target, source, stride)

        def tensor(array: NDArray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array))

        return VideoPair(
            source=tensor(np.moveaxis(self.frame(source), -1, 0)),
            target=tensor(np.moveaxis(self.frame(target), -1, 0)),
            flow_to_source=tensor(self.flow(target, source)),
            flow_to_target=tensor(self.flow(source, target)),
            tracks=tensor(tracks),
            visible=tensor(visible),
            meta={"video": f"scene-{self.seed}", "times": [source, target], "flow": "exact", "tracks": "exact"},
        )


def write_clip(scene: Scene, path: str | Path, seconds: float = 4.0, fps: float = 8.0) -> Path:
    """Films a scene's time 0 to 1 as H.264 over `seconds`; the file appears whole or not at all.

    Raises:
        InputError: a side of the scene is odd (4:2:0 video has even sides), or there is no second frame.
    """
    import av

    path, count = Path(path), round(seconds * fps)
    height, width = scene.size
    if height % 2 or width % 2 or count < 2:
        raise InputError(
            f"a clip needs even sides and two frames or more, got {height}x{width} and {count} frames; "
            f"try {height + height % 2}x{width + width % 2} and {max(seconds, 2 / fps):g} s"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with av.open(str(partial), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.options = {"crf": "10", "threads": "1"}
            for index in range(count):
                image = scene.frame(index / (count - 1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_clips(
    out: str | Path,
    count: int,
    size: tuple[int, int] = (256, 256),
    seed: int = 0,
    seconds: float = 4.0,
    fps: float = 8.0,
    **scene: Any,
) -> list[Path]:
    """Writes `count` clips of seeds `seed`, `seed + 1`, … as scene-SEED.mp4; `scene` goes to `Scene`."""
    return [
        write_clip(Scene(s, size, **scene), Path(out) / f"scene-{s}.mp4", seconds, fps)
        for s in range(seed, seed + count)
    ]
