"""Where attention looks, against what dense attention says and against tracks."""

import math

import pytest
import torch
from conftest import _random_backbone, make_batch, make_editor
from diffusers import UNetSpatioTemporalConditionModel

from fp_lightning.evaluation import correspondence
from fp_lightning.evaluation.correspondence import (
    WITHIN,
    CorrespondenceMetrics,
    attention_maps,
    by_head,
    distances,
    entropy,
    reassembled,
)
from fp_lightning.model.edm import seeded_generator
from fp_lightning.model.matching import spatial_attentions
from fp_lightning.model.tiny import tiny_unet


def generators(count: int = 2):
    return [torch.Generator().manual_seed(i) for i in range(count)]


def measured(editor, batch, **options):
    metrics = CorrespondenceMetrics(list(spatial_attentions(editor.prior.unet)), **options)
    metrics.update(editor, batch, generators(len(batch)))
    return metrics.compute()


@pytest.mark.parametrize("attention", ["matching", "cross_frame"])
def test_it_is_the_arg_max_of_the_dense_map(attention):
    editor, batch = make_editor(attention), make_batch(2)
    seen = {}
    for name, attn in spatial_attentions(editor.prior.unet).items():
        attn.register_forward_pre_hook(lambda module, args, name=name: seen.update({name: args[0]}))
    rows = measured(editor, batch)
    assert set(rows) == {*spatial_attentions(editor.prior.unet), "all"}
    for name, attn in spatial_attentions(editor.prior.unet).items():
        hidden = seen[name].unflatten(0, (-1, 2))
        source, target = hidden[:, 0], hidden[:, 1]
        layer = attn.processor if attention == "matching" else attn
        keys = source if attention == "matching" else torch.cat([source, target], 1)
        n, heads = source.shape[1], attn.heads
        q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (layer.to_q(target), layer.to_k(keys)))
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)[..., :n].mean(1)
        found, columns, stride = weights.argmax(-1), math.isqrt(n), 64 / math.isqrt(n)
        # every token in turn, from the tracks themselves
        errors = []
        for b in range(2):
            for token in range(n):
                y, x = (token // columns + 0.5) * stride, (token % columns + 0.5) * stride
                row, column = int(y * 16 / 64), int(x * 16 / 64)
                if not batch.visible[b, row, column]:
                    continue
                there = batch.tracks[b, :, row, column] + torch.tensor([x - (column + 0.5) * 4, y - (row + 0.5) * 4])
                if (there < 0).any() or (there >= 64).any():
                    continue
                wanted = (there / stride).floor()
                got = torch.tensor([found[b, token] % columns, found[b, token] // columns])
                errors.append((got - wanted).norm().item())
        assert rows[name]["tokens"] == len(errors)
        assert rows[name]["error"] == pytest.approx(sum(errors) / len(errors) * stride * 512 / 64, rel=1e-4)
        assert rows[name]["within_2"] == pytest.approx(sum(e <= 2 for e in errors) / len(errors), rel=1e-6)


def test_splits_and_batches_make_no_difference():
    editor, batch = make_editor(), make_batch(2)
    whole = CorrespondenceMetrics(list(spatial_attentions(editor.prior.unet)))
    whole.update(editor, batch, generators())
    halves = CorrespondenceMetrics(list(spatial_attentions(editor.prior.unet)))
    for i in range(2):
        halves.update(editor, make_batch(1, first_seed=i), generators()[i : i + 1])
    torch.testing.assert_close(whole.sums, halves.sums, rtol=1e-3, atol=0.5)


def test_a_source_whose_tokens_look_at_themselves_is_put_together_again():
    source = torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8)
    assert torch.equal(reassembled(source, torch.arange(24)), source)
    moved = reassembled(source, torch.arange(24).view(4, 6).roll(1, 1).flatten())
    assert torch.equal(moved, source.roll(4, 2))


def test_pictures_are_of_the_finest_grid_and_so_many():
    editor = make_editor()
    metrics = CorrespondenceMetrics(list(spatial_attentions(editor.prior.unet)), keep=1)
    batch = make_batch(2)
    metrics.update(editor, batch, generators())
    assert list(metrics.pictures) == batch.name[:1]
    assert metrics.pictures[batch.name[0]].shape == (3, 64, 64)
    metrics.reset()
    assert metrics.pictures == {}


def test_half_precision_of_the_module_lowers_no_count():
    editor, batch = make_editor(), make_batch(2)
    whole, lowered = (CorrespondenceMetrics(list(spatial_attentions(editor.prior.unet))) for _ in range(2))
    lowered = lowered.to(torch.bfloat16)
    for metrics in (whole, lowered):
        metrics.update(editor, batch, generators())
    assert lowered.compute() == whole.compute()


def test_without_attention_between_frames_there_is_nothing_to_measure():
    assert measured(make_editor("temporal"), make_batch(1)) == {}
    batch = make_batch(1)
    batch.tracks = None
    assert measured(make_editor(), batch) == {}


# --- maps


@pytest.mark.parametrize("attention", ["matching", "cross_frame"])
def test_maps_are_the_dense_attention_of_the_tokens_under_the_points(attention):
    editor, batch = make_editor(attention), make_batch(2)
    seen = {}
    for name, attn in spatial_attentions(editor.prior.unet).items():
        attn.register_forward_pre_hook(lambda module, args, name=name: seen.update({name: args[0]}))
    points = torch.tensor([[[5.0, 60.0], [33.0, 9.0], [63.9, 0.0]], [[0.5, 0.5], [20.0, 40.0], [31.9, 32.1]]])
    maps = attention_maps(editor, batch, points, generators())
    assert set(maps) == set(spatial_attentions(editor.prior.unet))
    for name, attn in spatial_attentions(editor.prior.unet).items():
        source, target = seen[name].unflatten(0, (-1, 2)).unbind(1)
        layer = attn.processor if attention == "matching" else attn
        keys = source if attention == "matching" else torch.cat([source, target], 1)
        n, heads = source.shape[1], attn.heads
        q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (layer.to_q(target), layer.to_k(keys)))
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)[..., :n]
        side, stride = math.isqrt(n), 64 / math.isqrt(n)
        for b in range(2):
            for p in range(3):
                token = int(points[b, p, 1] // stride) * side + int(points[b, p, 0] // stride)
                torch.testing.assert_close(maps[name][b, :, p].flatten(1), weights[b, :, token], rtol=1e-4, atol=1e-6)


def test_maps_of_matching_attention_sum_to_one_and_of_cross_frame_attention_to_less():
    points = torch.tensor([[[10.0, 10.0]]])
    whole = attention_maps(make_editor("matching"), make_batch(1), points, generators(1))
    shared = attention_maps(make_editor("cross_frame"), make_batch(1), points, generators(1))
    assert all(torch.allclose(x.sum((-2, -1)), torch.ones(())) for x in whole.values())
    assert all((x.sum((-2, -1)) < 0.999).all() for x in shared.values())


def test_a_point_at_the_edge_belongs_to_the_last_token():
    editor, batch = make_editor(), make_batch(1)
    edge, inside = (attention_maps(editor, batch, torch.tensor([[[xy, xy]]]), generators(1)) for xy in (64.0, 63.0))
    assert all(torch.equal(edge[name], inside[name]) for name in edge)


def test_maps_have_the_shape_of_the_image():
    batch = make_batch(1)
    wide = type(batch)(
        source=batch.source[..., :32, :],
        target=batch.target[..., :32, :],
        control=batch.control[..., :32, :],
        name=batch.name,
    )
    maps = attention_maps(make_editor(), wide, torch.tensor([[[60.0, 5.0]]]), generators(1))
    assert {tuple(x.shape[-2:]) for x in maps.values()} == {(8, 16), (4, 8)}


def test_without_attention_between_frames_there_are_no_maps():
    assert attention_maps(make_editor("temporal"), make_batch(1), torch.zeros(1, 1, 2), generators(1)) == {}


# --- heads and entropy


def one_head(monkeypatch, attention: str = "matching"):
    config = {**tiny_unet().config, "num_attention_heads": (1, 1)}
    monkeypatch.setattr("conftest.tiny_unet", lambda: UNetSpatioTemporalConditionModel.from_config(config))
    monkeypatch.setattr("conftest._random_backbone", _random_backbone.__wrapped__)  # its cache holds other networks
    return make_editor(attention)


@pytest.mark.parametrize("attention", ["matching", "cross_frame"])
def test_a_layer_of_one_head_has_the_error_of_its_layer(monkeypatch, attention):
    editor, batch = one_head(monkeypatch, attention), make_batch(2)
    metrics = CorrespondenceMetrics(list(spatial_attentions(editor.prior.unet)), sigma=0.5)
    metrics.update(editor, batch, [seeded_generator(3, "correspondence", name) for name in batch.name])
    layers, rows = metrics.compute(), by_head(editor, batch, [0.5], seed=3)
    assert {row["layer"] for row in rows} == set(spatial_attentions(editor.prior.unet)) and len(rows) == len(layers) - 1
    for row in rows:
        for name in ("tokens", "error", "within_1"):
            assert row[name] == pytest.approx(layers[row["layer"]][name], rel=1e-6), row["layer"]


def test_there_is_a_row_for_every_level_layer_and_head():
    editor, batch = make_editor(), make_batch(1)
    rows = by_head(editor, batch, [0.3, 3.0])
    expected = {
        (s, n, h) for s in (0.3, 3.0) for n, a in spatial_attentions(editor.prior.unet).items() for h in range(a.heads)
    }
    assert {(row["sigma"], row["layer"], row["head"]) for row in rows} == expected
    assert len(rows) == len(expected)
    assert {row["grid"] for row in rows} == {256, 64}
    assert all(0 < row["entropy"] <= 1 for row in rows)


def test_without_a_visible_track_a_head_has_no_error():
    batch = make_batch(1)
    batch.visible = torch.zeros_like(batch.visible)
    row = by_head(make_editor(), batch, [1.0])[0]
    assert row["tokens"] == 0 and math.isnan(row["error"]) and math.isnan(row["within_1"])


def test_entropy_of_equal_keys_is_one():
    query = torch.randn(2, 3, 5, 8)
    torch.testing.assert_close(entropy(query, torch.ones(2, 3, 7, 8)), torch.ones(2, 3, 5))


def test_entropy_with_a_dominant_key_is_nothing():
    key = torch.zeros(7, 8)
    key[2] = 100
    assert entropy(torch.ones(5, 8), key).max() < 1e-6


def test_entropy_of_two_equal_keys_among_four_is_a_half():
    key = torch.tensor([[50.0], [50.0], [-50.0], [-50.0]])
    assert entropy(torch.ones(1, 1), key).item() == pytest.approx(0.5)


def test_entropy_does_not_depend_on_how_much_exists_at_a_time(monkeypatch):
    query, key = torch.randn(2, 9, 4), torch.randn(2, 6, 4)
    whole = entropy(query, key)
    monkeypatch.setattr(correspondence, "ENTRIES", 2 * 12)
    torch.testing.assert_close(entropy(query, key), whole)


def test_distances_are_in_tokens_and_in_pixels_at_512_px_width():
    found, wanted = torch.tensor([0, 5, 9]), torch.tensor([0, 0, 5])  # on a grid of 2 × 8 tokens of 8 px
    away, pixels = distances(found, wanted, 16, (16, 64))
    assert away.tolist() == pytest.approx([0, 5, math.hypot(4, 1)])
    assert pixels.tolist() == pytest.approx([0, 5 * 64, math.hypot(4, 1) * 64])


def test_shares_within_a_distance_grow_with_it():
    values = measured(make_editor(), make_batch(2))["all"]
    shares = [values[f"within_{limit}"] for limit in WITHIN]
    assert shares == sorted(shares) and 0 < shares[-1] < 1
