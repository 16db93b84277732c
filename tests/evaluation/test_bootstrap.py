"""Intervals that hold what they should as often as they say."""

import math

import pytest
import torch

from fp_lightning.evaluation.bootstrap import bootstrap_means, interval


def test_means_of_a_constant_do_not_vary():
    low, high = interval(bootstrap_means(torch.full((7, 1), 2.5, dtype=torch.float64))[:, 0])
    assert low == high == pytest.approx(2.5)


def test_intervals_hold_the_true_mean_19_times_in_20():
    draw = torch.Generator().manual_seed(0)
    tables = torch.randn(60, 200, generator=draw, dtype=torch.float64)  # 200 studies of 60 images
    means = bootstrap_means(tables)
    held = sum(low <= 0 <= high for low, high in (interval(means[:, i]) for i in range(200)))
    assert 180 <= held <= 197


def test_their_width_is_that_of_the_normal_interval():
    table = torch.randn(400, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    low, high = interval(bootstrap_means(table)[:, 0])
    assert high - low == pytest.approx(2 * 1.96 * table.std().item() / math.sqrt(400), rel=0.06)


def test_missing_scores_are_left_out():
    table = torch.tensor([[1.0, 5.0], [1.0, math.nan], [1.0, 5.0]], dtype=torch.float64)
    means = bootstrap_means(table, 50)
    assert (means[:, 0] == 1).all()
    assert (means[~means[:, 1].isnan(), 1] == 5).all()
    assert all(math.isnan(x) for x in interval(bootstrap_means(torch.zeros(0, 1))[:, 0]))


def test_columns_are_drawn_together():
    first = torch.randn(30, 1, dtype=torch.float64)
    means = bootstrap_means(torch.cat([first, first + 0.25], 1))
    torch.testing.assert_close(means[:, 1] - means[:, 0], torch.full((2000,), 0.25, dtype=torch.float64))
