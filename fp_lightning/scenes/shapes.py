"""Objects of procedural scenes. Their motion and its inverse have a closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fp_lightning.scenes.textures import Array


def vector(values: ArrayLike) -> Array:
    """Convert numbers to a float32 array, the type of all positions."""
    return np.asarray(values, np.float32)


@dataclass(frozen=True)
class Wave:
    """A deformation that grows with time: x is shifted by a sine of y, then y by a sine of x. Its inverse is exact."""

    amplitude: Array  # [2] in image widths, at time 1
    frequency: Array  # [2] radians per image width
    phase: Array  # [2] radians

    def _shift(self, axis: int, along: Array, time: float) -> Array:
        """Compute the shift of coordinate `axis` as a function of the other coordinate, `along`."""
        return time * self.amplitude[axis] * np.sin(self.frequency[axis] * along + self.phase[axis])

    def bend(self, points: Array, time: float) -> Array:
        """Deform object coordinates [..., 2] at rest to those at `time`."""
        x = points[..., 0] + self._shift(0, points[..., 1], time)
        return np.stack([x, points[..., 1] + self._shift(1, x, time)], -1).astype(np.float32)

    def unbend(self, points: Array, time: float) -> Array:
        """Invert `bend`."""
        y = points[..., 1] - self._shift(1, points[..., 0], time)
        return np.stack([points[..., 0] - self._shift(0, y, time), y], -1).astype(np.float32)


@dataclass(frozen=True)
class Object:
    """A textured object that moves by a similarity transform and a wave. Lengths are in image widths.

    A limb is an object with a `parent`. It moves in the coordinates of its parent: `start` is the joint and `turn`
    the swing.
    """

    radius: float
    harmonics: Array  # [k, 2]: amplitude and phase of the outline's harmonics 2, 3, …
    corners: int  # 0: smooth outline; 3 or more: regular polygon, modulated by the harmonics
    start: Array  # [2] origin at time 0
    motion: Array  # [2] displacement from time 0 to time 1
    bend: float  # sideways curvature of the path, as a share of the length of `motion`
    turn: float  # radians from time 0 to time 1
    growth: float  # log scale from time 0 to time 1
    texture: Array  # [n, n, 3], periodic
    angle: float = 0.0  # radians at time 0
    stretch: tuple[float, float] = (1.0, 1.0)  # scale of the outline along its x and y
    hole: float = 0.0  # inner radius of a ring, as a share of the outer one; 0: no hole
    offset: tuple[float, float] = (0.0, 0.0)  # of the outline's centre from the origin, the centre of rotation
    wave: Wave | None = None
    parent: Object | None = None

    @property
    def root(self) -> Object:
        """The outermost parent, or the object itself if it has none."""
        return self if self.parent is None else self.parent.root

    def pose(self, time: float) -> tuple[Array, float, float]:
        """Return origin [2], angle in radians and scale at `time`, in the parent's or the image's coordinates."""
        normal = np.array([-self.motion[1], self.motion[0]])
        centre = self.start + time * self.motion + self.bend * math.sin(math.pi * time) * normal
        return centre.astype(np.float32), self.angle + self.turn * time, math.exp(self.growth * time)

    def to_local(self, points: Array, time: float) -> Array:
        """Convert image positions [..., 2] at `time` to object coordinates."""
        if self.parent is not None:
            points = self.parent.to_local(points, time)
        centre, angle, scale = self.pose(time)
        local = ((points - centre) @ _rotation(-angle).T / scale).astype(np.float32)
        return local if self.wave is None else self.wave.unbend(local, time)

    def to_image(self, local: Array, time: float) -> Array:
        """Convert object coordinates [..., 2] to image positions at `time`; the inverse of `to_local`."""
        centre, angle, scale = self.pose(time)
        if self.wave is not None:
            local = self.wave.bend(local, time)
        points = (local @ _rotation(angle).T * scale + centre).astype(np.float32)
        return points if self.parent is None else self.parent.to_image(points, time)

    def contains(self, local: Array) -> NDArray[np.bool_]:
        """Whether object coordinates [..., 2] are inside the outline: bool [...]."""
        local = (local - vector(self.offset)) / vector(self.stretch)
        angle = np.arctan2(local[..., 1], local[..., 0])
        limit = np.full_like(angle, self.radius)
        for k, (amplitude, phase) in enumerate(self.harmonics, start=2):
            limit = limit + self.radius * amplitude * np.cos(k * angle + phase)
        if self.corners:
            sector = math.pi / self.corners
            limit = limit * math.cos(sector) / np.cos((angle + math.pi) % (2 * sector) - sector)
        distance = (local**2).sum(-1)
        inside = distance < limit**2
        return inside & (distance >= (self.hole * limit) ** 2) if self.hole else inside

    def bounds(self, time: float) -> tuple[Array, float]:
        """Return centre [2] and radius of a circle in the image that contains the object at `time`."""
        reach = self.radius * (1 + float(np.abs(self.harmonics[:, 0]).sum())) * max(self.stretch)
        item: Object | None = self
        while item is not None:
            if item.wave is not None:
                reach += 2 * time * float(np.abs(item.wave.amplitude).sum())
            reach, item = reach * item.pose(time)[2], item.parent
        return self.to_image(vector(self.offset), time), reach


def _rotation(angle: float) -> Array:
    """Return the matrix [2, 2] that rotates by `angle` radians."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s], [s, c]], np.float32)


