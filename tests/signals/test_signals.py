"""What a user would have drawn: sketches on outlines, drags along tracks, and how signals share an image."""

from functools import lru_cache

import cv2
import numpy as np
import pytest
import torch

from fp_lightning.scenes.content import SceneContent
from fp_lightning.scenes.scene import Scene
from fp_lightning.signals.combine import signal_fields
from fp_lightning.signals.points import points
from fp_lightning.signals.sketch import outlines, sketch
from fp_lightning.types import VideoPair, token_centres

# --- sketches


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
    scene = Scene(seed, (256, 256), SceneContent(objects=(1, 3)))
    strokes, truth = sketch(scene.pair())[0].numpy() > 0, outline(scene, 1.0)
    assert share_near(strokes, truth) > 0.95  # precision
    assert share_near(truth, strokes) > 0.95  # recall


def test_old_position_is_not_drawn():
    scene = Scene(3, (256, 256), SceneContent(objects=(1, 1), motion=(0.35, 0.375)))
    strokes = sketch(scene.pair())[0].numpy() > 0
    assert share_near(outline(scene, 0.0), strokes) < 0.3


def test_same_drawing_at_every_size():
    small, large = (sketch(Scene(4, (side, side), SceneContent(objects=(2, 2))).pair())[0] for side in (64, 256))
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


# --- sketches as by hand

EXACT = {"drop": 0.0, "wobble": 0.0, "thickness": 1.0}


@lru_cache
def several(scene: int) -> VideoPair:
    return Scene(scene, (256, 256), SceneContent(objects=(1, 3))).pair()


def by_hand(seed: int, scene: int = 0, **options) -> np.ndarray:
    return sketch(several(scene), rng=np.random.default_rng(seed), **options)[0].numpy() > 0


def test_a_hand_is_decided_by_its_generator():
    assert np.array_equal(by_hand(1), by_hand(1))
    assert not np.array_equal(by_hand(1), by_hand(2))


@pytest.mark.parametrize("scene", range(3))
def test_a_hand_that_changes_nothing_draws_the_outlines(scene):
    exact = sketch(several(scene))[0].numpy() > 0
    drawn = by_hand(0, scene, **EXACT)
    assert (drawn >= exact).all()
    assert share_near(drawn, exact, 1) == 1


def test_a_hand_leaves_segments_out_and_never_all():
    whole = by_hand(0, **EXACT).sum()
    shares = np.array([by_hand(seed, **{**EXACT, "drop": 1.0}).sum() / whole for seed in range(40)])
    assert 0.4 < shares.mean() < 0.6  # the share that is left out is uniform in [0, 1]
    assert shares.min() > 0
    assert shares.max() > 0.9


def test_a_hand_strays_no_farther_than_its_wobble_and_keeps_lines_whole():
    exact = by_hand(0, **EXACT)
    strayed = []
    for seed in range(10):
        drawn = by_hand(seed, **{**EXACT, "wobble": 8 / 256})
        assert share_near(drawn, exact, 9) == 1
        strayed.append(1 - share_near(drawn, exact, 2))
        assert cv2.connectedComponents(drawn.astype(np.uint8))[0] == cv2.connectedComponents(exact.astype(np.uint8))[0]
    assert np.mean(strayed) > 0.3


def test_a_hand_varies_the_width_of_segments():
    pair = Scene(0, (256, 256)).pair()
    pair.flow_to_source.zero_()
    pair.flow_to_source[0, :, 128:] = 20
    options = {**EXACT, "thickness": 3.0, "line_width": 6 / 256}
    widths = torch.stack([sketch(pair, rng=np.random.default_rng(i), **options)[0].sum(1) for i in range(10)])
    assert 2 <= widths.min() < 4  # 6 / 3
    assert 10 < widths.max() <= 18 + 1  # 6 · 3
    assert all(len(row.unique()) > 1 for row in widths)


def test_a_hand_with_nothing_to_draw_draws_nothing():
    assert not sketch(Scene(0, (64, 64)).pair(0.5, 0.5), rng=np.random.default_rng(0)).any()


# --- points


def moved(pair) -> torch.Tensor:
    """How far each token [th, tw] moved, in pixels."""
    return (token_centres(pair.tracks, pair.size) - pair.tracks).norm(dim=0)


