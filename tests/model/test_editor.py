"""The editor: sizes, freezing, losses, dropout, batching."""

from dataclasses import fields, replace

import pytest
import torch
from conftest import losses_of, make_batch, make_editor

from fp_lightning.errors import InputError
from fp_lightning.model.condition import Condition
from fp_lightning.model.control import ControlEncoder
from fp_lightning.model.editor import FramePainter
from fp_lightning.model.svd.prior import SVDPrior
from fp_lightning.model.svd.unet import FramePainterUNet
from fp_lightning.model.tiny import tiny_control_encoder
from fp_lightning.types import EditBatch


def count(module, keep=lambda name: True) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if keep(name))


def test_full_size_network_has_svds_parameters_and_the_papers_branch():
    with torch.device("meta"):
        unet = FramePainterUNet()
    branch = [name for name, _ in unet.named_parameters() if ".processor." in name]
    assert count(unet, lambda name: ".processor." not in name) == 1_524_623_082
    assert len(branch) == 80
    assert count(unet, lambda name: ".processor." in name) == 49_574_080


def test_full_size_control_encoder_has_the_released_shape():
    with torch.device("meta"):
        encoder = ControlEncoder()
    assert count(encoder) == 3_526_400
    assert len(encoder.state_dict()) == 52


def test_tiny_build_stays_small():
    assert count(make_editor(tiny=True)) <= 8_000_000


