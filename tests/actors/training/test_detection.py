"""LUNA16's evaluation on cases whose results are computed by hand, and Dice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.actors.training.detection import RATES, Scan, cpm, dice, froc, judge, report
from eagleray.actors.training.metrics import Bootstrap

HOW = Bootstrap(200, 0.95, 0)


def scan(candidates, nodules=(), excluded=()) -> Scan:
    """Candidates as (x, score), nodules and excluded findings as (x, diameter), all on one line."""

    def on_a_line(pairs):
        pairs = np.array(pairs, float).reshape(-1, 2)
        return np.stack([pairs[:, 0], *[np.zeros(len(pairs))] * 2], axis=1), pairs[:, 1]

    return Scan(*on_a_line(candidates), *on_a_line(nodules), *on_a_line(excluded))


def curve_of(scans):
    return froc([judge(one) for one in scans])


def test_a_hit_lies_within_the_radius_and_not_on_it():
    found = judge(scan([(2.9, 0.7), (-3.0, 0.6), (3.1, 0.5)], [(0, 6)]))
    assert found.hits.tolist() == [0.7]
    assert found.false.tolist() == [0.6, 0.5]


def test_several_hits_count_once_with_the_greatest_score_and_the_rest_is_ignored():
    found = judge(scan([(1, 0.2), (0, 0.9), (-1, 0.4), (50, 0.3)], [(0, 6)]))
    assert found.hits.tolist() == [0.9]
    assert found.false.tolist() == [0.3]


def test_one_candidate_may_hit_two_nodules():
    found = judge(scan([(0, 0.5)], [(-1, 6), (1, 6), (40, 6)]))
    assert (found.hits.tolist(), found.false.tolist(), found.nodules) == ([0.5, 0.5], [], 3)


def test_what_hits_an_excluded_finding_is_ignored_unless_it_hits_a_nodule_as_well():
    found = judge(scan([(20, 0.9), (0, 0.8), (40, 0.7)], [(0, 6)], [(20, 10), (1, 6)]))
    assert found.hits.tolist() == [0.8]
    assert found.false.tolist() == [0.7]


def test_a_curve_computed_by_hand():
    # Sorted: hit .9, false .8, hit .7, false .6, false .5; a third nodule is missed. Two scans.
    scans = [scan([(0, 0.9), (50, 0.8), (60, 0.6)], [(0, 6)]), scan([(0, 0.7), (50, 0.5)], [(0, 6), (30, 6)])]
    curve = curve_of(scans)
    assert curve.false_positives.tolist() == [0, 0, 0.5, 0.5, 1, 1.5]
    np.testing.assert_allclose(curve.sensitivities, [0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert curve.thresholds.tolist() == [np.inf, 0.9, 0.8, 0.7, 0.6, 0.5]
    third = 1 / 3
    np.testing.assert_allclose(
        curve.at(), [third, third, 2 * third, 2 * third, 2 * third, 2 * third, 2 * third]
    )
    assert cpm(curve) == pytest.approx((2 * third + 5 * 2 * third) / 7)


def test_between_two_points_sensitivity_is_linear():
    # At .5 a nodule and a false candidate are tied, and come together: from (0, 0) to (1, 1).
    curve = curve_of([scan([(0, 0.5), (50, 0.5)], [(0, 6)])])
    assert curve.false_positives.tolist() == [0, 1]
    np.testing.assert_allclose(curve.at(), [0.125, 0.25, 0.5, 1, 1, 1, 1])
    assert cpm(curve) == pytest.approx((0.875 + 4) / 7)


def test_scans_without_nodules_or_candidates_count_as_scans():
    found = [scan([(0, 0.9), (50, 0.5)], [(0, 6), (20, 6)]), scan([]), scan([(9, 0.6)]), scan([], [(0, 6)])]
    curve = curve_of(found)
    assert curve.false_positives.tolist() == [0, 0, 0.25, 0.5]
    np.testing.assert_allclose(curve.sensitivities, 1 / 3 * np.array([0, 1, 1, 1]))


def test_without_any_candidate_nothing_is_found():
    assert cpm(curve_of([scan([], [(0, 6)])])) == 0


def test_without_any_nodule_there_is_no_sensitivity():
    with pytest.raises(ValueError, match="no nodule"):
        curve_of([scan([(0, 0.5)])])


def test_perfect_candidates_have_a_cpm_of_one():
    assert cpm(curve_of([scan([(0, 0.5)], [(0, 6)]), scan([(5, 0.2)], [(5, 6)])])) == 1


@given(
    st.lists(st.tuples(st.integers(-30, 30), st.sampled_from([0.1, 0.3, 0.5, 0.9])), max_size=12),
    st.lists(st.tuples(st.integers(-30, 30), st.integers(3, 12)), min_size=1, max_size=4),
)
def test_a_curve_only_grows_and_no_order_of_candidates_matters(candidates, nodules):
    curve = curve_of([scan(candidates, nodules)])
    for one in (curve.false_positives, curve.sensitivities, curve.at()):
        assert (np.diff(one) >= 0).all()
    assert curve.sensitivities[-1] <= 1
    assert cpm(curve_of([scan(candidates[::-1], nodules)])) == pytest.approx(cpm(curve))


def test_a_report_has_the_metric_its_parts_and_intervals_over_patients():
    rng = np.random.default_rng(0)
    scans = [
        scan([(0, rng.random()) for _ in range(patient % 2)] + [(50, rng.random())], [(0, 6)])
        for patient in range(10)
        for _ in range(4)
    ]
    patients = np.repeat(np.arange(10), 4)
    metric = report("cpm", [judge(one) for one in scans], patients, HOW)
    assert metric["value"] == pytest.approx(cpm(curve_of(scans)))
    assert metric["low"] < metric["value"] < metric["high"]
    assert [part["value"] for part in metric["parts"]] == pytest.approx(curve_of(scans).at().tolist())
    assert len(metric["parts"]) == len(RATES)
    free = report(
        "cpm", [judge(one) for one in scans], np.arange(40), HOW
    )  # a patient's scans are found or missed together
    assert metric["high"] - metric["low"] > 1.5 * (free["high"] - free["low"])
    assert report("cpm", [judge(one) for one in scans], patients, HOW) == metric


def test_patients_without_nodules_and_one_patient_alone():
    scans = [scan([(0, 0.9)], [(0, 6)]), scan([(0, 0.5)]), scan([])]
    metric = report("cpm", [judge(one) for one in scans], [0, 1, 2], HOW)
    assert (metric["low"], metric["value"], metric["high"], metric["queries"]) == (1, 1, 1, 1)
    metric = report("cpm", [judge(one) for one in scans], [4, 4, 4], HOW)
    assert (metric["low"], metric["high"]) == (None, None)


def test_dice_by_hand():
    assert dice(np.array([1, 1, 0, 0]), np.array([0, 1, 1, 1])) == pytest.approx(2 / 5)
    assert dice(np.zeros(3), np.zeros(3)) == 1
    assert dice(np.ones(3), np.zeros(3)) == 0
    with pytest.raises(ValueError, match="compared"):
        dice(np.ones(3), np.ones(4))


def test_a_threshold_lets_no_more_false_positives_through_than_asked():
    curve = curve_of([scan([(0, 0.9), (50, 0.8), (60, 0.4)], [(0, 6)]), scan([(70, 0.6)])])
    assert curve.threshold_at(0.5) == 0.8
    assert curve.threshold_at(0.49) == 0.9
    assert curve.threshold_at(99) == 0.4
