import numpy as np
import pytest

from eagleray.actors.training.metrics import Bootstrap, report, shown

HOW = Bootstrap(1000, 0.95, 0)


def test_interval_of_groups_is_wider_than_of_independent_records():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    values = np.repeat(rng.integers(0, 2, 20), 10).astype(float)  # records of a group agree
    low, high = HOW.interval(values, np.ones(200), groups)
    free_low, free_high = HOW.interval(values, np.ones(200), np.arange(200))
    assert high - low > 2 * (free_high - free_low)
    assert low <= values.mean() <= high


def test_a_weighted_metric_is_a_ratio_of_sums():
    metric = report("bits", [8.0, 2.0], [0, 1], 8.0, HOW, weights=[1.0, 4.0], unit="bits")
    assert metric["value"] == pytest.approx(2.0)
    assert (metric["low"], metric["high"]) == pytest.approx((0.5, 8.0))
    assert shown(metric) == "bits: 2.000 bits [0.500 bits, 8.000 bits], chance 8.000 bits"


def test_one_group_says_nothing_about_others():
    metric = report("share", [1.0, 0.0], [3, 3], 0.5, HOW)
    assert (metric["low"], metric["high"]) == (None, None)
    assert shown(metric) == "share: 50.0% [?], chance 50.0%"