def varied(item: Object, rng: np.random.Generator, variety: float, paint: Callable[[], Array]) -> list[Object]:
    """Vary a plain object by chance, and give it limbs. Return all parts, the lowest first.

    Args:
        item: a plain object.
        rng: decides all choices.
        variety: probability of each change: stretched, rotated, waving, with limbs; hollow is half as likely.
        paint: makes the texture of a limb that does not share the object's.
    """

    def chance(probability: float) -> bool:
        return bool(rng.random() < probability)

    stretch = math.exp(rng.uniform(-0.55, 0.55)) if chance(variety) else 1.0
    wave = None
    if chance(variety):
        amplitude = rng.uniform(-0.3, 0.3, 2) * item.radius
        frequency = rng.uniform(0.8, 2.2, 2) / item.radius
        wave = Wave(*vector([amplitude, frequency, rng.uniform(0, 2 * math.pi, 2)]))
    body = Object(
        **vars(item)
        | {
            "angle": rng.uniform(-math.pi, math.pi) if chance(variety) else 0.0,
            "stretch": (stretch, 1 / stretch),
            "hole": rng.uniform(0.3, 0.6) if chance(variety / 2) else 0.0,
            "wave": wave,
        }
    )
    limbs: list[Object] = []
    if chance(variety):
        first, count = rng.uniform(0, 2 * math.pi), int(rng.integers(1, 5))
        for number in range(count):
            limb = _limb(body, first + 2 * math.pi * number / count, rng, paint() if chance(0.5) else item.texture)
            limbs.append(limb)
            if chance(0.4):
                limbs.append(_limb(limb, 0.0, rng, limb.texture))
    below = [limb for limb in limbs if chance(0.5)]
    return [*below, body, *(limb for limb in limbs if all(limb is not other for other in below))]


def _limb(parent: Object, direction: float, rng: np.random.Generator, texture: Array) -> Object:
    """Draw a slender limb that swings about a joint on its parent's outline, at `direction` in radians."""
    length, thickness = rng.uniform(0.5, 0.95) * parent.radius, rng.uniform(0.3, 0.55)
    if parent.parent is not None:  # a second segment, at the end of the first
        length = rng.uniform(0.7, 1.0) * parent.radius
        joint = vector([parent.offset[0] + 0.8 * parent.radius * parent.stretch[0], 0])
    else:
        edge = 0.65 * parent.radius * vector(parent.stretch)
        joint = edge * vector([math.cos(direction), math.sin(direction)])
    return Object(
        radius=length,
        harmonics=np.zeros((1, 2), np.float32),
        corners=int(rng.choice([0, 0, 4])),
        start=joint.astype(np.float32),
        motion=np.zeros(2, np.float32),
        bend=0.0,
        turn=rng.uniform(-1.3, 1.3),
        growth=0.0,
        texture=texture,
        angle=direction + rng.uniform(-0.4, 0.4),
        stretch=(1.0, thickness),
        offset=(0.8 * length, 0.0),
        parent=parent,
    )
