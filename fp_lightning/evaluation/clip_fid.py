"""CLIP-FID of features, and its uncertainty over images."""

from __future__ import annotations

import torch
from torch import Tensor

from fp_lightning.evaluation.scores import frechet_distance, frechet_of_features

FID_RESAMPLES = 100


def clip_fid(features: Tensor, which: int = 0) -> float:
    """CLIP-FID of features [n, 3, 512] against the targets: of the edited images (`which` 0) or the sources (1)."""
    moments = [(x.mean(0), x.T.cov()) for x in (features[:, which], features[:, 2])]
    return frechet_distance(*moments[0], *moments[1])


def clip_fid_spread(features: Tensor, which: int = 0, resamples: int = FID_RESAMPLES, seed: int = 0) -> float:
    """Standard deviation of CLIP-FID over bootstrap samples of images, each edited image drawn with its target."""
    generator, n = torch.Generator().manual_seed(seed), len(features)
    draws = [features[torch.randint(n, (n,), generator=generator)] for _ in range(resamples)]
    return torch.tensor([frechet_of_features(x[:, which], x[:, 2]) for x in draws]).std().item()
