"""Scalings, weights and schedules against their closed forms."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from fp_lightning.model import edm
from fp_lightning.model.tiny import tiny_scheduler

SIGMA = torch.tensor([0.002, 0.5, 1.0, 7.0, 700.0], dtype=torch.float64)


def test_scalings_are_the_closed_form():
    c_skip, c_out, c_in, c_noise = edm.scalings(SIGMA)
    torch.testing.assert_close(c_skip, 1 / (SIGMA**2 + 1))
    torch.testing.assert_close(c_out, -SIGMA / (SIGMA**2 + 1) ** 0.5)
    torch.testing.assert_close(c_in, 1 / (SIGMA**2 + 1) ** 0.5)
    torch.testing.assert_close(c_noise, 0.25 * torch.log(SIGMA))


def test_input_scaling_gives_unit_variance():
    assert torch.allclose(edm.scalings(SIGMA).c_in ** 2 * (1 + SIGMA**2), torch.ones_like(SIGMA))


def test_loss_weight_makes_the_network_loss_unweighted():
    torch.testing.assert_close(edm.loss_weight(SIGMA) * edm.scalings(SIGMA).c_out ** 2, torch.ones_like(SIGMA))


def test_network_target_is_v():
    """The F that makes D exact is v = α ε − σ_vp z0 in variance-preserving terms, α = 1/√(σ²+1)."""
    clean, noise = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    c_skip, c_out, _, _ = edm.scalings(SIGMA)
    target = (clean - c_skip * (clean + SIGMA * noise)) / c_out
    alpha, sigma_vp = 1 / (SIGMA**2 + 1).sqrt(), SIGMA / (SIGMA**2 + 1).sqrt()
    torch.testing.assert_close(target, alpha * noise - sigma_vp * clean)


def test_schedule_equals_diffusers():
    scheduler: EulerDiscreteScheduler = tiny_scheduler()
    scheduler.set_timesteps(25)
    torch.testing.assert_close(edm.karras_sigmas(25, 0.02, 40.0), scheduler.sigmas, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 25])
def test_schedule_falls_to_zero(steps):
    sigmas = edm.karras_sigmas(steps)
    assert len(sigmas) == steps + 1 and sigmas[0] == 700 and sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_schedule_refuses_no_steps():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        edm.karras_sigmas(0)


def test_log_normal_moments():
    values = edm.log_normal((200_000,), 0.7, 1.6, torch.Generator().manual_seed(0)).log()
    assert values.mean().item() == pytest.approx(0.7, abs=0.02)
    assert values.std().item() == pytest.approx(1.6, abs=0.02)
