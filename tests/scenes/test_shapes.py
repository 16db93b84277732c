"""Outlines in motion: both directions of it, what lies inside, and how far it reaches."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest

from fp_lightning.scenes.content import SceneContent
from fp_lightning.scenes.scene import Scene
from fp_lightning.scenes.shapes import Object, Wave, varied, vector

WAVE = Wave(vector([0.05, -0.04]), vector([9.0, 14.0]), vector([0.3, 2.0]))
SEEDS = range(6)


def disc(**changes) -> Object:
    """A disc of radius 0.2 that moves to the right."""
    plain = Object(
        radius=0.2,
        harmonics=np.zeros((1, 2), np.float32),
        corners=0,
        start=vector([0.4, 0.5]),
        motion=vector([0.25, 0.0]),
        bend=0.0,
        turn=0.0,
        growth=0.0,
        texture=np.zeros((32, 32, 3), np.float32),
    )
    return dataclasses.replace(plain, **changes)


def arm_of(parent: Object) -> Object:
    """A slender limb at the right edge of `parent`, which swings and waves."""
    return disc(
        start=vector([0.15, 0.0]),
        motion=vector([0, 0]),
        turn=1.0,
        angle=0.4,
        stretch=(1.0, 0.4),
        offset=(0.16, 0.0),
        wave=WAVE,
        parent=parent,
    )


def parts(seed: int) -> list[Object]:
    """A body with every change and its limbs."""
    return Scene(seed, (64, 64), SceneContent(variety=1.0)).objects


def grid(count: int = 160) -> np.ndarray:
    """Positions [n, n, 2] of an area three times as wide as the image."""
    along = np.linspace(-1, 2, count, dtype=np.float32)
    return np.stack(np.meshgrid(along, along), -1)


@pytest.mark.parametrize("time", [0.0, 0.4, 1.0])
def test_unbend_is_the_inverse_of_bend(time):
    points = grid(20)
    np.testing.assert_allclose(WAVE.unbend(WAVE.bend(points, time), time), points, atol=1e-6)
    np.testing.assert_allclose(WAVE.bend(WAVE.unbend(points, time), time), points, atol=1e-6)


def test_a_wave_rests_at_the_start_and_grows():
    points = grid(20)
    shift = [np.abs(WAVE.bend(points, time) - points).max() for time in (0.0, 0.5, 1.0)]
    assert shift[0] == 0
    assert 0.05 >= shift[2] > 1.5 * shift[1]


@pytest.mark.parametrize("time", [0.0, 0.7, 1.0])
def test_object_coordinates_of_a_limb_of_a_limb_lead_back_to_the_image(time):
    body = disc(angle=0.5, turn=0.8, growth=0.2, bend=0.2, wave=WAVE)
    forearm = arm_of(arm_of(body))
    points = grid(20)
    np.testing.assert_allclose(forearm.to_image(forearm.to_local(points, time), time), points, atol=2e-5)


def test_a_limb_is_carried_by_its_body():
    body = disc()
    arm = dataclasses.replace(arm_of(body), turn=0.0, wave=None)
    joint = vector([0.0, 0.0])
    np.testing.assert_allclose(arm.to_image(joint, 1.0) - arm.to_image(joint, 0.0), [0.25, 0], atol=1e-6)


def test_a_limb_swings_about_its_joint():
    arm = dataclasses.replace(arm_of(disc(motion=vector([0, 0]))), wave=None, angle=0.0, turn=math.pi / 2)
    joint, tip = vector([0, 0]), vector([0.3, 0])
    np.testing.assert_allclose(arm.to_image(joint, 1.0), arm.to_image(joint, 0.0), atol=1e-6)
    np.testing.assert_allclose(arm.to_image(tip, 0.0), [0.85, 0.5], atol=1e-6)
    np.testing.assert_allclose(arm.to_image(tip, 1.0), [0.55, 0.8], atol=1e-6)


def test_the_root_of_a_limb_of_a_limb_is_the_body():
    body = disc()
    assert arm_of(arm_of(body)).root is body
    assert body.root is body


@pytest.mark.parametrize("time", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_bounds_hold_every_covered_point(seed, time):
    points, covered = grid(), 0
    for item in parts(seed):
        centre, radius = item.bounds(time)
        on = item.contains(item.to_local(points, time))
        covered += on.sum()
        assert np.linalg.norm(points[on] - centre, axis=-1).max(initial=0) <= radius
    assert covered


def test_a_hole_opens_the_middle_and_nothing_else():
    points = grid(200) / 3
    whole, ring = disc(), disc(hole=0.5)
    distance = np.linalg.norm(points, axis=-1)
    np.testing.assert_array_equal(ring.contains(points), whole.contains(points) & (distance >= 0.1))
    assert whole.contains(vector([[0, 0]])).all() and not ring.contains(vector([[0, 0]])).any()


def test_stretch_is_along_the_outlines_own_axes():
    item = disc(stretch=(1.5, 0.5))
    at = vector([[0.29, 0], [0.31, 0], [0, 0.09], [0, 0.11]])
    assert item.contains(at).tolist() == [True, False, True, False]


def test_an_outline_lies_about_its_offset():
    assert disc(offset=(0.3, 0.0)).contains(vector([[0.3, 0], [0.49, 0], [0.05, 0]])).tolist() == [True, True, False]


def test_without_variety_an_object_stays_plain():
    item = disc()
    (same,) = varied(item, np.random.default_rng(0), 0.0, lambda: item.texture)
    assert same.wave is None and same.parent is None
    assert (same.angle, same.stretch, same.hole, same.offset) == (0.0, (1.0, 1.0), 0.0, (0.0, 0.0))


def test_full_variety_makes_every_change_sometimes():
    found = [part for seed in range(12) for part in parts(seed)]
    bodies = [part for part in found if part.parent is None]
    assert all(body.wave is not None and body.angle and body.stretch != (1.0, 1.0) for body in bodies)
    assert 0 < sum(body.hole > 0 for body in bodies) < len(bodies)
    assert any(part.parent is not None and part.parent.parent is not None for part in found)


@pytest.mark.parametrize("seed", SEEDS)
def test_limbs_belong_to_a_body_of_the_scene_and_lie_beside_it(seed):
    objects = Scene(seed, (64, 64), SceneContent(objects=(3, 3), variety=1.0)).objects
    roots = [item.root for item in objects]
    assert all(any(root is item for item in objects) for root in roots)
    changes = sum(a is not b for a, b in pairwise(roots))
    assert changes == 2  # three bodies, each in one piece
