"""RAFT (Teed & Deng 2020), the large model of torchvision (BSD-3)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fp_lightning.pairs.flow.learned import NetworkFlow, choose_device, fill, find_weights

if TYPE_CHECKING:
    from fp_lightning.pairs.flow.estimator import FlowEstimator

UPDATES = 32  # iterations; torchvision reports its Sintel results with as many


@lru_cache(maxsize=1)
def load_raft(weights: str | None = None, device: str = "auto") -> FlowEstimator:
    """Load RAFT-large. The default weights are trained on FlyingChairs, FlyingThings3D, Sintel, KITTI and HD1K.

    Args:
        weights: file of torchvision's `raft_large` weights; None uses torch hub's cache or downloads them.
        device: "auto", or a torch device.

    Raises:
        InputError: the weights are missing and cannot be downloaded, or do not match.
    """
    from torchvision.models.optical_flow import Raft_Large_Weights, raft_large

    path = find_weights(weights, Raft_Large_Weights.C_T_SKHT_V2.url)
    with torch.random.fork_rng(devices=[]):  # random initialisation must not change the global generator
        network = fill(raft_large(), path)
    network.to(target := choose_device(device))

    def predict(first: Tensor, second: Tensor) -> Tensor:
        return network(2 * first - 1, 2 * second - 1, num_flow_updates=UPDATES)[-1]

    return NetworkFlow(predict, target)
