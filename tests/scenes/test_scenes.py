"""Procedural scenes: what they claim about motion is what their images show."""

import dataclasses
import resource

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fp_lightning.errors import InputError
from fp_lightning.scenes.clips import write_clip, write_clips
from fp_lightning.scenes.content import SceneContent
from fp_lightning.scenes.scene import GROUND, Scene

SEEDS = range(4)
VARIETIES = (0.0, 1.0)


def warp(image: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Image [c, h, w] looked up at every position + flow."""
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    grid = torch.stack([(x + flow[0]) * 2 / width - 1, (y + flow[1]) * 2 / height - 1], -1)
    return F.grid_sample(image[None].float(), grid[None], align_corners=False, padding_mode="border")[0]


def straight(scene: Scene) -> Scene:
    """The same scene with nothing but its first object, which moves 16 px to the right on a straight path."""
    width = scene.size[1]
    item = dataclasses.replace(
        scene.objects[0],
        start=np.array([0.4, 0.5], np.float32),
        motion=np.array([16 / width, 0], np.float32),
        bend=0.0,
        turn=0.0,
        growth=0.0,
    )
    scene.objects = [item]
    return scene


def evenly_lit(scene: Scene) -> Scene:
    """The same scene in even light, grey ground under white objects."""
    scene._light = 1.0, np.zeros(2)
    scene.ground = np.full_like(scene.ground, 0.5)
    scene.objects = [dataclasses.replace(item, texture=np.ones_like(item.texture)) for item in scene.objects]
    return scene


def test_objects_have_the_radius_asked_for():
    radii = [
        item.radius
        for seed in range(20)
        for item in Scene(seed, (8, 8), SceneContent(objects=(2, 2), radius=(0.3, 0.35))).objects
    ]
    assert 0.3 <= min(radii) < 0.31 and 0.34 < max(radii) <= 0.35


@pytest.mark.parametrize("seed", SEEDS)
def test_less_detail_is_larger_textures_and_the_same_motion(seed):
    fine, coarse = Scene(seed, (64, 64)), Scene(seed, (64, 64), SceneContent(detail=0.4))
    assert np.array_equal(fine.flow(0, 1), coarse.flow(0, 1))
    image = coarse._sample(coarse.ground, coarse._grid(1) / 0.4)
    assert np.allclose(image, fine._sample(fine.ground, fine._grid(1)), atol=1e-4)


@pytest.mark.parametrize("variety", VARIETIES)
@pytest.mark.parametrize("seed", SEEDS)
def test_flow_carries_source_onto_visible_target(seed, variety):
    scene = Scene(seed, (128, 128), SceneContent(objects=(1, 3), variety=variety))
    scene._shadow, scene._gloss = None, 0.0  # they move otherwise than what they fall on
    pair = scene.pair()
    _, seen = scene.correspond(scene._grid(1), 1.0, 0.0)
    on = torch.from_numpy(seen & (scene.layer(scene._grid(1), 1.0) != GROUND))  # the ground proves nothing

    def error(flow: torch.Tensor) -> float:
        return float((warp(pair.source, flow) - pair.target.float()).abs().mean(0)[on].mean())

    # what is left is resampling, and the light that falls unevenly on the scene
    assert error(pair.flow_to_source) < 0.3 * min(error(0 * pair.flow_to_source), error(-pair.flow_to_source))


@pytest.mark.parametrize("variety", VARIETIES)
@pytest.mark.parametrize("seed", SEEDS)
def test_there_and_back_leads_home_where_visible(seed, variety):
    scene = Scene(seed, (64, 64), SceneContent(objects=(2, 3), variety=variety))
    points = scene._grid(1)
    moved, seen = scene.correspond(points, 1.0, 0.0)
    back, _ = scene.correspond(moved, 0.0, 1.0)
    assert np.abs(back - points)[seen].max() * 64 < 1e-2


def test_known_motion_is_the_flow():
    scene = straight(Scene(1, (64, 64)))
    flow, inside = scene.flow(1.0, 0.0), scene.layer(scene._grid(1), 1.0) == 0
    assert inside.any()
    np.testing.assert_allclose(flow[0][inside], -16, atol=1e-3)
    np.testing.assert_allclose(flow[1][inside], 0, atol=1e-3)
    assert not flow[:, ~inside].any()  # the ground rests


def test_flows_there_and_back_are_opposite_for_a_translation():
    scene = straight(Scene(2, (64, 64)))
    assert scene.flow(1.0, 0.0).min() == pytest.approx(-scene.flow(0.0, 1.0).max(), abs=1e-3)


def test_tracks_are_the_flow_at_token_centres():
    scene = Scene(3, (64, 64), SceneContent(objects=(2, 2)))
    tracks, _ = scene.tracks(1.0, 0.0, stride=1)
    x, y = scene._grid(1)[..., 0] * 64, scene._grid(1)[..., 1] * 64
    np.testing.assert_allclose(tracks - np.stack([x, y]), scene.flow(1.0, 0.0), atol=1e-3)


def test_resting_token_is_tracked_to_its_own_centre():
    tracks, visible = straight(Scene(1, (64, 64))).tracks(1.0, 0.0)
    assert tracks[:, 0, 0].tolist() == [4.0, 4.0]
    assert visible[0, 0]


def test_ground_that_the_object_leaves_is_occluded_in_the_source():
    scene = straight(Scene(1, (64, 64)))
    _, visible = scene.tracks(1.0, 0.0)
    centres = scene._grid(8)
    revealed = (scene.layer(centres, 0.0) == 0) & (scene.layer(centres, 1.0) == GROUND)
    assert revealed.any()
    assert not visible[revealed].any()
    assert visible[scene.layer(centres, 1.0) == 0].all()


def test_what_comes_from_outside_is_not_visible():
    scene = straight(Scene(1, (64, 64)))
    item = dataclasses.replace(
        scene.objects[0], start=np.array([-0.5, 0.5], np.float32), motion=np.array([1, 0], np.float32)
    )
    scene.objects = [item]
    on = scene.layer(scene._grid(8), 1.0) == 0
    assert on.any()
    assert not scene.tracks(1.0, 0.0)[1][on].any()


@pytest.mark.parametrize("variety", VARIETIES)
def test_same_seed_same_scene_and_another_seed_another(variety):
    first, again, other = (Scene(seed, (32, 32), SceneContent(variety=variety)).pair() for seed in (5, 5, 6))
    assert torch.equal(first.source, again.source)
    assert torch.equal(first.tracks, again.tracks)
    assert not torch.equal(first.source, other.source)


@pytest.mark.parametrize("variety", VARIETIES)
def test_size_changes_no_motion(variety):
    small, large = (Scene(5, (side, side), SceneContent(objects=(1, 3), variety=variety)) for side in (32, 128))
    assert [o.radius for o in small.objects] == [o.radius for o in large.objects]
    assert [o.turn for o in small.objects] == [o.turn for o in large.objects]
    assert all(np.array_equal(a.motion, b.motion) for a, b in zip(small.objects, large.objects, strict=True))


def test_large_objects_render():
    scene = Scene(0, (192, 320))
    scene.objects = [dataclasses.replace(scene.objects[0], radius=0.4)]  # more samples than one remap row holds
    assert scene.frame(0.0).shape == (192, 320, 3)


def test_written_clip_shows_the_scene(tmp_path):
    scene = Scene(4, (64, 96))
    path = write_clip(scene, tmp_path / "clip.mp4", seconds=2, fps=8)
    with av.open(str(path)) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert [time for time, _ in frames] == pytest.approx([i / 8 for i in range(16)])
    for (_, image), time in ((frames[0], 0.0), (frames[-1], 1.0)):
        assert np.abs(image.astype(float) - scene.frame(time)).mean() < 6
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]  # nothing half-written is left


def test_odd_sizes_are_refused_with_the_next_even_one(tmp_path):
    with pytest.raises(InputError, match="34x64"):
        write_clip(Scene(0, (33, 64)), tmp_path / "clip.mp4")


def test_write_clips_counts_seeds(tmp_path):
    paths = write_clips(tmp_path, 2, size=(32, 32), seed=7, seconds=0.5, fps=4, content=SceneContent(objects=(2, 2)))
    assert [p.name for p in paths] == ["scene-7.mp4", "scene-8.mp4"]
    assert all(p.stat().st_size for p in paths)


# --- variety


def test_without_variety_scenes_are_those_of_old():
    scene = Scene(1, (64, 64), SceneContent(objects=(1, 4), exposure=0.5))
    assert [(item.wave, item.parent, item.hole, item.stretch) for item in scene.objects] == [
        (None, None, 0.0, (1.0, 1.0))
    ] * 2
    assert scene.objects[0].radius == pytest.approx(0.23406, abs=1e-5)
    assert scene.objects[0].start == pytest.approx([0.36828, 0.44633], abs=1e-5)
    assert scene.frame(0.0).mean((0, 1)) == pytest.approx([116.23, 122.77, 124.68], abs=0.05)
    assert np.abs(scene.flow(1.0, 0.0)).sum() == pytest.approx(9449.1, rel=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_variety_changes_no_path(seed):
    plain, rich = (Scene(seed, (32, 32), SceneContent(objects=(2, 2), variety=variety)) for variety in VARIETIES)
    bodies = [item for item in rich.objects if item.parent is None]
    for a, b in zip(plain.objects, bodies, strict=True):
        assert np.array_equal(a.start, b.start) and np.array_equal(a.motion, b.motion)


def test_a_shadow_darkens_the_ground_where_it_falls_and_nothing_else():
    scene = evenly_lit(straight(Scene(1, (64, 64))))
    bare, points = scene.frame(0.5, supersample=1), scene._grid(1)
    scene._shadow = np.array([0.08, 0.05], np.float32), 0.4
    shaded = scene.frame(0.5, supersample=1)
    on = scene.layer(points, 0.5) == GROUND
    falls = on & (scene.layer(points - scene._shadow[0], 0.5) != GROUND)
    assert falls.any()
    np.testing.assert_array_equal((shaded != bare).any(-1), falls)
    assert shaded[falls] == pytest.approx(0.6 * 0.5 * 255, abs=1)


def test_a_shadow_falls_on_the_objects_below():
    scene = evenly_lit(straight(Scene(1, (64, 64))))
    below = dataclasses.replace(scene.objects[0], radius=0.9)
    scene.objects = [below, scene.objects[0]]
    scene._shadow = np.array([0.08, 0.05], np.float32), 0.4
    frame, points = scene.frame(0.5, supersample=1), scene._grid(1)
    falls = (scene.layer(points, 0.5) == 0) & (scene.layer(points - scene._shadow[0], 0.5) == 1)
    assert falls.any()
    np.testing.assert_array_equal(frame[..., 0] == round(0.6 * 255), falls)


def test_gloss_mirrors_the_object_on_the_ground_below_it_and_nowhere_else():
    scene = evenly_lit(straight(Scene(1, (64, 64))))
    (item,), bare, points = scene.objects, scene.frame(0.5, supersample=1), scene._grid(1)
    scene._gloss = 0.4
    glossy = scene.frame(0.5, supersample=1)
    base = item.pose(0.5)[0][1] + 0.9 * item.radius
    mirrored = np.stack([points[..., 0], 2 * base - points[..., 1]], -1)
    shines = (points[..., 1] > base) & (scene.layer(points, 0.5) == GROUND) & (scene.layer(mirrored, 0.5) != GROUND)
    assert shines.any()
    np.testing.assert_array_equal((glossy != bare).any(-1), shines)
    assert glossy[shines] == pytest.approx((0.6 * 0.5 + 0.4) * 255, abs=1)


def test_neither_shadow_nor_gloss_is_a_surface_of_its_own():
    scene = Scene(3, (64, 64), SceneContent(objects=(2, 3)))
    before = scene.pair()
    scene._shadow, scene._gloss = (np.array([0.08, 0.05], np.float32), 0.4), 0.4
    after = scene.pair()
    assert not torch.equal(before.target, after.target)
    for name in ("flow_to_source", "flow_to_target", "tracks", "visible"):
        assert torch.equal(getattr(before, name), getattr(after, name))


def test_varied_scenes_have_shadows_and_sometimes_gloss():
    scenes = [Scene(seed, (32, 32), SceneContent(variety=1.0)) for seed in range(12)]
    assert all(scene._shadow is not None for scene in scenes)
    assert 0 < sum(scene._gloss > 0 for scene in scenes) < 12


def test_travel_is_the_greatest_displacement():
    scene = straight(Scene(1, (64, 64)))
    assert scene.travel(0.0, 1.0) == pytest.approx(16 / 64, abs=1e-6)
    assert scene.travel(0.0, 0.5) == pytest.approx(8 / 64, abs=1e-6)
    assert scene.travel(0.3, 0.3) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("variety", 1.5),
        ("variety", -0.1),
        ("variety", 2),
        ("exposure", 2),
        ("exposure", float("nan")),
        ("objects", (3, 1)),
        ("objects", (-1, 1)),
        ("motion", (0.4, 0.1)),
        ("motion", (-0.1, 0.1)),
        ("radius", (0.3, 0.2)),
        ("detail", 1.5),
    ],
)
def test_impossible_settings_of_a_scene_are_named(option, value):
    with pytest.raises(InputError, match=option):
        Scene(0, (32, 32), SceneContent(**{option: value}))


def test_a_clip_that_cannot_be_written_whole_is_not_there(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(InputError, match=f"cannot write {tmp_path}/a.mp4: File too large; .*ulimit -f"):
            write_clip(Scene(1, (64, 64)), tmp_path / "a.mp4", seconds=1, fps=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list(tmp_path.iterdir())


def test_clear_objects_differ_from_the_ground() -> None:
    """A moving object changes the image more if the scene is clear; a scene without clarity is what it was."""

    def change(clarity: float) -> float:
        scenes = [Scene(seed, (32, 32), SceneContent(clarity=clarity)) for seed in range(12)]
        moving = [(scene.pair(stride=8).moving()[0].numpy(), scene) for scene in scenes]
        return float(np.mean([np.abs(s.frame(0)[m].astype(int) - s.frame(1)[m]).mean() for m, s in moving]))

    assert change(1.0) > 1.25 * change(0.0)
    with pytest.raises(InputError, match="clarity of a scene must be between 0 and 1, got 2"):
        SceneContent(clarity=2)
