"""Softmax splatting equals its definition; a coarse edit puts what moves where it is in the target."""

import math
from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest
import torch

from fp_lightning.errors import InputError
from fp_lightning.scenes.content import SceneContent
from fp_lightning.scenes.scene import Scene
from fp_lightning.signals.coarse import coarse_edit
from fp_lightning.signals.cutouts import Piece, cut_and_paste
from fp_lightning.signals.splat import softmax_splat
from fp_lightning.types import VideoPair

MODES = ["splat", "cut"]


def arguments(batch: int = 2, channels: int = 3, height: int = 5, width: int = 6, reach: float = 3.0):
    """Random values, flow and metric, float64; some of it leaves the image."""
    draw = torch.Generator().manual_seed(0)
    values = torch.rand(batch, channels, height, width, generator=draw, dtype=torch.float64)
    flow = reach * (2 * torch.rand(batch, 2, height, width, generator=draw, dtype=torch.float64) - 1)
    metric = 4 * torch.randn(batch, 1, height, width, generator=draw, dtype=torch.float64)
    return values, flow, metric


def splat_by_definition(values: torch.Tensor, flow: torch.Tensor, metric: torch.Tensor):
    """The sums of Niklaus & Liu (2020), pixel by pixel."""
    batch, _, height, width = values.shape
    total, norm, covered = torch.zeros_like(values), torch.zeros_like(metric), torch.zeros_like(metric)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                to_x, to_y = x + float(flow[b, 0, y, x]), y + float(flow[b, 1, y, x])
                for v in range(height):
                    for u in range(width):
                        share = max(0.0, 1 - abs(u - to_x)) * max(0.0, 1 - abs(v - to_y))
                        weight = share * math.exp(float(metric[b, 0, y, x]))
                        total[b, :, v, u] += weight * values[b, :, y, x]
                        norm[b, 0, v, u] += weight
                        covered[b, 0, v, u] += share
    return torch.where(norm > 0, total / norm.clamp(min=1e-300), 0), covered


def test_splat_equals_its_definition():
    for result, truth in zip(softmax_splat(*arguments()), splat_by_definition(*arguments()), strict=True):
        torch.testing.assert_close(result, truth)


@pytest.mark.parametrize("index", range(3), ids=["values", "flow", "metric"])
def test_splat_has_exact_gradients(index):
    given = list(arguments(batch=2, channels=2, height=3, width=4, reach=2.0))
    given[index].requires_grad_()
    assert torch.autograd.gradcheck(softmax_splat, given)


def test_slope_at_rest_is_the_one_towards_greater_flow():
    values, flow, metric = arguments(batch=1)
    flow.zero_().requires_grad_()
    focus = torch.arange(values.numel(), dtype=torch.float64).view_as(values)  # of the moved values
    (softmax_splat(values, flow, metric)[0] * focus).sum().backward()
    step = torch.zeros_like(flow)
    step[0, 0, 2, 3] = 1e-6
    change = softmax_splat(values, step, metric)[0] - softmax_splat(values, 0 * step, metric)[0]
    slope = float((change * focus).sum()) / 1e-6
    assert abs(slope) > 0.1
    assert float(flow.grad[0, 0, 2, 3]) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (2, 0), (0, -1), (-3, 2)])
def test_whole_pixels_are_moved_exactly(dx, dy):
    values, flow, metric = arguments()
    flow[:, 0], flow[:, 1] = dx, dy
    moved, covered = softmax_splat(values, flow, metric)
    expected, inside = torch.zeros_like(values), torch.zeros_like(metric)
    height, width = values.shape[-2:]
    to = np.s_[..., max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]
    at = np.s_[..., max(0, -dy) : height + min(0, -dy), max(0, -dx) : width + min(0, -dx)]
    expected[to], inside[to] = values[at], 1
    torch.testing.assert_close(moved, expected)
    assert torch.equal(covered, inside)


def test_samples_of_a_batch_do_not_meet():
    values, flow, metric = arguments()
    both = softmax_splat(values, flow, metric)
    for i in range(2):
        one = softmax_splat(values[i : i + 1], flow[i : i + 1], metric[i : i + 1])
        assert all(torch.equal(a[i : i + 1], b) for a, b in zip(both, one, strict=True))


def test_splat_works_where_its_arguments_are():
    moved, covered = softmax_splat(*(x.to("meta") for x in arguments()))
    assert moved.device.type == covered.device.type == "meta"
    assert moved.shape == (2, 3, 5, 6) and covered.shape == (2, 1, 5, 6)


