"""The sampler reaches known goals; guidance and batching do what they say."""

from dataclasses import replace

import pytest
import torch
from conftest import make_batch, make_editor
from diffusers import EulerDiscreteScheduler

from fp_lightning import edm
from fp_lightning.sampler import Sampling, euler, guidance_weight, guided, sample
from fp_lightning.tiny import tiny_scheduler
from fp_lightning.types import EditBatch


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("steps", [1, 2, 25])
def test_euler_reaches_a_known_goal(steps):
    """A denoiser that always answers g ends at g, whatever the number of steps."""
    goal, start = torch.randn(3, 4), torch.randn(3, 4) * 700
    end = euler(lambda x, sigma, step: goal, start, edm.karras_sigmas(steps))
    torch.testing.assert_close(end, goal, rtol=1e-4, atol=1e-4)


def test_euler_converges_to_the_analytic_flow():
    """Data N(0, s²): D(x; σ) = x s²/(s² + σ²), and the flow takes x to x · s/√(s² + σ_max²)."""
    s, x = 0.5, torch.tensor([3.0, -8.0], dtype=torch.float64)
    exact = x * s / (s**2 + 40.0**2) ** 0.5

    def error(steps):
        end = euler(lambda x, sigma, _: x * s**2 / (s**2 + sigma**2), x, edm.karras_sigmas(steps, 0.002, 40.0).double())
        return (end / exact - 1).abs().max().item()

    assert error(400) < 0.01
    assert error(400) < error(50) / 4  # first order


def test_euler_equals_diffusers():
    scheduler: EulerDiscreteScheduler = tiny_scheduler()
    scheduler.set_timesteps(7)
    sigmas = edm.karras_sigmas(7, 0.02, 40.0)
    weight, start = torch.randn(4, 4, dtype=torch.float64) * 0.3, torch.randn(2, 4, dtype=torch.float64) * 40

    def network(x):
        return torch.tanh(x @ weight)

    def denoise(x, sigma, step):
        c_skip, c_out, c_in, _ = edm.scalings(sigma)
        return c_skip * x + c_out * network(c_in * x)

    ours, theirs = euler(denoise, start, sigmas.double()), start
    for t in scheduler.timesteps:
        theirs = scheduler.step(network(scheduler.scale_model_input(theirs, t)), t, theirs).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_progress_is_told_every_step():
    seen = []
    euler(lambda x, sigma, step: x, torch.ones(1), edm.karras_sigmas(4), lambda step, x: seen.append(step))
    assert seen == [0, 1, 2, 3]


def test_guidance_decays_with_the_inverse_square():
    assert [guidance_weight(3.0, i, 4) for i in range(4)] == [3.0, 2.125, 1.5, 1.125]


def condition_of(editor, batch):
    return editor.condition(batch, torch.zeros_like(batch.source), torch.full((len(batch),), 0.02))


def test_guidance_at_scale_one_is_no_guidance():
    editor, batch = make_editor(), make_batch(1)
    condition, x, sigma = condition_of(editor, batch), torch.randn(1, 2, 4, 16, 16), torch.tensor(2.0)
    with torch.no_grad():
        plain = editor.denoise(x, sigma.expand(1), condition)[0]
        assert torch.equal(guided(editor, condition, 1.0, 4)(x, sigma, 0), plain)


@pytest.mark.parametrize(("scale", "points"), [(0.0, None), (0.5, 3), (3.0, 3)])
def test_guidance_mixes_both_halves(scale, points):
    editor, batch = make_editor(), make_batch(2, points=points)
    condition, x, sigma = condition_of(editor, batch), torch.randn(2, 2, 4, 16, 16), torch.tensor(2.0)
    with torch.no_grad():
        given = editor.denoise(x, sigma.expand(2), condition)[0]
        without = editor.denoise(x, sigma.expand(2), condition.unconditional())[0]
        mixed = guided(editor, condition, scale, 4)(x, sigma, 0)
    torch.testing.assert_close(mixed, without + scale * (given - without), rtol=1e-4, atol=1e-4)


def test_unconditional_half_does_not_depend_on_the_control():
    editor, batch = make_editor(), make_batch(2)
    x, sigma = torch.randn(1, 2, 4, 16, 16), torch.ones(1)
    both = [
        EditBatch(source=batch.source[:1], control=control, name=["a"])
        for control in (batch.control[:1], batch.control[1:])
    ]
    with torch.no_grad():
        first, second = (editor.denoise(x, sigma, condition_of(editor, b).unconditional())[0] for b in both)
    assert torch.equal(first, second)


def test_unconditional_half_does_not_depend_on_the_points():
    editor, batch = make_editor(), replace(make_batch(1, size=32, points=3), control=None)
    x, sigma = torch.randn(1, 2, 4, 8, 8), torch.ones(1)
    conditions = [condition_of(editor, b) for b in (batch, replace(batch, points=batch.points.roll(1, -1)))]
    with torch.no_grad():
        first, second, without, given = (
            editor.denoise(x, sigma, condition)[0]
            for condition in (
                *(condition.unconditional() for condition in conditions),
                condition_of(editor, replace(batch, points=None)).unconditional(),
                conditions[0],
            )
        )
    assert torch.equal(first, second) and torch.equal(first, without)
    assert not torch.equal(first, given)


def test_a_mixed_batch_draws_each_sample_as_alone():
    """One sample with points, one with a control image, whose other field is only there to fill the batch."""
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


def test_sampling_repeats_with_its_seed_alone():
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
