"""Networks whose weights are a formula, so that the published code can be given the same ones."""

import torch
from torch import Tensor, nn


def pseudo_random(shape: tuple[int, ...], number: int) -> Tensor:
    """Return a float64 tensor in (-1, 1) that depends on no generator."""
    angles = torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 12.9898 + number * 78.233
    return (43758.5453 * angles.sin()).frac().view(shape)


def formula(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return weights by name: matrices by the formula, biases 0, norms 1."""
    weights = {}
    for number, name in enumerate(sorted(shapes)):
        shape = torch.Size(shapes[name])
        if len(shape) > 1:
            weights[name] = pseudo_random(shape, number) * (3 / shape[1:].numel()) ** 0.5
        else:
            weights[name] = torch.full(shape, float(name.endswith("weight")), dtype=torch.float64)
    return weights


def fill(network: nn.Module) -> nn.Module:
    """Set the weights of a network, see `formula`. It becomes float64, without gradients."""
    parameters = dict(network.double().named_parameters())
    for name, weight in formula({name: each.shape for name, each in parameters.items()}).items():
        parameters[name].data = weight
    return network.eval().requires_grad_(False)