def test_frozen_parts_are_bit_identical_after_steps():
    editor = make_editor().train()
    before = [p.clone() for part in editor.prior.frozen for p in part.parameters()]
    trained = editor.prior.unet.conv_in.weight.clone()
    optimizer = torch.optim.AdamW([p for p in editor.parameters() if p.requires_grad], lr=1e-2)
    for step in range(2):
        optimizer.zero_grad()
        losses_of(editor, make_batch(), step).total.backward()
        optimizer.step()
    after = [p for part in editor.prior.frozen for p in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not torch.equal(trained, editor.prior.unet.conv_in.weight)


def test_frozen_parts_stay_in_evaluation_mode():
    editor = make_editor().train()
    assert editor.prior.unet.training and not editor.prior.vae.training and not editor.prior.image_encoder.training


def test_every_trainable_weight_gets_a_gradient():
    editor = make_editor().train()
    losses_of(editor, make_batch()).total.backward()
    unused = [n for n, p in editor.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


def test_losses_repeat_with_the_generator():
    editor, batch = make_editor(), make_batch()
    first, again, other = (losses_of(editor, batch, s).total for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_without_source_reconstruction_the_source_frame_has_no_loss():
    editor = make_editor(reconstruct_source=False)
    clean = {}
    original = editor.denoise

    def spoilt(x, sigma, condition, correspondence=None):
        out, losses = original(x, sigma, condition, correspondence)
        clean["x"] = out
        return torch.cat([out[:, :1] + 100, out[:, 1:]], 1), losses

    plain = losses_of(editor, make_batch()).diffusion
    editor.denoise = spoilt
    torch.testing.assert_close(losses_of(editor, make_batch()).diffusion, plain)
    editor.reconstruct_source = True
    assert losses_of(editor, make_batch()).diffusion > plain + 100


def test_matching_weight_adds_the_loss():
    batch = make_batch()
    losses = losses_of(make_editor(matching_weight=3.0), batch)
    torch.testing.assert_close(losses.total, losses.diffusion + 3 * losses.matching)
    assert losses.matching > 0


@pytest.mark.parametrize("attention", ["cross_frame", "temporal"])
def test_attention_without_a_branch_has_no_matching_loss(attention):
    losses = losses_of(make_editor(attention), make_batch())
    assert losses.matching.item() == 0 and losses.total == losses.diffusion


def of_sample(condition: Condition, i: int) -> Condition:
    values = {f.name: getattr(condition, f.name) for f in fields(condition)}
    return Condition(**{k: None if v is None else v[i : i + 1] for k, v in values.items()})


@pytest.mark.parametrize("points", [None, 3])
def test_batch_of_two_is_two_batches_of_one(points):
    editor, batch = make_editor(), make_batch(2, points=points)
    x = torch.randn(2, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    sigma, noise = torch.tensor([0.5, 3.0]), torch.zeros_like(batch.source)
    with torch.no_grad():
        whole = editor.condition(batch, noise, torch.full((2,), 0.02))
        together = editor.denoise(x, sigma, whole)[0]
        for i in range(2):
            alone = editor.denoise(x[i : i + 1], sigma[i : i + 1], of_sample(whole, i))[0]
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def denoised(editor, batch: EditBatch, control_scale: float = 1.0) -> torch.Tensor:
    """Call the denoiser once, always with the same noise."""
    count, (height, width) = len(batch), batch.source.shape[-2:]
    x = torch.randn(count, 2, 16, height // 4, width // 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        condition = editor.condition(batch, torch.zeros_like(batch.source), torch.full((count,), 0.02), control_scale)
        return editor.denoise(x, torch.ones(count), condition)[0]


@pytest.mark.parametrize("control_frames", ["target", "both"])
def test_sample_without_control_is_untouched_by_the_control_of_others(control_frames):
    editor, batch = make_editor(control_frames=control_frames), make_batch(2, size=32)
    mixed = denoised(editor, replace(batch, control_valid=torch.tensor([True, False])))
    without, with_control = denoised(editor, replace(batch, control=None)), denoised(editor, batch)
    assert torch.equal(mixed[1], without[1]) and not torch.equal(mixed[1], with_control[1])
    assert torch.equal(mixed[0], with_control[0])


def test_control_encoder_rests_where_no_sample_has_control():
    editor, batch, calls = make_editor(), make_batch(2, size=32), []
    editor.control_encoder.register_forward_hook(lambda *_: calls.append(1))
    denoised(editor, replace(batch, control_valid=torch.zeros(2, dtype=torch.bool)))
    denoised(editor, replace(batch, control=None))
    assert calls == []
    denoised(editor, replace(batch, control_valid=torch.tensor([False, True])))
    assert calls == [1]


WITHOUT_CONTROL = {  # in training
    "none": {"control": None},
    "none valid": {"control_valid": torch.zeros(2, dtype=torch.bool)},
}


@pytest.mark.parametrize("change", WITHOUT_CONTROL.values(), ids=WITHOUT_CONTROL)
def test_training_without_control_leaves_zero_gradients_in_the_encoder(change):
    """Zero, not None, so that every rank has gradients for all weights."""
    editor, batch = make_editor().train(), make_batch(2, size=32, points=3)
    losses_of(editor, replace(batch, **change)).total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in editor.control_encoder.parameters())
    trainable = [p for p in editor.prior.unet.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trainable)


@pytest.mark.parametrize("change", WITHOUT_CONTROL.values(), ids=WITHOUT_CONTROL)
def test_training_mode_draws_no_control_of_its_own(change):
    editor, batch = make_editor(), replace(make_batch(2, size=32), **change)
    assert torch.equal(denoised(editor.train(), batch), denoised(editor.eval(), batch))


def test_points_train_without_control():
    editor, batch = make_editor().train(), replace(make_batch(2, size=32, points=3), control=None)
    optimizer = torch.optim.SGD(editor.prior.unet.parameters(), lr=1e-3)
    totals = []
    for _ in range(2):
        losses = losses_of(editor, batch)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        totals.append(losses.total.item())
    assert totals[1] < totals[0]


def test_points_and_control_both_matter():
    editor, batch = make_editor(), make_batch(1, size=32, points=3)
    both, only_points, only_control, neither = (
        denoised(editor, replace(batch, **change))[:, 1]
        for change in ({}, {"control": None}, {"points": None}, {"control": None, "points": None})
    )
    differing = (both, only_points, only_control, neither)
    assert not any(torch.allclose(a, b) for i, a in enumerate(differing) for b in differing[:i])


def test_control_scale_zero_drops_points_too():
    editor, batch = make_editor(), make_batch(2, size=32, points=3)
    assert torch.equal(denoised(editor, batch, 0.0), denoised(editor, replace(batch, points=None, control=None)))


def test_control_factor_is_not_for_points():
    batch = replace(make_batch(1, size=32, points=3), control=None)
    assert torch.equal(
        denoised(make_editor(control_factor=0.2), batch), denoised(make_editor(control_factor=5.0), batch)
    )


def test_points_without_validity_are_valid():
    editor, batch = make_editor(), make_batch(1, size=32, points=3)
    assert torch.equal(denoised(editor, batch), denoised(editor, replace(batch, points_valid=None)))


def test_dropped_control_drops_points():
    editor, batch = make_editor(), make_batch(2, size=32, points=3)
    none, first = torch.zeros(2, dtype=torch.bool), torch.tensor([True, False])
    x, sigma = torch.randn(2, 2, 16, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(2)
    with torch.no_grad():
        with_control, bare = (
            editor.condition(b, torch.zeros_like(batch.source), torch.full((2,), 0.02))
            for b in (batch, replace(batch, points=None, control=None))
        )
        out, without, whole = (
            editor.denoise(x, sigma, c)[0] for c in (with_control.dropped(none, none, first), bare, with_control)
        )
    assert torch.equal(out[0], without[0]) and torch.equal(out[1], whole[1])


def test_conditions_that_differ_in_kind_do_not_join():
    editor, batch = make_editor(), make_batch(1, size=32, points=3)
    with_control, bare = (
        editor.condition(b, torch.zeros_like(b.source), torch.full((1,), 0.02))
        for b in (batch, replace(batch, points=None, points_valid=None))
    )
    with pytest.raises(ValueError, match="points is present in one of two"):
        Condition.cat(with_control, bare)


def test_source_is_resized_in_full_precision_under_autocast():
    editor, batch, seen = make_editor(), make_batch(1, size=32), []
    editor.prior.image_encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    editor.prior.embed(batch.source)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        editor.prior.embed(batch.source)
    assert torch.equal(*seen)


def test_dropout_frequencies():
    """r < 2p: embedding; p ≤ r < 3p: image; both: control too (p = 0.1)."""
    editor, seen = make_editor(dropout=0.1), []
    batch = make_batch(1)
    batch = type(batch).cat([batch] * 50)
    editor.prior.embed = lambda source: torch.ones(len(source), 1, 32)
    editor.encode = lambda image: torch.ones(len(image), 16, 16, 16)

    def record(x, sigma, condition, correspondence=None):
        seen.append(
            torch.stack(
                [
                    condition.embedding.flatten(1)[:, 0],
                    condition.image_latents.flatten(1)[:, 0],
                    condition.control_scale,
                ],
                1,
            )
        )
        return x, {}

    editor.denoise = record
    generators = [torch.Generator().manual_seed(0)] * len(batch)
    for _ in range(100):
        editor.losses(batch, generators)
    kept = torch.cat(seen)
    share = {
        tuple(row): (kept == torch.tensor(row)).all(1).float().mean().item()
        for row in ((1.0, 1.0, 1.0), (0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (0.0, 0.0, 0.0))
    }
    assert sum(share.values()) == pytest.approx(1)
    for row, expected in zip(share, (0.7, 0.1, 0.1, 0.1), strict=True):
        assert share[row] == pytest.approx(expected, abs=0.02), row


def test_decoding_inverts_the_scaling_of_encoding():
    editor, batch = make_editor(), make_batch(2)
    latents = editor.encode(torch.stack([batch.source, batch.target], 1).flatten(0, 1)).unflatten(0, (2, 2))
    with torch.no_grad():
        expected = editor.prior.vae.decode(latents.flatten(0, 1), num_frames=2).sample.clamp(-1, 1)
    decoded = editor.decode(latents * editor.prior.vae.config.scaling_factor)
    torch.testing.assert_close(decoded.flatten(0, 1), expected, rtol=1e-4, atol=1e-5)


def test_half_precision_vae_is_raised_where_it_asks_for_it():
    editor = make_editor()
    editor.prior.vae.half()
    assert editor.encode(make_batch(1).source).dtype == torch.float32
    assert editor.prior.vae.dtype == torch.float32


def test_sizes_that_do_not_fit_are_named_with_the_nearest():
    editor = make_editor()
    with pytest.raises(InputError, match="height must be a multiple of 8, got 60; try 56 or 64"):
        editor.check_size((60, 64))
    with pytest.raises(InputError, match=r"height .* got 1;.*width .* got 7;"):
        editor.check_size((1, 7))


def test_full_size_wants_multiples_of_64():
    with torch.device("meta"):
        unet = FramePainterUNet()
    prior = make_editor().prior
    prior.vae.config.block_out_channels = (1, 1, 1, 1)
    editor = FramePainter(SVDPrior(unet, prior.vae, prior.image_encoder, prior.scheduler), tiny_control_encoder())
    editor.check_size((576, 1024))
    with pytest.raises(InputError, match="width must be a multiple of 64, got 1000; try 960 or 1024"):
        editor.check_size((576, 1000))