def test_more_important_pixel_wins_a_collision():
    values = torch.tensor([[[[1.0, 0.0, 0.0]]]])
    flow = torch.zeros(1, 2, 1, 3)
    flow[0, 0, 0, 0] = 2.0
    won = []
    for lead in (-2.0, 0.0, 2.0, 5.0, 50.0):
        moved, covered = softmax_splat(values, flow, torch.tensor([[[[lead, 0.0, 0.0]]]]))
        won.append(float(moved[0, 0, 0, 2]))
        assert covered.flatten().tolist() == [0, 1, 2]
    assert won == pytest.approx([1 / (1 + math.exp(-lead)) for lead in (-2, 0, 2, 5, 50)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_metrics_stay_finite_and_hide_nothing(dtype):
    values, flow, metric = (x.to(dtype) for x in arguments(batch=1))
    values = 1 + values
    metric = torch.where(metric > 0, 1e4, -1e4).to(dtype)
    flow[..., :2] = flow[..., :2].round()  # shares of nothing too
    for x in (values, flow, metric):
        x.requires_grad_()
    moved, covered = softmax_splat(values, flow, metric)
    (moved.square().sum() + covered.square().sum()).backward()
    assert torch.equal(moved[:, :1] >= 1, covered > 1e-6)  # the least important is seen where it is alone
    assert moved.max() <= values.max() * (1 + 1e-6)
    assert all(x.grad.isfinite().all() for x in (values, flow, metric))


@pytest.mark.parametrize("distance", [100.0, -1e9])
def test_what_leaves_the_image_is_dropped_without_a_gradient(distance):
    values, flow, metric = arguments()
    flow = torch.full_like(flow, distance).requires_grad_()
    metric.requires_grad_()
    moved, covered = softmax_splat(values, flow, metric)
    assert not moved.any() and not covered.any()
    moved.sum().backward()
    assert not flow.grad.any() and not metric.grad.any()


@cache
def scene(seed: int) -> tuple[VideoPair, torch.Tensor]:
    """A pair with exact flow, and which target pixels [h, w] are seen in the source."""
    clip = Scene(seed, (256, 256), SceneContent(objects=(1, 3)))
    _, seen = clip.correspond(clip._grid(1), 1.0, 0.0)
    return clip.pair(), torch.from_numpy(seen)


def psnr(image: torch.Tensor, pair: VideoPair, where: torch.Tensor) -> float:
    return -10 * math.log10(float((image - pair.target / 255).square().mean(0)[where].mean()))


@pytest.mark.parametrize(("mode", "least", "mean"), [("splat", 26, 30), ("cut", 22, 27)])
def test_edit_shows_the_target_where_it_can_be_known(mode, least, mean):
    scores, unchanged = [], []
    for seed in range(6):
        pair, seen = scene(seed)
        where = seen & pair.moving()[0]
        scores.append(psnr(coarse_edit(pair, mode), pair, where))
        unchanged.append(psnr(pair.source / 255, pair, where))
    assert np.mean(unchanged) < 12
    assert min(scores) > least
    assert np.mean(scores) > mean


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(64, 96), (320, 512)])
def test_form_is_an_image_in_256_levels(mode, size):
    edit = coarse_edit(Scene(1, size, SceneContent(objects=(1, 3))).pair(), mode)
    assert edit.shape == (3, *size) and edit.dtype == torch.float32 and edit.is_contiguous()
    assert edit.min() >= 0 and edit.max() <= 1
    torch.testing.assert_close(edit * 255, (edit * 255).round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_no_motion_leaves_the_source(mode):
    pair = Scene(0, (64, 96)).pair(0.5, 0.5)
    assert torch.equal(coarse_edit(pair, mode), pair.source / 255)


@pytest.mark.parametrize("mode", MODES)
def test_same_pair_same_edit_whatever_the_generators(mode):
    pair, _ = scene(4)
    first = coarse_edit(pair, mode)
    cv2.setRNGSeed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    assert torch.equal(coarse_edit(pair, mode), first)


def test_unknown_mode_is_refused():
    with pytest.raises(InputError, match="warp.*splat or cut"):
        coarse_edit(Scene(0, (64, 64)).pair(), "warp")


def boxes(*moves: tuple[tuple[int, int, int, int], tuple[int, int]], size: tuple[int, int] = (256, 256)) -> VideoPair:
    """A grey ground with striped boxes (left, top, right, bottom), each of its own colour, that move by whole pixels.

    Later boxes lie on top in the target.
    """
    height, width = size
    source = torch.full((3, height, width), 90, dtype=torch.uint8)
    flow = torch.zeros(2, height, width)
    target = source.clone()
    for index, ((left, top, right, bottom), (dx, dy)) in enumerate(moves):
        box = torch.full((3, bottom - top, right - left), 10, dtype=torch.uint8)
        box[index] = 250
        box[2, ::8] = 130
        source[:, top:bottom, left:right] = box
        target[:, top + dy : bottom + dy, left + dx : right + dx] = box
        flow[:, top:bottom, left:right] = torch.tensor([dx, dy])[:, None, None]
    nothing = torch.zeros(2, 1, 1)
    return VideoPair(source, target, torch.zeros_like(flow), flow, nothing, torch.zeros(1, 1, dtype=torch.bool))


@pytest.mark.parametrize("size", [(256, 256), (320, 512)])  # filled at its own size, and at a smaller one
def test_cut_moves_a_box_and_fills_its_place(size):
    pair = boxes(((40, 60, 100, 120), (70, 40)), size=size)
    edit = (coarse_edit(pair, "cut") * 255).round()
    error = (edit - pair.target).abs().amax(0)
    for y in (100, 155):
        for x in (110, 165):
            error[y : y + 5, x : x + 5] = 0  # its corners are a little round
    assert error.max() <= 1


@pytest.mark.parametrize("mode", MODES)
def test_touching_boxes_part(mode):
    pair = boxes(((40, 60, 100, 120), (-20, 60)), ((100, 60, 160, 120), (60, 40)))
    edit = coarse_edit(pair, mode) * 255
    for inside in (np.s_[:, 126:174, 26:74], np.s_[:, 106:154, 166:214]):
        assert (edit[inside] - pair.target[inside]).abs().max() < 1


def test_cut_has_a_soft_edge_of_one_pixel():
    pair = boxes(((40, 60, 100, 120), (70, 40)))
    pair.source[:, 60:120, 40:100] = 250
    pair.flow_to_target[0, 60:120, 40:100] += 0.5
    row = (coarse_edit(pair, "cut")[0, 130] * 255).round()
    assert row[106:114].tolist() == [90, 90, 90, 90, 170, 250, 250, 250]
    assert row[166:174].tolist() == [250, 250, 250, 250, 170, 90, 90, 90]


def test_each_region_is_cut_along_its_own_outline():
    pair = boxes(((40, 60, 100, 120), (-20, 60)), ((100, 60, 160, 120), (60, 40)))
    edit = (coarse_edit(pair, "cut") * 255).round()
    for rows, columns in ((slice(126, 174), slice(15, 85)), (slice(106, 119), slice(150, 230))):
        assert torch.equal(edit[:, rows, columns], pair.target[:, rows, columns].float())  # with ground beside it


def test_part_that_goes_its_own_way_is_not_carried_along():
    pair = boxes(((20, 40, 120, 140), (100, 80)), ((50, 70, 90, 110), (130, -50)))
    edit = coarse_edit(pair, "cut") * 255
    assert (edit[:, 24:56, 184:216] - pair.target[:, 24:56, 184:216]).abs().max() < 1  # the small box
    left_by_it = edit[:, 152:188, 152:188]
    assert left_by_it[1].max() < 200  # its green does not show again


def test_gap_in_the_flow_is_cut_too_and_a_thread_is_not():
    pair = boxes(((40, 60, 100, 120), (70, 40)))
    pair.flow_to_target[:, 80:90, 60:70] = 0
    pair.flow_to_target[:, 90:92, 100:140] = torch.tensor([70.0, 40.0])[:, None, None]
    pair.source[:, 90:92, 110:140] = 0
    edit = coarse_edit(pair, "cut") * 255
    assert (edit[:, 105:155, 115:165] - pair.target[:, 105:155, 115:165]).abs().max() < 1
    assert not edit[:, 90:92, 110:140].any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("on_top", [0, 1])
def test_what_the_target_shows_lies_on_top(mode, on_top):
    pair = boxes(((20, 20, 80, 80), (60, 60)), ((180, 20, 240, 80), (-80, 60)))
    overlap = np.s_[:, 84:136, 104:136]
    assert (pair.target[:, 86, 120] == torch.tensor([10, 250, 10])).all()
    if on_top == 0:
        pair.target[:, 80:140, 80:140] = pair.source[:, 20:80, 20:80]
    edit = coarse_edit(pair, mode) * 255
    assert (edit[overlap] - pair.target[overlap]).abs().max() < 2


@pytest.mark.parametrize("mode", MODES)
def test_target_lends_no_colour(mode):
    pair = boxes(((40, 60, 100, 120), (70, 0)))
    pair.source[2] = 0
    pair.target[:2], pair.target[2] = 0, 255
    edit = coarse_edit(pair, mode)
    assert edit[0].any() and not edit[2].any()


@pytest.mark.parametrize("mode", MODES)
def test_without_collisions_the_target_is_not_asked(mode):
    pair, _ = scene(0)
    flow = torch.tensor([30.0, -20.0])[:, None, None].expand(2, 256, 256).contiguous()
    dark, light = (replace(pair, target=torch.full_like(pair.target, c), flow_to_target=flow) for c in (0, 255))
    assert torch.equal(coarse_edit(dark, mode), coarse_edit(light, mode))


@pytest.mark.parametrize("mode", MODES)
def test_shadow_rim_of_a_hole_is_hidden(mode):
    pair = boxes(((100, 100, 160, 160), (80, 0)), size=(512, 512))
    object_, rim = pair.flow_to_target.any(0), torch.zeros(512, 512, dtype=torch.bool)
    rim[97:163, 97:163] = True
    pair.source[:, rim & ~object_] = 0
    away = np.s_[:, 90:170, 90:150]  # where the box was, and it is not now
    assert (coarse_edit(pair, mode, grow=4 / 512)[away] * 255).min() > 80
    assert (coarse_edit(pair, mode, grow=1 / 512)[away] * 255).min() < 40


def test_small_and_disagreeing_regions_stay():
    small = boxes(((40, 60, 60, 80), (70, 40)))
    assert torch.equal(coarse_edit(small, "cut", min_side=24 / 256), small.source / 255)
    assert not torch.equal(coarse_edit(small, "cut", min_side=16 / 256), small.source / 255)
    speck = boxes(((40, 60, 42, 62), (70, 40)))
    assert torch.equal(coarse_edit(speck, "cut", min_side=0), speck.source / 255)
    torn = boxes(((40, 60, 100, 120), (70, 40)))
    x, y = torch.meshgrid(torch.arange(60) - 30.0, torch.arange(60) - 30.0, indexing="xy")
    torn.flow_to_target[:, 60:120, 40:100] = torch.stack([40 + 0.3 * x, 0.3 * y * y.sign()])  # folds, no similarity
    assert torch.equal(coarse_edit(torn, "cut", tolerance=1 / 512), torn.source / 255)


@pytest.mark.parametrize("mode", MODES)
def test_all_may_leave_the_image(mode):
    pair = boxes(((40, 60, 100, 120), (70, 40)))
    pair.flow_to_target = torch.full_like(pair.flow_to_target, 400.0)
    assert coarse_edit(pair, mode).isfinite().all()


# Pieces cut by hand


def test_a_piece_goes_where_it_is_moved_and_its_place_is_filled():
    photo = np.full((40, 60, 3), 50, np.uint8)
    photo[10:20, 10:20] = (200, 100, 0)
    square = np.array([[10, 10], [20, 10], [20, 20], [10, 20]], float)
    move = np.array([[1, 0, 25], [0, 1, 8]], float)
    edited = cut_and_paste(photo, [Piece(square, move)])
    expected = np.full((40, 60, 3), 50, np.uint8)
    expected[18:28, 35:45] = (200, 100, 0)
    assert np.array_equal(edited, expected)
    copied = cut_and_paste(photo, [Piece(square, move, copied=True)])
    assert np.array_equal(copied[10:20, 10:20], photo[10:20, 10:20]) and np.array_equal(
        copied[18:28, 35:45], photo[10:20, 10:20]
    )
    gone = cut_and_paste(photo, [Piece(square)])
    assert (gone == 50).all()


def test_a_piece_is_mirrored_and_turned_about_exact_positions():
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 255, (32, 32, 3), np.uint8)
    square = np.array([[8, 8], [16, 8], [16, 16], [8, 16]], float)
    mirrored = cut_and_paste(photo, [Piece(square, np.array([[-1, 0, 24], [0, 1, 0]], float), copied=True)])
    assert np.array_equal(mirrored[8:16, 8:16], photo[8:16, 8:16][:, ::-1])
    turned = cut_and_paste(photo, [Piece(square, np.array([[0, -1, 24], [1, 0, 0]], float), copied=True)])
    assert np.array_equal(turned[8:16, 8:16], np.rot90(photo[8:16, 8:16], -1))
