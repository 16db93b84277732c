"""Procedural scenes: what they claim about motion is what their images show."""

import dataclasses

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fp_lightning.errors import InputError
from fp_lightning.scenes import GROUND, Scene, write_clip, write_clips

SEEDS = range(4)


def warp(image: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Image [c, h, w] looked up at every position + flow."""
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    grid = torch.stack([(x + flow[0]) * 2 / width - 1, (y + flow[1]) * 2 / height - 1], -1)
    return F.grid_sample(image[None].float(), grid[None], align_corners=False, padding_mode="border")[0]


def straight(scene: Scene) -> Scene:
    """The same scene whose first object moves by exactly 16 px to the right, on a straight path."""
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


@pytest.mark.parametrize("seed", SEEDS)
def test_flow_carries_source_onto_visible_target(seed):
    scene = Scene(seed, (128, 128), objects=(1, 3))
    pair = scene.pair()
    _, seen = scene.correspond(scene._grid(1), 1.0, 0.0)
    on = torch.from_numpy(seen & (scene.layer(scene._grid(1), 1.0) != GROUND))  # the ground proves nothing

    def error(flow: torch.Tensor) -> float:
        return float((warp(pair.source, flow) - pair.target.float()).abs().mean(0)[on].mean())

    # what is left is resampling, and the light that falls unevenly on the scene
    assert error(pair.flow_to_source) < 0.3 * min(error(0 * pair.flow_to_source), error(-pair.flow_to_source))


@pytest.mark.parametrize("seed", SEEDS)
def test_there_and_back_leads_home_where_visible(seed):
    scene = Scene(seed, (64, 64), objects=(2, 3))
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
    scene = Scene(3, (64, 64), objects=(2, 2))
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


def test_same_seed_same_scene_and_another_seed_another():
    first, again, other = (Scene(seed, (32, 32)).pair() for seed in (5, 5, 6))
    assert torch.equal(first.source, again.source)
    assert torch.equal(first.tracks, again.tracks)
    assert not torch.equal(first.source, other.source)


def test_size_changes_no_motion():
    small, large = Scene(5, (32, 32), objects=(1, 3)), Scene(5, (128, 128), objects=(1, 3))
    assert [o.radius for o in small.objects] == [o.radius for o in large.objects]
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
    paths = write_clips(tmp_path, 2, size=(32, 32), seed=7, seconds=0.5, fps=4, objects=(2, 2))
    assert [p.name for p in paths] == ["scene-7.mp4", "scene-8.mp4"]
    assert all(p.stat().st_size for p in paths)
