"""Where attention looks, against what dense attention says and against tracks."""

import math

import pytest
import torch
from conftest import make_batch, make_editor

from fp_lightning.correspondence import CorrespondenceMetrics, reassembled
from fp_lightning.matching import spatial_attentions


def generators(count: int = 2):
    return [torch.Generator().manual_seed(i) for i in range(count)]


def measured(editor, batch, **options):
    metrics = CorrespondenceMetrics(list(spatial_attentions(editor.unet)), **options)
    metrics.update(editor, batch, generators(len(batch)))
    return metrics.compute()


@pytest.mark.parametrize("attention", ["matching", "cross_frame"])
def test_it_is_the_arg_max_of_the_dense_map(attention):
    editor, batch = make_editor(attention), make_batch(2)
    seen = {}
    for name, attn in spatial_attentions(editor.unet).items():
        attn.register_forward_pre_hook(lambda module, args, name=name: seen.update({name: args[0]}))
    rows = measured(editor, batch)
    assert set(rows) == {*spatial_attentions(editor.unet), "all"}
    for name, attn in spatial_attentions(editor.unet).items():
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
    whole = CorrespondenceMetrics(list(spatial_attentions(editor.unet)))
    whole.update(editor, batch, generators())
    halves = CorrespondenceMetrics(list(spatial_attentions(editor.unet)))
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
    metrics = CorrespondenceMetrics(list(spatial_attentions(editor.unet)), keep=1)
    batch = make_batch(2)
    metrics.update(editor, batch, generators())
    assert list(metrics.pictures) == batch.name[:1]
    assert metrics.pictures[batch.name[0]].shape == (3, 64, 64)
    metrics.reset()
    assert metrics.pictures == {}


def test_half_precision_of_the_module_lowers_no_count():
    editor, batch = make_editor(), make_batch(2)
    whole, lowered = (CorrespondenceMetrics(list(spatial_attentions(editor.unet))) for _ in range(2))
    lowered = lowered.to(torch.bfloat16)
    for metrics in (whole, lowered):
        metrics.update(editor, batch, generators())
    assert lowered.compute() == whole.compute()


def test_without_attention_between_frames_there_is_nothing_to_measure():
    assert measured(make_editor("temporal"), make_batch(1)) == {}
    batch = make_batch(1)
    batch.tracks = None
    assert measured(make_editor(), batch) == {}
