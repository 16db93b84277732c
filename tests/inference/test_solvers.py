"""Solvers reach known goals with the order they claim."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from fp_lightning.inference.solvers import SOLVERS, euler
from fp_lightning.model import edm
from fp_lightning.model.tiny import tiny_scheduler


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 25])
def test_a_known_goal_is_reached(steps, solver):
    """With a denoiser that always returns g, sampling ends at g for any number of steps."""
    goal, start = torch.randn(3, 4), torch.randn(3, 4) * 700
    end = solver(lambda x, sigma, step: goal, start, edm.karras_sigmas(steps))
    torch.testing.assert_close(end, goal, rtol=1e-4, atol=1e-4)


def gaussian_error(solver, steps, s=0.5):
    """Data N(0, s²): D(x; σ) = x s²/(s² + σ²), and the flow takes x to x · s/√(s² + σ_max²)."""
    x = torch.tensor([3.0, -8.0], dtype=torch.float64)
    exact = x * s / (s**2 + 40.0**2) ** 0.5
    sigmas = edm.karras_sigmas(steps, 0.002, 40.0).double()
    end = solver(lambda x, sigma, _: x * s**2 / (s**2 + sigma**2), x, sigmas)
    return (end / exact - 1).abs().max().item()


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_solvers_converge_to_the_analytic_flow_with_their_order(name, order):
    """Twice the steps divide the error by 2 to the power of the order."""
    coarse, fine = (gaussian_error(SOLVERS[name], steps) for steps in (50, 100))
    assert fine < 0.05
    assert 0.75 * 2**order < coarse / fine < 1.5 * 2**order


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m"])
def test_second_order_is_better_at_equal_work(name):
    steps = 25 if name == "heun" else 50
    assert gaussian_error(SOLVERS[name], steps) < 0.5 * gaussian_error(euler, 50)


def test_heun_evaluates_twice_a_step_but_the_last():
    seen = []
    SOLVERS["heun"](lambda x, sigma, step: seen.append(step) or x, torch.ones(1), edm.karras_sigmas(4))
    assert seen == [0, 1, 1, 2, 2, 3, 3]


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

    ours, reference = euler(denoise, start, sigmas.double()), start
    for t in scheduler.timesteps:
        reference = scheduler.step(network(scheduler.scale_model_input(reference, t)), t, reference).prev_sample
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_progress_reports_every_step(solver):
    goal, seen = torch.full((1,), 0.25), []
    solver(lambda *_: goal, torch.ones(1), edm.karras_sigmas(4), lambda *reported: seen.append(reported))
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    assert all(torch.equal(clean, goal) for _, _, clean in seen) and not torch.equal(seen[0][1], goal)
