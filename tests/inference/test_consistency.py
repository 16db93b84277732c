"""Sampling of distilled editors: the consistency sampler, its noise levels, and settings that suit the editor."""

import numpy as np
import pytest
import torch
from conftest import make_batch, make_editor
from PIL import Image

from fp_lightning.errors import InputError
from fp_lightning.inference.pipeline import FramePainterPipeline
from fp_lightning.inference.sampler import Sampling, default_sampling, noise_levels, sample_latents
from fp_lightning.inference.solvers import consistency
from fp_lightning.model import edm

FOUR = Sampling(4, 1.0, solver="consistency")


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_an_exact_consistency_function_samples_the_data(steps):
    """Data N(0, s²): the flow takes x at σ to x · s/√(s² + σ²), whatever the number of steps."""
    s, g = 0.5, torch.Generator().manual_seed(0)

    def noise() -> torch.Tensor:
        return torch.randn(20000, generator=g)

    start, sigmas = noise() * (s**2 + 40.0**2) ** 0.5, edm.consistency_sigmas(steps, 0.02, 40.0)
    end = consistency(lambda x, sigma, _: x * s / (s**2 + sigma**2).sqrt(), start, sigmas, noise)
    assert end.mean().abs() < 0.02 and end.std() == pytest.approx(s, rel=0.02)


def test_one_step_is_one_call_and_further_ones_see_new_noise_at_their_level():
    goal, seen = torch.full((10000,), 3.0), []
    g, sigmas = torch.Generator().manual_seed(0), edm.consistency_sigmas(3, 0.02, 40.0)

    def denoise(x, sigma, step):
        seen.append((x, sigma, step))
        return goal

    def noise() -> torch.Tensor:
        return torch.randn(10000, generator=g)

    assert torch.equal(consistency(denoise, noise() * 40, sigmas, noise), goal)
    assert [step for _, _, step in seen] == [0, 1, 2]
    for x, sigma, _ in seen[1:]:
        assert (x - goal).std() == pytest.approx(sigma.item(), rel=0.03)
    first, second = ((x - goal) / sigma for x, sigma, _ in seen[1:])
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.05


def test_progress_sees_each_step_and_may_replace_the_state():
    goal, seen = torch.zeros(2), []

    def progress(step, x, clean):
        seen.append((step, clean))
        return x + 1

    end = consistency(lambda *_: goal, goal, edm.consistency_sigmas(2), lambda: goal, progress)
    assert [step for step, _ in seen] == [0, 1] and all(torch.equal(clean, goal) for _, clean in seen)
    assert torch.equal(end, goal + 1)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_levels_start_at_the_highest_and_leave_out_the_lowest(steps):
    levels = edm.consistency_sigmas(steps, 0.02, 40.0)
    assert len(levels) == steps + 1 and levels[0] == 40 and levels[-1] == 0
    assert (levels.diff() < 0).all() and (levels[:-1] > 0.1).all()
    assert torch.equal(levels, noise_levels(Sampling(steps, 1.0, solver="consistency"), make_editor()))


def test_a_sample_is_the_same_in_any_batch():
    editor, batch = make_editor(distilled_steps=4), make_batch(2)
    together = sample_latents(editor, batch, FOUR, generators(1, 2))
    alone = sample_latents(editor, batch.one(1), FOUR, generators(2))
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)


def test_four_steps_are_four_calls_without_guidance():
    editor, batch, seen = make_editor(distilled_steps=4), make_batch(1), []
    denoise = editor.denoise
    editor.denoise = lambda x, *inputs, **options: seen.append(len(x)) or denoise(x, *inputs, **options)
    sample_latents(editor, batch, FOUR, generators(1))
    assert seen == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("settings", "distilled", "message"),
    [
        (Sampling(5, 1.0, solver="consistency"), 4, "num_inference_steps must be at most 4, got 5$"),
        (Sampling(4, 3.0, solver="consistency"), 4, "guidance_scale must be 1, got 3$"),
        (Sampling(4, 1.0), 4, "solver must be consistency, got euler$"),
        (FOUR, None, "solver consistency needs a distilled editor"),
    ],
)
def test_settings_that_do_not_suit_the_editor_are_refused(settings, distilled, message):
    with pytest.raises(InputError, match=message) as error:
        sample_latents(make_editor(distilled_steps=distilled), make_batch(1), settings, generators(1))
    assert "\n" not in str(error.value)


def test_defaults_follow_the_editor():
    assert default_sampling(None) == Sampling()
    assert default_sampling(2) == Sampling(2, 1.0, solver="consistency")


def test_a_saved_pipeline_remembers_its_steps(tmp_path):
    pipe = FramePainterPipeline.from_editor(make_editor(distilled_steps=2), (64, 64))
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = FramePainterPipeline.from_pretrained(tmp_path / "pipe")
    assert "| distilled_steps | 2 |" in (tmp_path / "pipe" / "README.md").read_text()
    photo, seen = Image.new("RGB", (64, 64), "grey"), []

    def edit(**options) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        loaded.set_progress_bar_config(disable=True)
        return np.array(loaded(photo, points=[[8, 8, 30, 30]], generator=generator, **options).images[0])

    default = edit(callback_on_step_end=lambda pipe, step, level, tensors: seen.append(level.item()))
    assert np.array_equal(default, edit(num_inference_steps=2, guidance_scale=1.0, solver="consistency"))
    levels = edm.scalings(edm.consistency_sigmas(2, *loaded.editor.prior.sigma_range)[:-1]).c_noise
    assert seen == pytest.approx(levels.tolist())
    assert not np.array_equal(default, edit(num_inference_steps=1))
    with pytest.raises(InputError, match=r"distilled for 1 to 2 steps: num_inference_steps must be at most 2, got 25"):
        edit(num_inference_steps=25)
