"""Bootstrap confidence intervals over images (Efron 1979)."""

from __future__ import annotations

import torch
from torch import Tensor

RESAMPLES, LEVEL = 2000, 0.95


def bootstrap_means(table: Tensor, resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """Resample the column means of a table [n, k] over images drawn with replacement: [resamples, k].

    NaN entries are left out. All columns share the draws, so that differences of columns are paired. The result
    depends only on the table and `seed`.
    """
    n = len(table)
    if n == 0:
        return table.new_full((resamples, table.shape[1]), torch.nan)
    draws = torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(resamples, n, dtype=table.dtype).scatter_add_(
        1, draws, torch.ones_like(draws, dtype=table.dtype)
    )
    weights = weights.to(table.device)
    return (weights @ table.nan_to_num(nan=0.0)) / (weights @ (~table.isnan()).to(table))


def interval(means: Tensor, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval of resampled means [resamples], without NaN; (NaN, NaN) if nothing is left."""
    means = means[~means.isnan()]
    if not len(means):
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = means.quantile(means.new_tensor([tail, 1 - tail])).tolist()
    return low, high
