"""Token copying against a brute-force loop, and the blocks of the network that copy."""

import pytest
import torch
from conftest import losses_of, make_batch, make_editor
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel

import fp_lightning.model.svd.unet
from fp_lightning.model.points import DragPoints, copy_tokens
from fp_lightning.model.svd.unet import FramePainterUNet
from fp_lightning.model.tiny import tiny_unet

SIZE = (32, 64)  # height, width: with features of 4 × 8 tokens a token is 8 px


def drag(*points: tuple[float, float, float, float], scale: float = 1.0) -> DragPoints:
    """One sample's points, all valid."""
    positions = torch.tensor(points).view(1, -1, 4)
    return DragPoints(positions, torch.ones(positions.shape[:2], dtype=torch.bool), SIZE, torch.tensor([scale]))


def features(count: int = 1, rows: int = 4, columns: int = 8) -> torch.Tensor:
    return torch.randn(count, 2, 3, rows, columns, generator=torch.Generator().manual_seed(0))


def added(x: torch.Tensor, points: DragPoints) -> torch.Tensor:
    """Return what was added to the target frame of a single sample, [c, rows, columns]."""
    return (copy_tokens(x, points) - x)[0, 1]


def brute_force(x: torch.Tensor, points: DragPoints) -> torch.Tensor:
    out, (height, width) = x.clone(), points.size
    rows, columns = x.shape[-2:]
    for b in range(len(x)):
        arrivals: dict[tuple[int, int], list[torch.Tensor]] = {}
        for (xs, ys, xt, yt), valid in zip(points.points[b].tolist(), points.valid[b], strict=True):
            if valid and all(0 <= v < end for v, end in ((xs, width), (xt, width), (ys, height), (yt, height))):
                token = x[b, 0, :, int(ys * rows // height), int(xs * columns // width)]
                arrivals.setdefault((int(yt * rows // height), int(xt * columns // width)), []).append(token)
        for (row, column), tokens in arrivals.items():
            out[b, 1, :, row, column] += points.scale[b] * torch.stack(tokens).mean(0)
    return out


@pytest.mark.parametrize("grid", [(4, 8), (16, 32), (1, 2), (3, 5)])
def test_copies_equal_the_brute_force_loop(grid):
    """Many points, so that tokens collide; some invalid, some out of the image; three samples, three scales."""
    g = torch.Generator().manual_seed(1)
    positions = torch.rand(3, 40, 4, generator=g) * torch.tensor([72.0, 36.0, 72.0, 36.0]) - 4
    points = DragPoints(positions, torch.rand(3, 40, generator=g) < 0.8, SIZE, torch.tensor([1.0, 0.3, -2.0]))
    x = features(3, *grid)
    torch.testing.assert_close(copy_tokens(x, points), brute_force(x, points))


@pytest.mark.parametrize(
    ("x", "y", "column", "row"),
    [(0, 0, 0, 0), (7.999, 7.999, 0, 0), (8, 8, 1, 1), (63.999, 31.999, 7, 3), (20.5, 11.5, 2, 1)],
)
def test_the_cell_that_holds_a_position_is_its_token(x, y, column, row):
    frames = features()
    as_target = added(frames, drag((0, 0, x, y)))
    assert as_target.abs().sum(0).nonzero().tolist() == [[row, column]]
    as_source = added(frames, drag((x, y, 0, 0)))
    torch.testing.assert_close(as_source[:, 0, 0], frames[0, 0, :, row, column])


def test_several_points_on_one_token_add_their_mean():
    x = features()
    gained = added(x, drag((4, 4, 20, 20), (12, 4, 22, 18), (4, 12, 16, 16)))
    torch.testing.assert_close(gained[:, 2, 2], (x[0, 0, :, 0, 0] + x[0, 0, :, 0, 1] + x[0, 0, :, 1, 0]) / 3)


def test_one_source_may_have_several_targets():
    x = features()
    gained = added(x, drag((4, 4, 20, 20), (4, 4, 60, 28)))
    for row, column in ((2, 2), (3, 7)):
        torch.testing.assert_close(gained[:, row, column], x[0, 0, :, 0, 0])


OUTSIDE = [(-0.01, 4, 20, 20), (64, 4, 20, 20), (4, 32, 20, 20), (4, 4, 64, 20), (4, 4, 20, -1), (4, 4, 20, 1e30)]
NOT_A_POSITION = [(float("nan"), 4, 20, 20), (4, 4, 20, float("nan")), (4, 4, float("inf"), 20)]


@pytest.mark.parametrize("point", OUTSIDE + NOT_A_POSITION)
def test_points_with_an_end_outside_the_image_are_ignored(point):
    x = features()
    assert torch.equal(copy_tokens(x, drag(point)), x)
    beside = (4, 4, 20, 20)
    assert torch.equal(copy_tokens(x, drag(point, beside)), copy_tokens(x, drag(beside)))


@pytest.mark.parametrize("padding", [(0.0, 0.0, 0.0, 0.0), (4.0, 4.0, 20.0, 20.0), (float("nan"),) * 4])
def test_invalid_points_are_ignored(padding):
    x, points = features(), drag((12, 12, 20, 20), padding)
    points.valid[0, 1] = False
    assert torch.equal(copy_tokens(x, points), copy_tokens(x, drag((12, 12, 20, 20))))


def test_source_frame_is_untouched():
    x = features()
    assert torch.equal(copy_tokens(x, drag((4, 4, 4, 4), (4, 4, 20, 20)))[:, 0], x[:, 0])


@pytest.mark.parametrize("points", [drag(), drag((4, 4, 20, 20), (12, 4, 20, 20), scale=0.0)], ids=["none", "scale 0"])
def test_nothing_to_copy_changes_nothing(points):
    x = features()
    assert torch.equal(copy_tokens(x, points), x)


def test_gradient_reaches_the_source_token_through_the_copy():
    x = features().requires_grad_()
    points = drag((4, 4, 20, 20), (12, 4, 20, 20), (float("nan"), 0, 0, 0), scale=0.5)
    copy_tokens(x, points)[0, 1, :, 2, 2].sum().backward()
    expected = torch.zeros_like(x)
    expected[0, 1, :, 2, 2] = 1
    expected[0, 0, :, 0, :2] = 0.25  # half of the scale for each of two
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mean_of_many_is_not_lost_in_half_precision(dtype):
    """Adding 8/50 to 1000 fifty times would round away every addition."""
    x = torch.zeros(1, 2, 1, 4, 8, dtype=dtype)
    x[:, 0], x[:, 1] = 8, 1000
    out = copy_tokens(x, drag(*[(4.0, 4.0, 20.0, 20.0)] * 50))
    assert out.dtype == dtype and out[0, 1, 0, 2, 2].item() == 1008


def test_strides_of_the_memory_do_not_matter():
    x, points = features(2), drag((4, 4, 20, 20))
    points = DragPoints(points.points.expand(2, -1, -1), points.valid.expand(2, -1), SIZE, points.scale.expand(2))
    turned = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert torch.equal(copy_tokens(turned, points), copy_tokens(x, points))


# In the network: 64 × 32 px are 16 × 8 tokens and 8 × 4 tokens of the tiny build.


def make_unet(attention: str = "matching") -> FramePainterUNet:
    return make_editor(attention).prior.unet


def inputs(height: int = 8, width: int = 16) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(1, 2, 32, height, width, generator=g),
        torch.rand(1, generator=g),
        torch.randn(1, 1, 32, generator=g),
        torch.rand(1, 3, generator=g),
    )


@pytest.fixture
def copied(monkeypatch) -> list[tuple[int, int]]:
    """Record (rows, columns) of every copy, in the order of the network."""
    grids = []

    def spy(x, points):
        grids.append(tuple(x.shape[-2:]))
        return copy_tokens(x, points)

    monkeypatch.setattr(fp_lightning.model.svd.unet, "copy_tokens", spy)
    return grids


@pytest.mark.parametrize("attention", ["matching", "cross_frame", "temporal"])
def test_every_attention_block_of_the_tiny_network_copies(attention, copied):
    unet = make_unet(attention)
    blocks = [module for module in unet.modules() if isinstance(module, TransformerSpatioTemporalModel)]
    with torch.no_grad():
        unet(*inputs(), points=drag((4, 4, 20, 20)))
    assert len(copied) == len(blocks) == 7
    assert set(copied) == {(8, 16), (4, 8)}


def test_all_sixteen_attention_blocks_of_the_full_network_copy(copied):
    """Run on the meta device, which has shapes but no values: no shape may depend on the positions of points."""
    with torch.device("meta"):
        unet = FramePainterUNet().to("meta").eval()
        points = DragPoints(torch.zeros(1, 5, 4), torch.ones(1, 5, dtype=torch.bool), (576, 1024), torch.ones(1))
        noise, c_noise = torch.zeros(1, 2, 8, 72, 128), torch.zeros(1)
        with torch.no_grad():
            unet(noise, c_noise, torch.zeros(1, 1, 1024), torch.zeros(1, 3), points=points)
    assert len(copied) == 16
    assert {grid: copied.count(grid) for grid in copied} == {(72, 128): 5, (36, 64): 5, (18, 32): 5, (9, 16): 1}


def first_block_output(unet, points: DragPoints | None) -> torch.Tensor:
    """Return the output [2, c, 8, 16] of the first attention block."""
    seen = []
    hook = unet.down_blocks[0].attentions[0].register_forward_hook(lambda _, args, output: seen.append(output[0]))
    with torch.no_grad():
        unet(*inputs(), points=points)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("attention", ["matching", "cross_frame", "temporal"])
def test_an_attention_block_changes_at_the_target_point_alone(attention):
    unet = make_unet(attention)
    without, with_points = (first_block_output(unet, points) for points in (None, drag((4, 4, 50, 21))))
    changed = (with_points != without).any(1)
    assert changed.nonzero().tolist() == [[1, 5, 12]]  # target frame, 21 // 4, 50 // 4
    torch.testing.assert_close(with_points[1, :, 5, 12] - without[1, :, 5, 12], without[0, :, 1, 1])


@pytest.mark.parametrize("attention", ["matching", "cross_frame", "temporal"])
def test_the_edit_changes_most_where_the_point_goes(attention):
    unet = make_unet(attention)
    with torch.no_grad():
        change = (unet(*inputs(), points=drag((4, 4, 50, 21)))[0] - unet(*inputs())[0])[0, 1].abs().sum(0)
    assert change[4:7, 11:14].mean() > 2 * change.mean() > 0


def test_network_without_points_is_what_it_was():
    """Also after a call with points, which must leave no state."""
    unet = make_unet()
    with torch.no_grad():
        before = unet(*inputs())[0]
        with_points = unet(*inputs(), points=drag((4, 4, 50, 21)))[0]
        after, empty = unet(*inputs())[0], unet(*inputs(), points=drag())[0]
    assert torch.equal(before, after) and torch.equal(before, empty)
    assert not torch.equal(before, with_points)


def test_keys_are_svds_own():
    keys = {key for key in make_unet().state_dict() if ".processor." not in key}
    assert keys == set(tiny_unet().state_dict())


def test_gradient_checkpointing_changes_nothing_with_points():
    def gradients(checkpointing: bool):
        editor = make_editor().train()
        if checkpointing:
            editor.prior.unet.enable_gradient_checkpointing()
        losses = losses_of(editor, make_batch(1, size=32, points=5))
        losses.total.backward()
        return losses.total.detach(), [p.grad for p in editor.parameters() if p.requires_grad]

    (loss, grads), (loss_c, grads_c) = gradients(False), gradients(True)
    torch.testing.assert_close(loss, loss_c)
    for a, b in zip(grads, grads_c, strict=True):
        torch.testing.assert_close(a, b)
