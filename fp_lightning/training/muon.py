"""Muon for the matrices of a network beside AdamW for its other weights, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

SMALLEST = 32  # rows and columns of a matrix that Muon updates: the first and last layers of a network have fewer


def is_matrix(weight: Tensor) -> bool:
    """Whether Muon updates a weight: a matrix, or a convolution kernel seen as a matrix [out, in · kernel]."""
    return weight.ndim > 1 and min(len(weight), weight[0].numel()) >= SMALLEST


class Muon(Optimizer):
    """Updates matrices by Muon (Jordan et al. 2024) and all other weights by AdamW.

    Muon replaces the momentum of a matrix by the nearest semi-orthogonal matrix. Its updates are scaled to the usual
    size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so one learning rate and one weight decay serve both.

    Args:
        params: weights to train.
        lr: learning rate.
        betas: of AdamW.
        weight_decay: decoupled weight decay.
        momentum: of Muon.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-2,
        momentum: float = 0.95,
    ) -> None:
        params = list(params)
        others = [p for p in params if not is_matrix(p)]
        self._kernels = [p for p in params if is_matrix(p)]
        self._matrices = [nn.Parameter(p.detach().flatten(1)) for p in self._kernels]  # they share the memory
        self._parts: dict[str, Optimizer] = {}
        if others:
            self._parts["adamw"] = torch.optim.AdamW(others, lr=lr, betas=betas, weight_decay=weight_decay)
        if self._kernels:
            self._parts["muon"] = torch.optim.Muon(
                self._matrices, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
            )
        members = {"adamw": others, "muon": self._kernels}
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__([{"params": members[name]} for name in self._parts], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all weights that have a gradient; return what `closure` returns."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        for group, part in zip(self.param_groups, self._parts.values(), strict=True):
            inner = part.param_groups[0]
            inner.update({name: group[name] for name in ("lr", "betas", "weight_decay") if name in inner})
            part.step()
        for matrix in self._matrices:
            matrix.grad = None
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both parts and the learning rates."""
        return {**super().state_dict(), "parts": {name: part.state_dict() for name, part in self._parts.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "parts"})
        for name, part in self._parts.items():
            part.load_state_dict(state_dict["parts"][name])
