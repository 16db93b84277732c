"""Procedural clips with exact flow, tracks and visibility: textured objects over textured ground.

A scene is a function of its seed and of time. Objects are star-shaped outlines that move by a
similarity transform; every pixel's position at any other time is therefore known in closed form,
and so is whether something hides it there.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fp_lightning.errors import InputError
from fp_lightning.types import TRACK_STRIDE, VideoPair

Array = NDArray[np.float32]
GROUND = -1  # layer index of the ground; objects count from 0, later ones lie on top


def texture(rng: np.random.Generator, n: int) -> Array:
    """A periodic random texture, float32 [n, n, 3] in [0, 1]: noise, stripes, blots or leaves."""
    mean = np.clip(rng.uniform(0.1, 0.9) + rng.normal(0, rng.uniform(0.02, 0.25), 3), 0.05, 0.95)
    axes = rng.normal(0, 1, (3, 3)) * np.array([1.0, 0.35, 0.15])[:, None]  # colours vary along one axis mostly
    axes[0] = axes[0] * rng.uniform(0.05, 0.5) + rng.normal(0, 1)
    octave = _power_noise(rng, n, exponent=rng.uniform(0.8, 2.0))
    kind = rng.integers(4)
    if kind == 0:
        pattern = octave
    elif kind == 1:
        y, x = np.mgrid[:n, :n] / n * 2 * np.pi
        kx, ky = rng.integers(-9, 10, 2)
        wave = np.sin(kx * x + ky * y + octave[..., 0] * rng.uniform(0, 1.5))
        pattern = octave * 0.4 + (np.sign(wave) if rng.random() < 0.5 else wave)[..., None] * rng.normal(0, 1, 3)
    elif kind == 2:
        pattern = np.tanh(octave * rng.uniform(1, 6))
    else:
        pattern = _leaves(rng, n) + octave * rng.uniform(0.05, 0.4)
    contrast = rng.uniform(0.04, 0.32)
    return np.clip(mean + contrast * (pattern @ axes), 0, 1).astype(np.float32)


def _power_noise(rng: np.random.Generator, n: int, exponent: float) -> NDArray:
    """Periodic noise with amplitude 1 / frequency^exponent, three channels, unit variance."""
    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None]) * n
    amplitude = np.where(frequency > 0, np.maximum(frequency, 1) ** -exponent, 0)
    spectrum = np.fft.rfft2(rng.normal(size=(n, n, 3)), axes=(0, 1)) * amplitude[..., None]
    noise = np.fft.irfft2(spectrum, s=(n, n), axes=(0, 1))
    return noise / (noise.std() + 1e-8)


def _leaves(rng: np.random.Generator, n: int) -> NDArray:
    """Dead leaves: overlapping ellipses, boxes and lines of power-law sizes, flat random colours."""
    canvas = np.zeros((n, n, 3), np.float32)
    for _ in range(int(rng.integers(20, 120))):
        radius = max(1, int(n * 0.02 * rng.pareto(1.6) + 1)) % (n // 2)
        centre = tuple(int(v) for v in rng.integers(0, n, 2))
        colour = tuple(float(v) for v in rng.normal(0, 1.2, 3))
        shape = rng.integers(3)
        other = (centre[0] + int(rng.integers(-radius, radius + 1)), centre[1] + radius)
        if shape == 0:
            axes = (radius, max(1, int(radius * rng.uniform(0.3, 1))))
            cv2.ellipse(canvas, centre, axes, rng.uniform(0, 180), 0, 360, colour, -1)
        elif shape == 1:
            cv2.rectangle(canvas, centre, other, colour, -1)
        else:
            cv2.line(canvas, centre, other, colour, max(1, radius // 4))
    return canvas


@dataclass(frozen=True)
class Object:
    """A star-shaped textured object moving by a similarity transform. Lengths in image widths."""

    radius: float
    harmonics: Array  # [k, 2]: amplitude and phase of the outline's harmonics 2, 3, …
    corners: int  # 0: smooth outline; 3 and more: a regular polygon modulated by the harmonics
    start: Array  # [2] centre at time 0
    motion: Array  # [2] displacement from time 0 to time 1
    bend: float  # sideways bow of the path, in lengths of `motion`
    turn: float  # radians from time 0 to time 1
    growth: float  # log scale from time 0 to time 1
    texture: Array

    def pose(self, time: float) -> tuple[Array, float, float]:
        """Centre [2], angle and scale at `time`."""
        normal = np.array([-self.motion[1], self.motion[0]])
        centre = self.start + time * self.motion + self.bend * math.sin(math.pi * time) * normal
        return centre.astype(np.float32), self.turn * time, math.exp(self.growth * time)

    def to_local(self, points: Array, time: float) -> Array:
        """Image positions [..., 2] at `time` → object coordinates."""
        centre, angle, scale = self.pose(time)
        return ((points - centre) @ _rotation(-angle).T / scale).astype(np.float32)

    def to_image(self, local: Array, time: float) -> Array:
        """Object coordinates [..., 2] → image positions at `time`; the inverse of `to_local`."""
        centre, angle, scale = self.pose(time)
        return (local @ _rotation(angle).T * scale + centre).astype(np.float32)

    def contains(self, local: Array) -> NDArray[np.bool_]:
        """Whether object coordinates [..., 2] lie inside the outline."""
        angle = np.arctan2(local[..., 1], local[..., 0])
        limit = np.full_like(angle, self.radius)
        for k, (amplitude, phase) in enumerate(self.harmonics, start=2):
            limit = limit + self.radius * amplitude * np.cos(k * angle + phase)
        if self.corners:
            sector = math.pi / self.corners
            limit = limit * math.cos(sector) / np.cos((angle + math.pi) % (2 * sector) - sector)
        return (local**2).sum(-1) < limit**2


def _rotation(angle: float) -> Array:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s], [s, c]], np.float32)


class Scene:
    """A procedural clip over time 0 to 1.

    Args:
        seed: decides everything; at another size of the same aspect it gives the same objects and
            paths (textures differ: theirs is the detail that the size can show).
        size: (height, width) in pixels.
        objects: least and greatest number of objects.
        motion: least and greatest displacement over the whole clip, in image widths
            (8 to 24 px at 64 px is 0.125 to 0.375).
        turn: greatest rotation over the clip, in radians.
        growth: greatest change of log scale over the clip.
        exposure: 0 for well-lit scenes; up to 1 adds dark, bright, flat and tinted ones.
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
    ) -> None:
        self.seed, self.size = seed, size
        rng = np.random.default_rng(seed)
        self._paint = np.random.default_rng([seed, 1])  # its own generator: textures draw more at greater sizes
        self._texels = 1 << max(5, min(9, (size[1] - 1).bit_length()))
        self.ground = texture(self._paint, self._texels)
        aspect = size[0] / size[1]
        count = int(rng.integers(objects[0], objects[1] + 1))
        self.objects = [self._object(rng, aspect, motion, turn, growth) for _ in range(count)]
        self._light = rng.uniform(0.75, 1.15), rng.normal(0, 0.12, 2)  # brightness and its slope
        self._gain = math.exp(exposure * rng.uniform(-1.2, 0.4))
        self._grey = 0.5 + exposure * (rng.uniform(-0.45, 0.45) + rng.normal(0, 0.05, 3))  # what middle grey becomes

    def _object(
        self, rng: np.random.Generator, aspect: float, motion: tuple[float, float], turn: float, growth: float
    ) -> Object:
        radius = rng.uniform(0.12, 0.24)
        length, extent = rng.uniform(*motion), np.array([1.0, aspect])
        for _ in range(100):  # a path that stays inside the image
            direction = rng.uniform(0, 2 * math.pi)
            start = rng.uniform(0.15, 0.85, 2) * extent
            step = length * np.array([math.cos(direction), math.sin(direction)])
            if np.all(start + step > 0.12) and np.all(start + step < extent - 0.12):
                break
        return Object(
            radius=radius,
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
        for item in self.objects:
            local = item.to_local(points, time)
            on = item.contains(local)
            if on.any():
                colour[on] = self._sample(item.texture, local[on])
        height, width = self.size
        colour = colour.reshape(height, supersample, width, supersample, 3).mean((1, 3))
        brightness, slope = self._light
        light = brightness + (self._grid(1) - 0.5) @ slope
        developed = (colour * light[..., None] - 0.5) * self._gain + self._grey
        return np.clip(developed * 255 + 0.5, 0, 255).astype(np.uint8)

    def _sample(self, image: Array, points: Array) -> Array:
        flat = (points.reshape(-1, 2) * self._texels).astype(np.float32)
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
