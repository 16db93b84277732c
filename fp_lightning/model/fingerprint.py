"""A hash that identifies a set of weights."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def fingerprint(*networks: nn.Module) -> str:
    """Return the SHA-256 hash of the networks' weights: names, shapes, types and values."""
    digest = hashlib.sha256()
    for network in networks:
        for name, value in network.state_dict().items():
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