@pytest.mark.parametrize("seed", range(4))
def test_drags_are_tracks_of_visible_tokens_that_moved(seed):
    scene = Scene(seed, (128, 192), SceneContent(objects=(2, 3)))
    pair = scene.pair()
    drags = points(pair, np.random.default_rng(seed), most=1000).numpy()
    assert drags.dtype == np.float32
    token = (drags[:, 3] // 8 * 24 + drags[:, 2] // 8).astype(int)
    assert np.array_equal(drags[:, 2:] % 8, np.full((len(drags), 2), 4))  # centres
    assert len(set(token)) == len(drags)
    assert set(token) <= set(np.flatnonzero(pair.visible & (moved(pair) >= 192 / 512)))
    source, seen = scene.correspond(drags[:, 2:] / 192, 1.0, 0.0)
    assert seen.all()
    np.testing.assert_allclose(drags[:, :2], source * 192, atol=1e-3)


def test_their_number_is_uniform_between_least_and_most():
    pair = several(0)
    counts = np.bincount([len(points(pair, np.random.default_rng(i), 2, 5)) for i in range(400)], minlength=6)
    assert counts[:2].sum() == 0 and len(counts) == 6
    assert ((counts[2:] - 100) ** 2 / 100).sum() < 16.3  # χ² of three degrees of freedom: 1 in 1000


def test_targets_are_drawn_in_proportion_to_their_motion():
    pair = Scene(0, (64, 64)).pair()
    pair.tracks, pair.visible = token_centres(pair.tracks, pair.size), torch.ones(8, 8, dtype=torch.bool)
    pair.tracks[0, 2, :4] -= torch.tensor([1.0, 2.0, 3.0, 6.0])
    drawn = [points(pair, np.random.default_rng(i), 1, 1) for i in range(1200)]
    counts = np.bincount([int(d[0, 2]) // 8 for d in drawn], minlength=4)
    expected = 100 * np.array([1, 2, 3, 6])
    assert ((counts - expected) ** 2 / expected).sum() < 16.3
    assert {int(d[0, 3]) // 8 for d in drawn} == {2}


def test_what_hardly_moves_or_is_hidden_gets_no_point():
    pair = Scene(0, (64, 64)).pair()
    pair.tracks, pair.visible = token_centres(pair.tracks, pair.size), torch.ones(8, 8, dtype=torch.bool)
    pair.tracks[1, 0, 0] += 0.9 * 64 / 512
    assert points(pair, np.random.default_rng(0)).shape == (0, 4)
    pair.tracks[1, 0, 1] += 1.1 * 64 / 512
    pair.tracks[1, 0, 2] += 30
    pair.visible[0, 2] = False
    assert points(pair, np.random.default_rng(0), 5, 5)[:, 2].tolist() == [12]


# --- several signals of one sample

SIZE = (32, 48)


@pytest.fixture
def drawn() -> dict[str, torch.Tensor]:
    strokes = torch.zeros(3, *SIZE)
    strokes[:, 10, 8:40] = 1
    return {"sketch": strokes, "coarse": torch.full((3, *SIZE), 0.5), "points": torch.rand(5, 4)}


def test_any_mix_of_signals_has_the_same_fields(drawn):
    for names in (["sketch"], ["coarse"], ["points"], ["sketch", "points"], []):
        fields = signal_fields(SIZE, **{name: drawn[name] for name in names})
        assert fields["control"].shape == (1, 3, *SIZE)
        assert fields["control_valid"].tolist() == [bool({"sketch", "coarse"} & set(names))]
        assert fields["points"].shape == (1, 5 * ("points" in names), 4)
        assert fields["points_valid"].shape == fields["points"].shape[:2]
        assert fields["points_valid"].all()


def test_fields_that_no_sample_fills_are_left_out(drawn):
    assert signal_fields(SIZE, sketch=drawn["sketch"], among=["sketch"]).keys() == {"control", "control_valid"}
    assert signal_fields(SIZE, points=drawn["points"], among=["points"]).keys() == {"points", "points_valid"}


def test_a_signal_alone_is_its_own_control_image(drawn):
    assert torch.equal(signal_fields(SIZE, sketch=drawn["sketch"])["control"][0], drawn["sketch"])
    assert torch.equal(signal_fields(SIZE, coarse=drawn["coarse"])["control"][0], drawn["coarse"])


def test_strokes_lie_over_the_coarse_edit_with_a_dark_rim(drawn):
    both = signal_fields(SIZE, sketch=drawn["sketch"], coarse=drawn["coarse"])["control"][0, 0]
    assert both[8:13, 20].tolist() == [0.5, 0, 1, 0, 0.5]
    assert both[10, 6:10].tolist() == [0.5, 0, 1, 1]


def test_a_signal_that_is_not_among_the_batch_is_an_error(drawn):
    with pytest.raises(ValueError, match="points passed, but not among sketch"):
        signal_fields(SIZE, points=drawn["points"], among=["sketch"])
    with pytest.raises(ValueError, match=r"must be \(3, 48, 32\), got \(3, 32, 48\)"):
        signal_fields((48, 32), coarse=drawn["coarse"])


def test_outlines_of_a_photo_lie_on_its_edges():
    photo = torch.full((3, 128, 192), 60, dtype=torch.uint8)
    photo[:, 30:90, 50:120] = torch.tensor([200, 60, 60], dtype=torch.uint8)[:, None, None]
    drawn = outlines(photo)
    assert drawn.shape == photo.shape and set(drawn.unique().tolist()) == {0.0, 1.0}
    near = torch.zeros(128, 192)
    near[28:92, 48:122] = 1
    near[32:88, 52:118] = 0
    assert (drawn[0] * (1 - near)).sum() == 0  # nothing elsewhere
    assert drawn[0, 40:80, 49:51].amax(-1).mean() > 0.95 and drawn[0, 29:31, 60:110].amax(0).mean() > 0.95
    assert outlines(torch.full((3, 64, 64), 9, dtype=torch.uint8)).sum() == 0
