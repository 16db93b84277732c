"""Drags and lines against motion that is known exactly."""

import pytest
import torch

from fp_lightning.evaluation.adherence import (
    FARTHEST,
    FlowTracker,
    drag_distance,
    is_sketch,
    sketch_distance,
    tracked_drags,
)
from fp_lightning.pairs.flow.dis import dis_flow
from fp_lightning.scenes.scene import Scene
from fp_lightning.signals.sketch import sketch


def exact(pair, forward: bool):
    """An estimator that knows the pair's flow, there or back."""
    flow = pair.flow_to_target if forward else pair.flow_to_source
    return lambda first, second, start=None: flow[None]


@pytest.fixture(scope="module")
def pairs():
    return [Scene(seed, (128, 128)).pair(stride=8) for seed in range(4)]


def test_with_the_true_flow_the_target_is_where_it_should_be(pairs):
    for pair in pairs:
        drags = tracked_drags(pair.tracks, pair.visible, pair.size)
        assert len(drags) > 0
        tracker = FlowTracker(exact(pair, forward=True))
        away = (tracker(pair.source, pair.target, drags[:, :2]) - drags[:, 2:]).norm(dim=1)
        assert away.median() < 0.25
        assert (away < 1).float().mean() > 0.85  # handles on an edge may be given to what lies beyond it
        found = drag_distance(tracker, pair.source, pair.target, drags)
        assert found == pytest.approx(away.mean().item() * 512 / 128)
        drawn = sketch(pair)[0] > 0
        assert sketch_distance(exact(pair, forward=False), pair.source, pair.target, drawn) == 0


def test_handles_that_stayed_are_as_far_off_as_they_were_to_move():
    image = Scene(0, (64, 128)).pair().source
    drags = torch.tensor([[20.0, 20.0, 23.0, 24.0], [50.0, 30.0, 50.0, 35.0]])
    assert drag_distance(FlowTracker(dis_flow), image, image, drags) == pytest.approx(5 * 512 / 128, abs=1e-3)


def test_only_what_moved_and_is_seen_is_a_drag(pairs):
    pair = pairs[0]
    drags = tracked_drags(pair.tracks, pair.visible, pair.size)
    assert ((drags[:, :2] - drags[:, 2:]).norm(dim=1) >= 128 / 512).all()
    assert len(tracked_drags(pair.tracks, torch.zeros_like(pair.visible), pair.size)) == 0


def test_an_edit_that_moves_nothing_follows_no_line(pairs):
    pair = pairs[0]
    drawn = sketch(pair)[0] > 0
    assert sketch_distance(dis_flow, pair.source, pair.source, drawn) == FARTHEST


def test_lines_beside_the_outline_are_as_far_as_they_were_shifted(pairs):
    pair = pairs[1]
    drawn = sketch(pair)[0] > 0
    distances = [
        sketch_distance(exact(pair, forward=False), pair.source, pair.target, drawn.roll(shift, -1))
        for shift in (0, 4, 8)
    ]
    assert distances[0] == 0 < distances[1] < distances[2] <= 8 * 512 / 128


def test_a_sketch_is_black_and_white():
    lines = torch.zeros(3, 4, 4)
    assert not is_sketch(lines)
    lines[:, 1] = 1
    assert is_sketch(lines)
    assert not is_sketch(lines * 0.5)
