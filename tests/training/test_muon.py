"""Muon beside AdamW: its update, its state and what trains by which."""

import copy

import torch
from torch import nn

from fp_lightning.training.muon import Muon, is_matrix


def network() -> nn.Module:
    """Return a first layer, a hidden kernel, a normalisation and a last layer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 40, 3), nn.GroupNorm(4, 40), nn.Conv2d(40, 3, 1))


def train(model: nn.Module, optimizer: Muon, steps: int) -> None:
    for step in range(steps):
        image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(image).square().mean().backward()
        optimizer.step()


def test_hidden_kernels_are_updated_by_orthogonal_matrices_and_the_rest_by_adamw() -> None:
    model, twin = network(), network()
    assert [is_matrix(p) for p in model.parameters()] == [False, False, True, False, False, False, False, False]
    train(model, Muon(model.parameters(), 1e-3, weight_decay=0.0), 1)
    train(twin, torch.optim.AdamW(twin.parameters(), 1e-3, weight_decay=0.0), 1)
    start = dict(network().named_parameters())
    for (name, ours), (_, theirs) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.equal(ours, theirs) is not is_matrix(ours), name
    update = (start["1.weight"] - model[1].weight).detach().flatten(1)
    scale = 1e-3 * 0.2 * 288**0.5  # learning rate · 0.2 · root of the longer side
    sizes = torch.linalg.svdvals(update / scale)  # near 1 after five Newton-Schulz steps, but for the smallest
    assert sizes.max() < 1.3 and sizes.median() > 0.7


def test_a_resumed_run_goes_on_as_an_uninterrupted_one() -> None:
    whole, part = network(), network()
    train(whole, optimizer := Muon(whole.parameters(), 1e-2), 2)
    train(part, Muon(part.parameters(), 1e-2), 2)
    resumed = Muon(part.parameters(), 1e-2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, other in ((whole, optimizer), (part, resumed)):
        train(model, other, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), part.parameters(), strict=True))


def test_the_learning_rate_of_a_schedule_reaches_both_parts() -> None:
    model = network()
    optimizer = Muon(model.parameters(), 1e-2)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), network().parameters(), strict=True))
