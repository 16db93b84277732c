"""Sampling: guidance, batching, settings, and no unused computation."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_batch, make_editor
from omegaconf import OmegaConf

from fp_lightning.errors import InputError
from fp_lightning.inference.sampler import PRESETS, Sampling, default_sampling, guidance_weights, guided, sample
from fp_lightning.inference.solvers import SOLVERS
from fp_lightning.model import edm
from fp_lightning.model.svd.unet import DeepFeatures
from fp_lightning.types import EditBatch


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_guidance_decays_with_the_inverse_square():
    assert guidance_weights(3.0, [9, 5, 2, 1]) == [3.0, 2.125, 1.5, 1.125]
    assert guidance_weights(3.0, [9, 5, 2, 1], (2, 5)) == [1.0, 2.125, 1.5, 1.0]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_recipe_has_the_settings_of_its_preset(preset):
    recipe = OmegaConf.load(Path(__file__).parents[2] / "recipes" / f"{preset}.yaml")
    assert Sampling(**recipe.model.init_args.sampling) == PRESETS[preset] == default_sampling(None, preset)


def test_an_unknown_preset_is_an_input_error():
    with pytest.raises(InputError, match="preset must be one of paper, fast, got 'best'"):
        default_sampling(None, "best")


def condition_of(editor, batch):
    return editor.condition(batch, torch.zeros_like(batch.source), torch.full((len(batch),), 0.02))


def test_guidance_at_scale_one_is_no_guidance():
    editor, batch = make_editor(), make_batch(1)
    condition, x, sigma = condition_of(editor, batch), torch.randn(1, 2, 16, 16, 16), torch.tensor(2.0)
    with torch.no_grad():
        plain = editor.denoise(x, sigma.expand(1), condition)[0]
        assert torch.equal(guided(editor, condition, [1.0])(x, sigma, 0), plain)


@pytest.mark.parametrize(("scale", "points"), [(0.0, None), (0.5, 3), (3.0, 3)])
def test_guidance_mixes_both_halves(scale, points):
    editor, batch = make_editor(), make_batch(2, points=points)
    condition, x, sigma = condition_of(editor, batch), torch.randn(2, 2, 16, 16, 16), torch.tensor(2.0)
    with torch.no_grad():
        conditional = editor.denoise(x, sigma.expand(2), condition)[0]
        unconditional = editor.denoise(x, sigma.expand(2), condition.unconditional())[0]
        mixed = guided(editor, condition, [scale])(x, sigma, 0)
    torch.testing.assert_close(mixed, unconditional + scale * (conditional - unconditional), rtol=1e-4, atol=1e-4)


def test_unconditional_half_does_not_depend_on_the_control():
    editor, batch = make_editor(), make_batch(2)
    x, sigma = torch.randn(1, 2, 16, 16, 16), torch.ones(1)
    both = [
        EditBatch(source=batch.source[:1], control=control, name=["a"])
        for control in (batch.control[:1], batch.control[1:])
    ]
    with torch.no_grad():
        first, second = (editor.denoise(x, sigma, condition_of(editor, b).unconditional())[0] for b in both)
    assert torch.equal(first, second)


def test_unconditional_half_does_not_depend_on_the_points():
    editor, batch = make_editor(), replace(make_batch(1, size=32, points=3), control=None)
    x, sigma = torch.randn(1, 2, 16, 8, 8), torch.ones(1)
    conditions = [condition_of(editor, b) for b in (batch, replace(batch, points=batch.points.roll(1, -1)))]
    with torch.no_grad():
        first, second, unconditional, conditional = (
            editor.denoise(x, sigma, condition)[0]
            for condition in (
                *(condition.unconditional() for condition in conditions),
                condition_of(editor, replace(batch, points=None)).unconditional(),
                conditions[0],
            )
        )
    assert torch.equal(first, second) and torch.equal(first, unconditional)
    assert not torch.equal(first, conditional)


def test_a_mixed_batch_draws_each_sample_as_alone():
    """One sample has points, the other a control image; the other field of each is padding."""
    editor, batch, settings = make_editor(), make_batch(2, size=32, points=3), Sampling(2, guidance_scale=2.0)
    valid = torch.tensor([[True] * 3, [False] * 3])
    mixed = replace(batch, control_valid=torch.tensor([False, True]), points_valid=valid)
    together = sample(editor, mixed, settings, generators(5, 6))
    dragged = EditBatch(source=batch.source[:1], points=batch.points[:1], points_valid=valid[:1], name=["a"])
    drawn = EditBatch(source=batch.source[1:], control=batch.control[1:], name=["b"])
    for i, one in enumerate((dragged, drawn)):
        alone = sample(editor, one, settings, generators(5 + i))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-3, atol=1e-3)


def test_a_sample_is_the_same_in_any_batch():
    editor, batch = make_editor(), make_batch(2)
    settings = Sampling(num_inference_steps=3, guidance_scale=2.0)
    together = sample(editor, batch, settings, generators(5, 6))
    one = EditBatch(source=batch.source[1:], control=batch.control[1:], name=["b"])
    torch.testing.assert_close(sample(editor, one, settings, generators(6)), together[1:], rtol=1e-3, atol=1e-3)


def test_sampling_depends_on_the_seed_alone():
    editor, batch = make_editor(), make_batch(1)
    settings = Sampling(num_inference_steps=2)
    first, again, other = (sample(editor, batch, settings, generators(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_control_scale_matters_without_guidance():
    editor, batch = make_editor(), make_batch(1)
    weak, strong = (
        sample(editor, batch, Sampling(2, guidance_scale=1.0, control_scale=scale), generators(1))
        for scale in (0.0, 5.0)
    )
    assert not torch.allclose(weak, strong)


def calls(monkeypatch, network) -> list[int]:
    """Record the batch size of every further call of a network."""
    seen, forward = [], network.forward
    monkeypatch.setattr(network, "forward", lambda x, *args: seen.append(len(x)) or forward(x, *args))
    return seen


def test_outside_of_the_interval_one_half_is_computed(monkeypatch):
    editor, batch = make_editor(), make_batch(1, size=32)
    sigmas = edm.karras_sigmas(5, *editor.prior.sigma_range).tolist()
    seen = calls(monkeypatch, editor.prior.unet)
    sample(editor, batch, Sampling(5, guidance_interval=(sigmas[3], sigmas[1])), generators(0))
    assert seen == [1, 2, 2, 2, 1]


def test_the_control_encoder_runs_for_the_conditional_half_alone(monkeypatch):
    editor, batch = make_editor(), make_batch(2, size=32)
    seen = calls(monkeypatch, editor.control_encoder)
    sample(editor, batch, Sampling(3), generators(0, 1))
    assert seen == [2, 2, 2]


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_draws_an_edit(solver):
    editor, batch = make_editor(), make_batch(1, size=32)
    edited = sample(editor, batch, Sampling(3, solver=solver), generators(0))
    assert edited.shape == batch.source.shape and edited.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "rk4"}, "solver must be one of euler, heun, dpmpp_2m, consistency, got 'rk4'"),
        ({"reuse": 0}, "reuse must be at least 1, got 0"),
        ({"guidance_interval": (5.0, 1.0)}, "guidance_interval must be two noise levels"),
    ],
)
def test_invalid_settings_are_named(options, message):
    with pytest.raises(InputError, match=message):
        Sampling(**options)


def test_the_finest_blocks_over_fresh_deep_features_are_the_whole_network():
    editor, batch = make_editor(), make_batch(1, points=2)
    condition, x, sigma = condition_of(editor, batch), torch.randn(1, 2, 16, 16, 16), torch.ones(1)
    deep = DeepFeatures()
    with torch.no_grad():
        whole = editor.denoise(x, sigma, condition, deep=deep)[0]
        deep.reuse = True
        again = editor.denoise(x, sigma, condition, deep=deep)[0]
        other = editor.denoise(x, sigma * 2, condition, deep=deep)[0]
    torch.testing.assert_close(again, whole, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(other, editor.denoise(x, sigma * 2, condition)[0], rtol=1e-3)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_reuse_computes_deep_features_at_every_nth_step(monkeypatch, guidance):
    editor, batch = make_editor(), make_batch(1, size=32)
    seen = []
    editor.prior.unet.mid_block.register_forward_pre_hook(lambda *_: seen.append(1))
    sample(editor, batch, Sampling(7, guidance_scale=guidance, reuse=3), generators(0))
    assert len(seen) == 3
    sample(editor, batch, Sampling(7, guidance_scale=guidance), generators(0))
    assert len(seen) == 3 + 7


def test_reused_features_fit_when_guidance_begins_and_ends():
    """Guidance begins with features of one half, which are too few, and ends with two halves, of which one is used."""
    editor, batch = make_editor(), make_batch(2, size=32)
    sigmas = edm.karras_sigmas(6, *editor.prior.sigma_range).tolist()
    seen = []
    editor.prior.unet.mid_block.register_forward_pre_hook(lambda *_: seen.append(1))
    settings = Sampling(6, guidance_interval=(sigmas[2], sigmas[1]), reuse=10)
    assert sample(editor, batch, settings, generators(0, 1)).isfinite().all()
    assert len(seen) == 2
