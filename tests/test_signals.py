"""The sketch lies on the outlines of what moved, where it is in the target."""

import cv2
import numpy as np
import pytest
import torch

from fp_lightning.scenes import Scene
from fp_lightning.signals.sketch import sketch


def outline(scene: Scene, time: float) -> np.ndarray:
    """Pixels [h, w] whose right or lower neighbour shows another layer."""
    layer = scene.layer(scene._grid(1), time)
    edge = np.zeros(layer.shape, bool)
    edge[:-1] |= layer[:-1] != layer[1:]
    edge[:, :-1] |= layer[:, :-1] != layer[:, 1:]
    return edge


def share_near(points: np.ndarray, others: np.ndarray, distance: float = 2) -> float:
    """Share of `points` within `distance` pixels of `others`; both are masks [h, w]."""
    far = cv2.distanceTransform((~others).astype(np.uint8), cv2.DIST_L2, 5)
    return float((far[points] <= distance).mean())


@pytest.mark.parametrize("seed", range(6))
def test_strokes_lie_on_target_outlines_and_cover_them(seed):
    scene = Scene(seed, (256, 256), objects=(1, 3))
    strokes, truth = sketch(scene.pair())[0].numpy() > 0, outline(scene, 1.0)
    assert share_near(strokes, truth) > 0.95  # precision
    assert share_near(truth, strokes) > 0.95  # recall


def test_old_position_is_not_drawn():
    scene = Scene(3, (256, 256), objects=(1, 1), motion=(0.35, 0.375))
    strokes = sketch(scene.pair())[0].numpy() > 0
    assert share_near(outline(scene, 0.0), strokes) < 0.3


def test_same_drawing_at_every_size():
    small, large = (sketch(Scene(4, (side, side), objects=(2, 2)).pair())[0] for side in (64, 256))
    shrunk = torch.nn.functional.max_pool2d(large[None], 4)[0].numpy() > 0
    assert share_near(small.numpy() > 0, shrunk, 1) > 0.95
    assert share_near(shrunk, small.numpy() > 0, 1) > 0.95


def test_form_is_white_on_black_in_three_equal_channels():
    drawn = sketch(Scene(0, (64, 96)).pair())
    assert drawn.shape == (3, 64, 96)
    assert drawn.dtype == torch.float32
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(drawn[0], drawn[2])
    assert drawn.mean() < 0.2


def test_no_motion_no_strokes():
    assert not sketch(Scene(0, (64, 64)).pair(0.5, 0.5)).any()


def test_threshold_is_the_least_jump_in_widths():
    pair = Scene(0, (256, 256)).pair()
    pair.flow_to_source.zero_()
    pair.flow_to_source[0, 64:192, 64:192] = 5.12  # 0.02 widths
    assert sketch(pair, threshold=0.019).any()
    assert not sketch(pair, threshold=0.021).any()


def test_deformation_below_strain_is_not_drawn():
    pair = Scene(0, (64, 64)).pair()
    x = torch.arange(64.0).expand(64, 64)
    pair.flow_to_source = torch.stack([0.3 * x, torch.zeros(64, 64)])
    assert not sketch(pair).any()


def test_line_width_is_in_image_widths():
    pair = Scene(0, (256, 256)).pair()
    pair.flow_to_source.zero_()
    pair.flow_to_source[0, :, 128:] = 20
    for pixels in (1, 3, 5):
        rows = sketch(pair, line_width=pixels / 256)[0].sum(1)
        assert rows[100] == pixels


def test_specks_are_dropped():
    pair = Scene(0, (256, 256)).pair()
    pair.flow_to_source.zero_()
    pair.flow_to_source[0, 100:104, 100:104] = 20
    assert not sketch(pair).any()
    assert sketch(pair, min_length=0.01).any()
