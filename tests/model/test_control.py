"""The control encoder's shape and the injection's arithmetic."""

import torch
from conftest import make_batch, make_editor

from fp_lightning.model.control import ControlEncoder, inject


def test_response_is_an_eighth_of_the_image():
    encoder = ControlEncoder(widths=(32, 64, 96), out_channels=64)
    assert encoder(torch.rand(2, 3, 64, 96), torch.rand(2)).shape == (2, 64, 8, 12)


def test_injected_response_has_the_features_statistics():
    features = torch.randn(3, 5, 4, 4) * 3 + 2
    added = inject(features, torch.randn(3, 5, 4, 4) * 0.1 - 7, torch.ones(3)) - features
    torch.testing.assert_close(added.mean((1, 2, 3)), features.mean((1, 2, 3)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(added.std((1, 2, 3)), features.std((1, 2, 3)), rtol=1e-3, atol=1e-3)


def test_response_is_normalised_before_it_is_pooled():
    features, response = torch.randn(1, 2, 2, 2), torch.randn(1, 2, 4, 4)
    mean, std = features.mean(), features.std()
    normal = (response - response.mean()) / (response.std() + 1e-5) * std + mean
    pooled = normal.unflatten(-1, (2, 2)).unflatten(-3, (2, 2)).mean((-1, -3))
    torch.testing.assert_close(inject(features, response, torch.tensor([0.5])), features + 0.5 * pooled)


def test_scale_is_per_image():
    features, response = torch.randn(2, 2, 2, 2), torch.randn(2, 2, 2, 2)
    out = inject(features, response, torch.tensor([0.0, 1.0]))
    assert torch.equal(out[0], features[0]) and not torch.equal(out[1], features[1])


def after_first_block(editor, control_scale: float):
    """Return the input [2, c, h, w] of the second block: source frame, target frame."""
    seen = {}
    block = editor.prior.unet.down_blocks[1]
    hook = block.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(x=kwargs.get("hidden_states", args[0] if args else None)), with_kwargs=True
    )
    batch = make_batch(1)
    with torch.no_grad():
        condition = editor.condition(batch, torch.zeros_like(batch.source), torch.full((1,), 0.02), control_scale)
        x = torch.randn(1, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
        editor.denoise(x, torch.ones(1), condition)
    hook.remove()
    return seen["x"]


def test_injection_leaves_the_source_frame_untouched():
    editor = make_editor()
    without, with_control = after_first_block(editor, 0.0), after_first_block(editor, 1.0)
    assert torch.equal(without[0], with_control[0])
    assert not torch.allclose(without[1], with_control[1])


def test_released_injection_reaches_both_frames():
    editor = make_editor(control_frames="both")
    without, with_control = after_first_block(editor, 0.0), after_first_block(editor, 1.0)
    assert not torch.allclose(without[0], with_control[0])
    assert not torch.allclose(without[1], with_control[1])


def test_skip_features_never_see_control():
    editor, skips = make_editor(), []
    block = editor.prior.unet.up_blocks[1]
    hook = block.register_forward_pre_hook(
        lambda _, args, kwargs: skips.append(kwargs["res_hidden_states_tuple"]), with_kwargs=True
    )
    after_first_block(editor, 0.0), after_first_block(editor, 1.0)
    hook.remove()
    assert all(torch.equal(a, b) for a, b in zip(*skips, strict=True))
