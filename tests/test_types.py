"""The shared contract: resizing, what moves, batches."""

import pytest
import torch

from fp_lightning.scenes.scene import Scene
from fp_lightning.types import EditBatch, VideoPair, to_uint8, to_unit_range


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
