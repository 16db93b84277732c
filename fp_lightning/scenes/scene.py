"""Procedural scenes of textured objects over textured ground, with exact flow, tracks and visibility.

A scene is a function of its seed and of time. The motion of its objects has a closed form and an inverse, so the
position of every pixel at any other time is known exactly, and so is whether it is occluded there.
"""

from __future__ import annotations

import math
from itertools import groupby

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fp_lightning.scenes.content import CLEAR, SceneContent
from fp_lightning.scenes.shapes import Object, varied, vector
from fp_lightning.scenes.textures import Array, texture
from fp_lightning.types import TRACK_STRIDE, VideoPair

GROUND = -1  # layer index of the ground; objects count from 0, and later ones are on top


class Scene:
    """A procedural clip over time 0 to 1.

    Args:
        seed: decides everything. At another size of the same aspect ratio, the same seed gives the same objects and
            paths; textures differ because their detail depends on the size.
        size: (height, width) in pixels.
        content: what the scene shows and how it moves; None for the defaults.
    """

    def __init__(self, seed: int, size: tuple[int, int] = (64, 64), content: SceneContent | None = None) -> None:
        content = content or SceneContent()
        self.seed, self.size, self._detail = seed, size, content.detail
        rng = np.random.default_rng(seed)
        self._paint = np.random.default_rng([seed, 1])  # separate, because larger textures draw more numbers
        self._texels = 1 << max(5, min(9, (size[1] - 1).bit_length()))
        self.ground = texture(self._paint, self._texels)
        self._clarity, self._repaint = content.clarity, np.random.default_rng([seed, 3])
        aspect = size[0] / size[1]
        count = int(rng.integers(content.objects[0], content.objects[1] + 1))
        self.objects = [self._object(rng, aspect, content) for _ in range(count)]
        self._light = rng.uniform(0.75, 1.15), rng.normal(0, 0.12, 2)  # brightness and its slope
        exposure = content.exposure
        self._gain = math.exp(exposure * rng.uniform(-1.2, 0.4))
        self._grey = 0.5 + exposure * (rng.uniform(-0.45, 0.45) + rng.normal(0, 0.05, 3))  # level of middle grey
        self._shadow: tuple[Array, float] | None = None  # offset from its object in widths, and strength
        self._gloss = 0.0  # opacity of mirror images on the floor
        if content.variety:
            self._vary(np.random.default_rng([seed, 2]), content.variety)

    def _vary(self, rng: np.random.Generator, variety: float) -> None:
        """Vary the objects, and add a shadow and a glossy floor, each by chance. See `SceneContent.variety`."""
        self.objects = [part for item in self.objects for part in varied(item, rng, variety, self._body_texture)]
        if rng.random() < variety:
            direction = rng.uniform(0, 2 * math.pi)
            cast = rng.uniform(0.02, 0.09) * np.array([math.cos(direction), math.sin(direction)])
            self._shadow = cast.astype(np.float32), rng.uniform(0.2, 0.6)
        if rng.random() < variety / 2:
            self._gloss = rng.uniform(0.15, 0.5)

    def _object(self, rng: np.random.Generator, aspect: float, content: SceneContent) -> Object:
        """Draw a plain object; `aspect` is height / width of the image."""
        size = rng.uniform(*content.radius)
        length, extent = rng.uniform(*content.motion), np.array([1.0, aspect])
        for _ in range(100):  # until the path stays inside the image
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
            turn=rng.uniform(-content.turn, content.turn),
            growth=rng.uniform(-content.growth, content.growth),
            texture=self._body_texture(),
        )

    def _body_texture(self) -> Array:
        """Draw the texture of an object or limb. If it is to be clear, redraw until it is, at most 32 times."""
        best = texture(self._paint, self._texels)
        if self._repaint.random() >= self._clarity:
            return best
        ground = self._sample(self.ground, self._grid(self.size[1] / 8)).mean((0, 1))
        near = vector(np.mgrid[-2:3, -2:3] * 0.08).transpose(1, 2, 0)  # positions on an object, in widths

        def distance(paint: Array) -> float:
            return float(np.linalg.norm(self._sample(paint, near).mean((0, 1)) - ground))

        for _ in range(32):
            if distance(best) >= CLEAR:
                break
            best = max(best, texture(self._repaint, self._texels), key=distance)
        return best

    def _grid(self, step: float) -> Array:
        """Compute the centres [n, m, 2], in image widths, of squares of `step` pixels."""
        height, width = self.size
        y, x = np.mgrid[: round(height / step), : round(width / step)].astype(np.float32)
        return ((np.stack([x, y], -1) + 0.5) * (step / width)).astype(np.float32)

    def layer(self, points: Array, time: float) -> NDArray[np.int64]:
        """Return the index [...] of the topmost object at image positions [..., 2] in widths, or GROUND."""
        top = np.full(points.shape[:-1], GROUND)
        for index, item in enumerate(self.objects):
            top[item.contains(item.to_local(points, time))] = index
        return top

    def correspond(self, points: Array, at: float, to: float) -> tuple[Array, NDArray[np.bool_]]:
        """Follow the surface that is visible at image positions [..., 2], in widths, from time `at` to time `to`.

        Returns:
            Its positions [..., 2] in widths at `to`, and whether they are inside the image and not occluded: [...].
        """
        layer, moved = self.layer(points, at), points.copy()
        for index, item in enumerate(self.objects):
            on = layer == index
            moved[on] = item.to_image(item.to_local(points[on], at), to)
        limit = np.array([1.0, self.size[0] / self.size[1]])
        inside = np.all((moved >= 0) & (moved < limit), axis=-1)
        return moved, inside & (self.layer(moved, to) == layer)

    def frame(self, time: float, supersample: int = 3) -> NDArray[np.uint8]:
        """Render the image at `time`, uint8 [h, w, 3]. Each pixel is the mean of supersample² samples."""
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
        """Find which of the image positions `points` an object covers.

        Args:
            item: the object.
            points: regular grid [n, m, 2] of positions in widths.
            time: time of the object.
            shift: [2] in widths, moves the image of the object.
            sign: −1 mirrors the image of the object vertically before it is moved.

        Returns:
            The window of `points` that the object can reach, the object coordinates of its points, and whether
            the object covers them.
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
        """Draw the shadow of one body onto `colour`, before the body itself."""
        assert self._shadow is not None
        cast, strength = self._shadow
        shade = np.zeros(points.shape[:2], bool)
        for item in parts:
            window, _, on = self._covered(item, points, time, cast)
            shade[window] |= on
        colour[shade] *= 1 - strength

    def _mirror(self, colour: Array, points: Array, parts: list[Object], time: float) -> None:
        """Draw the mirror image of one body onto `colour`, below its lower edge."""
        body = parts[0].root
        centre, _, scale = body.pose(time)
        base = centre[1] + 0.9 * body.radius * body.stretch[1] * scale
        for item in parts:
            window, local, on = self._covered(item, points, time, vector([0, 2 * base]), -1.0)
            on &= points[window][..., 1] > base
            colour[window][on] += self._gloss * (self._sample(item.texture, local[on]) - colour[window][on])

    def travel(self, at: float, to: float) -> float:
        """Compute the largest displacement between two times, in widths, over a grid of half the token size."""
        moved, _ = self.correspond(points := self._grid(TRACK_STRIDE / 2), at, to)
        return float(np.linalg.norm(moved - points, axis=-1).max())

    def _sample(self, image: Array, points: Array) -> Array:
        """Sample a periodic texture at positions [..., 2], in widths: [..., 3]."""
        flat = (points.reshape(-1, 2) * (self._texels * self._detail)).astype(np.float32)
        if not len(flat):
            return np.empty((*points.shape[:-1], 3), np.float32)
        rows = np.resize(flat, (-(-len(flat) // 4096), 4096, 2))  # remap needs fewer than 2^15 columns
        colour = cv2.remap(image, rows[..., 0], rows[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        return colour.reshape(-1, 3)[: len(flat)].reshape(*points.shape[:-1], 3).astype(np.float32, copy=False)

    def flow(self, at: float, to: float) -> Array:
        """Compute the exact flow [2, h, w] in pixels: position at time `at` + flow = position at time `to`."""
        points = self._grid(1)
        moved, _ = self.correspond(points, at, to)
        return np.moveaxis((moved - points) * self.size[1], -1, 0)

    def tracks(self, at: float, to: float, stride: float = TRACK_STRIDE) -> tuple[Array, NDArray[np.bool_]]:
        """Follow the token centres of time `at` to time `to`.

        Args:
            at: time of the tokens.
            to: time of the positions.
            stride: pixels per token.

        Returns:
            Exact positions [2, h/stride, w/stride] in pixels, and visibility bool [h/stride, w/stride].
        """
        moved, visible = self.correspond(self._grid(stride), at, to)
        return np.moveaxis(moved * self.size[1], -1, 0), visible

    def pair(self, source: float = 0.0, target: float = 1.0, stride: float = TRACK_STRIDE) -> VideoPair:
        """Make the exact `VideoPair` of two times, with one track per token of `stride` pixels."""
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
