"""Areas under curves, held to scikit-learn's and to cases that are worked out by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from eagleray.actors.training.localisation import (
    RANKS,
    Ranked,
    Region,
    auroc,
    edges_of,
    picture_metric,
    pixel_metrics,
    region_overlap,
)
from eagleray.actors.training.metrics import Bootstrap

HOW = Bootstrap(200, 0.95, 0)


def ranked(scores, edges) -> np.ndarray:
    found = Ranked(edges, 1)
    found.add(np.asarray(scores, np.float32), 0)
    return found.counts[0]


@pytest.mark.parametrize(("count", "tolerance"), [(800, 1e-12), (100_000, 2.0**-15)])
@pytest.mark.parametrize("decimals", [1, 9])
def test_auroc_is_scikit_learns(count, tolerance, decimals):
    rng = np.random.default_rng(0)
    labels = rng.random(count) < 0.1
    scores = np.round(rng.normal(size=count) + labels, decimals).astype(np.float32)
    edges = edges_of(scores)
    assert len(edges) <= RANKS
    found = auroc(ranked(scores[labels], edges), ranked(scores[~labels], edges))
    assert found == pytest.approx(roc_auc_score(labels, scores), abs=tolerance)


def overlap(normal, *regions) -> float:
    edges = edges_of(np.concatenate([normal, *regions]).astype(np.float32))
    shares = sum(ranked(one, edges) / len(one) for one in regions)
    return region_overlap(shares, ranked(normal, edges), len(regions))


def test_overlap_of_regions_that_stand_above_all_else_is_one():
    assert overlap(np.zeros(10), [1, 1], [2.0]) == pytest.approx(1)


def test_overlap_counts_small_regions_as_large_ones():
    # the large region is above all that is normal, the small one below
    assert overlap(np.linspace(1, 2, 11), [3] * 100, [0]) == pytest.approx(0.5)


def test_overlap_rises_along_the_false_positives():
    # all scores are distinct: 0.1, 0.2 and 0.3 of what is normal are reached at 9, 7 and 5, the region's two
    # pixels at 8 and 6: its share is 0 up to 0.1, a half up to 0.2, then whole
    normal = [9, 7, 5, 4.5, 4, 3.5, 3, 2, 1, 0]
    steps = [(0.0, 0.0), (0.1, 0.0), (0.1, 0.5), (0.2, 0.5), (0.2, 1.0), (0.3, 1.0)]
    x, y = np.array(steps).T
    assert overlap(normal, [8, 6]) == pytest.approx(np.trapezoid(y, x) / 0.3)


def test_overlap_beyond_the_limit_does_not_count():
    assert overlap(np.arange(10.0), [5.5]) == pytest.approx(0)  # 40 % of what is normal are above
    assert overlap(np.arange(10.0), [6.5]) == pytest.approx(0, abs=1e-9)
    assert overlap(np.arange(10.0), [7.5]) == pytest.approx(1 / 3)


def test_pictures_and_pixels_of_one_group_are_resampled_together():
    rng = np.random.default_rng(1)
    groups = np.repeat([0, 1, 2], 30)
    defective = np.arange(90) % 2 == 0
    highest = (rng.normal(size=90) + defective * np.repeat([3, 1, 0], 30)).astype(np.float32)
    found = picture_metric(highest, defective, groups, HOW)
    assert found["value"] == pytest.approx(roc_auc_score(defective, highest))
    each = [roc_auc_score(defective[groups == n], highest[groups == n]) for n in range(3)]
    assert found["low"] == pytest.approx(min(each), abs=0.05)
    assert found["low"] < found["value"] < found["high"]
    alone = picture_metric(highest, defective, np.zeros(90, np.int64), HOW)
    assert (alone["low"], alone["value"]) == (None, found["value"])


def test_pixels_are_those_of_regions_and_of_all_pictures():
    rng = np.random.default_rng(2)
    normal = [rng.normal(size=500).astype(np.float32) for _ in range(6)]
    regions = [
        Region((rng.normal(size=20 * (n + 1)) + 2).astype(np.float32), n % 3, "hole") for n in range(4)
    ]
    groups = np.array([0, 0, 1, 1, 2, 2])
    area, overlap = pixel_metrics(normal, groups, regions, HOW)
    scores = np.concatenate([*normal, *(one.scores for one in regions)])
    labels = np.arange(len(scores)) >= 3000
    assert area["value"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert (area["queries"], overlap["queries"]) == (200, 4)
    assert overlap["low"] <= overlap["value"] <= overlap["high"]
    assert 0.5 < overlap["value"] < 1
