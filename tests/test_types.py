"""The shared contract: resizing, what moves, batches."""

from dataclasses import replace

import pytest
import torch

from fp_lightning.scenes.scene import Scene
from fp_lightning.types import EditBatch, VideoPair, to_uint8, to_unit_range, token_centres


def uniform_pair(flow: tuple[float, float], size: tuple[int, int] = (64, 128)) -> VideoPair:
    height, width = size
    there = torch.tensor(flow)[:, None, None].expand(2, height, width).clone()
    tracks = torch.full((2, height // 8, width // 8), 16.0)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    return VideoPair(image, image, there, -there, tracks, torch.ones(height // 8, width // 8, dtype=torch.bool))


def test_resized_scales_flow_and_tracks_per_axis():
    pair = uniform_pair((8.0, 4.0)).resized((32, 32))
    assert pair.source.shape == (3, 32, 32)
    assert pair.flow_to_source[:, 5, 5].tolist() == [2.0, 2.0]  # width / 4, height / 2
    assert pair.tracks[:, 0, 0].tolist() == [4.0, 8.0]


def test_resized_flow_has_no_new_motions():
    pair = Scene(0, (64, 64)).pair()
    small = pair.resized((40, 40))
    known = {round(v, 3) for v in (pair.flow_to_source[0] * 40 / 64).flatten().tolist()}
    assert {round(v, 3) for v in small.flow_to_source[0].flatten().tolist()} <= known


def test_resized_to_own_size_is_the_pair():
    pair = uniform_pair((1.0, 0.0))
    assert pair.resized(pair.size) is pair


def disc(height: int, width: int, radius: float) -> torch.Tensor:
    """A white disc in the middle of black: uint8 [3, height, width]."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    inside = (y - height / 2) ** 2 + (x - width / 2) ** 2 <= radius**2
    return (inside * 255).to(torch.uint8).expand(3, -1, -1)


def extent(image: torch.Tensor) -> tuple[int, int]:
    """Height and width of what is bright in [c, h, w]."""
    bright = image[0] > image[0].max() / 2
    rows, columns = bright.any(1).nonzero().flatten(), bright.any(0).nonzero().flatten()
    return int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1


@pytest.mark.parametrize("stored", [(64, 64), (64, 128), (96, 40), (37, 61)])
@pytest.mark.parametrize("size", [(64, 128), (128, 64), (64, 64), (90, 160)])
def test_a_circle_stays_a_circle_at_every_size(stored, size):
    pair = replace(uniform_pair((0.0, 0.0), stored), source=disc(*stored, radius=8), target=disc(*stored, radius=8))
    fitted = pair.fitted(size)
    assert fitted.size == size
    for image in (fitted.source, fitted.target):
        height, width = extent(image)
        scale = max(1.0, size[0] / stored[0], size[1] / stored[1])
        assert abs(height - width) <= scale and height > 8


@pytest.mark.parametrize("size", [(32, 64), (64, 24), (40, 64), (64, 48)])
def test_a_crop_along_tokens_keeps_exact_tracks(size):
    pair = Scene(0, (64, 64)).pair(stride=8)
    cropped = pair.cropped(size)
    assert cropped.size == size
    top, left = (round((64 - side) / 16) * 8 for side in size)
    rows, columns = slice(top // 8, (top + size[0]) // 8), slice(left // 8, (left + size[1]) // 8)
    corner = torch.tensor([left, top])[:, None, None]
    torch.testing.assert_close(cropped.tracks, pair.tracks[:, rows, columns] - corner)
    inside = (cropped.tracks >= 0).all(0) & (cropped.tracks[0] < size[1]) & (cropped.tracks[1] < size[0])
    assert torch.equal(cropped.visible, pair.visible[rows, columns] & inside)
    pixels = (slice(None), slice(top, top + size[0]), slice(left, left + size[1]))
    for name in ("source", "target", "flow_to_source", "flow_to_target"):
        assert torch.equal(getattr(cropped, name), getattr(pair, name)[pixels]), name


def test_a_crop_through_tokens_keeps_their_displacement():
    pair = uniform_pair((3.0, -2.0), (64, 64))
    centres = token_centres(pair.tracks, (64, 64))
    pair = replace(pair, tracks=centres + torch.tensor([3.0, -2.0])[:, None, None])
    cropped = pair.cropped((36, 64))
    assert cropped.size == (36, 64) and cropped.visible.shape == (4, 8)
    moved = cropped.tracks - token_centres(cropped.tracks, (36, 64))
    torch.testing.assert_close(moved, torch.tensor([3.0, -2.0])[:, None, None].expand(2, 4, 8))
    assert cropped.visible.all()


def test_what_came_from_outside_of_the_crop_is_not_visible():
    pair = uniform_pair((0.0, 30.0), (64, 64))
    pair = replace(pair, tracks=token_centres(pair.tracks, (64, 64)) + torch.tensor([0.0, 30.0])[:, None, None])
    assert pair.cropped((32, 64)).visible.sum(1).tolist() == [0, 0, 0, 0]
    assert pair.visible.all()


def test_a_pair_of_the_same_aspect_is_not_cropped():
    pair = uniform_pair((1.0, 0.0), (64, 128))
    assert pair.cropped((288, 576)) is pair and pair.fitted((64, 128)) is pair


@pytest.mark.parametrize(("length", "moves"), [(1.01, True), (0.99, False)])
def test_moving_means_one_pixel_at_width_512(length, moves):
    assert uniform_pair((length, 0.0), (64, 512)).moving().all().item() is moves
    assert uniform_pair((length / 4, 0.0), (64, 128)).moving().all().item() is moves


def test_moving_includes_where_the_object_was():
    pair = uniform_pair((0.0, 0.0))
    pair.flow_to_target[0, 3, 4] = 9.0
    assert pair.moving().nonzero().tolist() == [[0, 3, 4]]


def test_unit_range_round_trip():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit_range(values)), values)
    assert to_unit_range(values).aminmax() == (-1, 1)


def sample(name: str, **fields) -> EditBatch:
    return EditBatch(source=torch.zeros(1, 3, 8, 8), name=[name], **fields)


def test_cat_joins_tensors_and_names():
    batch = EditBatch.cat([sample("a", full_size=[(3, 4)]), sample("b", full_size=[(5, 6)])])
    assert len(batch) == 2
    assert batch.name == ["a", "b"]
    assert batch.full_size == [(3, 4), (5, 6)]
    assert batch.target is None


def test_cat_refuses_a_field_that_only_some_have():
    with pytest.raises(ValueError, match="control is present in 1 of 2"):
        EditBatch.cat([sample("a"), sample("b", control=torch.zeros(1, 3, 8, 8))])


def test_to_moves_every_tensor_and_keeps_names():
    batch = sample("a", visible=torch.ones(1, 1, 1)).to(torch.float64)
    assert batch.source.dtype == batch.visible.dtype == torch.float64
    assert batch.name == ["a"]
