"""Matching attention and the token correspondence, against dense and analytic definitions."""

import pytest
import torch
from conftest import losses_of, make_batch, make_editor
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from fp_lightning.model.matching import (
    Correspondence,
    CrossFrameAttnProcessor,
    MatchingAttnProcessor,
    install_attention,
    spatial_attentions,
)
from fp_lightning.model.tiny import tiny_unet


def attention_layer() -> Attention:
    torch.manual_seed(0)
    return Attention(query_dim=16, heads=2, dim_head=8)


def test_branch_copies_the_spatial_weights():
    attn = attention_layer()
    branch = MatchingAttnProcessor(attn, "x")
    assert torch.equal(branch.to_q.weight, attn.to_q.weight)
    assert torch.equal(branch.to_k.weight, attn.to_k.weight)
    assert torch.equal(branch.to_v.weight, attn.to_v.weight)


def test_branch_starts_silent():
    attn, x = attention_layer(), torch.randn(4, 9, 16)
    before = AttnProcessor2_0()(attn, x)
    attn.set_processor(MatchingAttnProcessor(attn, "x"))
    assert torch.equal(attn(x), before)


def test_network_starts_as_svd():
    """The output of the U-Net with the branch is bit-identical to SVD's."""
    torch.manual_seed(0)
    plain = tiny_unet().eval()
    args = torch.randn(2, 2, 32, 16, 16), torch.rand(2), torch.randn(2, 1, 32), torch.rand(2, 3)
    with torch.no_grad():
        before = plain(*args, return_dict=False)[0]
        install_attention(plain, "matching")
        assert torch.equal(plain(*args, return_dict=False)[0], before)


def reference_matching(attn, branch, x):
    """Eq. 2 to 4 as written, one head at a time."""
    spatial = AttnProcessor2_0()(attn, x).unflatten(0, (-1, 2))
    source, target = x.unflatten(0, (-1, 2)).unbind(1)
    query, key, value = branch.to_q(target), branch.to_k(source), branch.to_v(source)
    heads = []
    for q, k, v in zip(query.chunk(2, -1), key.chunk(2, -1), value.chunk(2, -1), strict=True):
        heads.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v)
    matched = branch.to_out[0](torch.cat(heads, -1))
    return torch.stack([spatial[:, 0], spatial[:, 1] + matched], 1).flatten(0, 1)


def test_matching_attention_equals_its_equations():
    attn, x = attention_layer(), torch.randn(6, 9, 16)
    branch = MatchingAttnProcessor(attn, "x")
    torch.nn.init.normal_(branch.to_out[0].weight)
    attn.set_processor(branch)
    torch.testing.assert_close(attn(x), reference_matching(attn, branch, x))


def test_queries_of_both_frames_change_the_source_too():
    attn, x = attention_layer(), torch.randn(2, 9, 16)
    plain = AttnProcessor2_0()(attn, x)
    for queries, source_changes in (("target", False), ("both", True)):
        branch = MatchingAttnProcessor(attn, "x", queries)
        torch.nn.init.normal_(branch.to_out[0].weight)
        out = branch(attn, x)
        assert torch.equal(out[0], plain[0]) != source_changes
        assert not torch.equal(out[1], plain[1])


def test_cross_frame_attends_to_both_frames():
    attn, x = attention_layer(), torch.randn(2, 9, 16)
    both = torch.cat([x[0], x[1]])[None]
    expected = attn.to_out[0](
        torch.nn.functional.scaled_dot_product_attention(
            *(f(both).unflatten(-1, (2, 8)).transpose(1, 2) for f in (attn.to_q, attn.to_k, attn.to_v))
        )
        .transpose(1, 2)
        .flatten(2)
    )
    torch.testing.assert_close(CrossFrameAttnProcessor()(attn, x), expected[0].unflatten(0, (2, 9)))


def test_unknown_attention_is_named():
    with pytest.raises(ValueError, match="got 'dense'"):
        install_attention(tiny_unet(), "dense")


def test_every_spatial_attention_is_found_and_no_temporal_one():
    names = spatial_attentions(tiny_unet())
    assert len(names) == 7
    assert not any("temporal" in name for name in names)


def identity_tracks(grid: int, size: int) -> Correspondence:
    centre = (torch.arange(grid) + 0.5) * size / grid
    tracks = torch.stack(torch.meshgrid(centre, centre, indexing="xy"))[None]
    return Correspondence(tracks, torch.ones(1, grid, grid, dtype=torch.bool), (size, size))


@pytest.mark.parametrize("tokens", [4, 16, 64, 256, 1024])
def test_still_image_maps_every_token_to_itself_on_any_grid(tokens):
    assert torch.equal(identity_tracks(16, 64).source_index(tokens)[0], torch.arange(tokens))


def test_shift_maps_tokens_to_their_neighbours_and_out_of_the_image_to_none():
    moved = identity_tracks(8, 64)
    moved.tracks[:, 0] += 8  # every target token shows the source token on its right
    index = moved.source_index(64)[0].view(8, 8)
    assert torch.equal(index[:, :-1], torch.arange(64).view(8, 8)[:, 1:])
    assert (index[:, -1] == -1).all()


def test_hidden_tokens_have_no_match():
    hidden = identity_tracks(8, 64)
    hidden.visible[0, 2, 5] = False
    index = hidden.source_index(64)[0]
    assert index[2 * 8 + 5] == -1 and (index >= 0).sum() == 63


def test_wide_grid_is_found_from_the_number_of_tokens():
    correspondence = Correspondence(torch.zeros(1, 2, 72, 128), torch.ones(1, 72, 128, dtype=torch.bool), (576, 1024))
    for tokens in (72 * 128, 36 * 64, 18 * 32, 9 * 16):
        assert correspondence.source_index(tokens).shape == (1, tokens)


def test_grid_that_does_not_tile_the_image_is_refused():
    with pytest.raises(ValueError, match="60 tokens"):
        identity_tracks(8, 64).source_index(60)


def test_losses_reach_query_and_key_of_every_layer():
    editor = make_editor().train()
    losses_of(editor, make_batch()).matching.backward()
    for name, attn in spatial_attentions(editor.prior.unet).items():
        assert attn.processor.to_q.weight.grad.abs().sum() > 0, name
        assert attn.processor.to_k.weight.grad.abs().sum() > 0, name


def test_gradient_checkpointing_changes_nothing():
    def gradients(checkpointing: bool):
        editor = make_editor().train()
        if checkpointing:
            editor.prior.unet.enable_gradient_checkpointing()
        losses = losses_of(editor, make_batch())
        losses.total.backward()
        return losses.total.detach(), [p.grad for p in editor.prior.unet.parameters()]

    (loss, grads), (loss_c, grads_c) = gradients(False), gradients(True)
    torch.testing.assert_close(loss, loss_c)
    for a, b in zip(grads, grads_c, strict=True):
        torch.testing.assert_close(a, b)
