"""What is like the corpus stays under the alarm, what isn't raises it, and of few inputs nothing is said."""

import numpy as np
import pytest

from eagleray.actors.serving.drift import ALARM, LEAST, LOOKS_PER_S, WINDOW, Drift, stability
from eagleray.pipelines.bundle import load_bundle
from eagleray.pipelines.statistics import LEAST_ROWS, describe, distribution

from .conftest import NUM_KNOWN, SPANISH

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Clock:
    """Stands still until it is told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def bundle(described_folder):
    return load_bundle(described_folder)


def shifts(bundle, modality, prepared, clock=None):
    """Quantity → index, after a replica was asked these."""
    drift = Drift(bundle, clock or Clock())
    rows = bundle.encode(modality, prepared)
    for row, outputs in zip(prepared, rows, strict=True):
        drift.add(modality, row, outputs)
    told = drift.told()
    assert told is not None
    assert all(one.inputs == min(len(prepared), LEAST) for one in told.shifts)
    return {one.quantity: one.index for one in told.shifts}


def test_inputs_like_the_corpus_raise_no_alarm(bundle, inputs):
    found = {
        **shifts(bundle, "image", [bundle.prepare_image(one) for one in inputs.pictures(1, LEAST)]),
        **shifts(bundle, "text", [bundle.prepare_text(one) for one in inputs.texts(1, LEAST)]),
        **shifts(bundle, "speech", [bundle.prepare_speech(one) for one in inputs.recordings(1, LEAST)]),
    }
    assert {name.partition(".")[0] for name in found} == {"image", "text", "speech"}
    assert max(found.values()) < ALARM


def test_darkened_pictures_another_language_and_slowed_speech_raise_it(bundle, inputs):
    dark = shifts(bundle, "image", [bundle.prepare_image(one) for one in inputs.pictures(1, LEAST, 0.6)])
    assert dark["image.brightness"] > 4 * ALARM
    spanish = shifts(bundle, "text", [bundle.prepare_text(one) for one in inputs.texts(1, LEAST, SPANISH)])
    assert spanish["text.rarity"] > 4 * ALARM
    assert spanish["text.language"] > 4 * ALARM
    slow = [bundle.prepare_speech(one) for one in inputs.recordings(1, LEAST, 1.6)]
    slowed = shifts(bundle, "speech", slow)
    assert slowed["speech.duration_s"] > 4 * ALARM
    assert slowed["speech.motion"] > 4 * ALARM


@pytest.mark.parametrize(("asked", "known"), [(200, 100), (200, 1000), (1000, 300)])
def test_chance_alone_seldom_raises_an_alarm_and_is_none_on_average(asked, known):
    random = np.random.default_rng(0)
    found = []
    for _ in range(400):
        corpus = distribution(random.standard_normal(known).tolist())
        counts = [0] * len(corpus.counts)
        for value in random.standard_normal(asked):
            counts[corpus.bin_of(value)] += 1
        found.append(stability(counts, corpus.counts))
    assert np.mean(np.array(found) >= ALARM) < 0.01
    assert np.mean(found) < 0.05


@pytest.mark.parametrize("moved", [0.5, 1.0])
def test_a_shift_shows_as_much_as_it_is(moved):
    random = np.random.default_rng(0)
    found = []
    for _ in range(50):
        corpus = distribution(random.standard_normal(1000).tolist())
        counts = [0] * len(corpus.counts)
        for value in random.standard_normal(500) + moved:
            counts[corpus.bin_of(value)] += 1
        found.append(stability(counts, corpus.counts))
    # of normal distributions of one width it is the square of how far they are apart, less what bins lose
    assert 0.8 * moved**2 < np.mean(found) < 1.05 * moved**2


def test_of_few_inputs_nothing_is_said(bundle, inputs):
    drift = Drift(bundle, Clock())
    prepared = [bundle.prepare_text(one) for one in inputs.texts(1, LEAST - 1, SPANISH)]
    for row, outputs in zip(prepared, bundle.encode("text", prepared), strict=True):
        drift.add("text", row, outputs)
    told = drift.told()
    assert told.shifts == []
    assert told.looked_at == {"image": 0, "text": LEAST - 1, "speech": 0}


def test_not_each_of_very_many_is_looked_at(bundle, inputs):
    clock = Clock()
    drift = Drift(bundle, clock)
    row = bundle.prepare_text("the frog")
    (outputs,) = bundle.encode("text", [row])
    for _ in range(2 * LEAST):
        drift.add("text", row, outputs)
    assert drift.told().looked_at["text"] == LEAST
    clock.now = 10
    for _ in range(2 * LEAST):
        drift.add("text", row, outputs)
    assert drift.told().looked_at["text"] == LEAST + 10 * LOOKS_PER_S


def test_what_was_asked_long_ago_counts_no_more(bundle, inputs):
    clock = Clock()
    drift = Drift(bundle, clock)

    def ask(texts):
        prepared = [bundle.prepare_text(one) for one in texts]
        for row, outputs in zip(prepared, bundle.encode("text", prepared), strict=True):
            clock.now += 1 / LOOKS_PER_S
            drift.add("text", row, outputs)
        return {one.quantity: one.index for one in drift.told().shifts}

    assert ask(inputs.texts(1, LEAST, SPANISH))["text.language"] > ALARM
    assert max(ask(inputs.texts(2, WINDOW)).values()) < ALARM
    assert drift.told().looked_at["text"] == WINDOW


def test_a_bundle_without_statistics_is_served_without(loaded_bundle):
    drift = Drift(loaded_bundle)
    row = loaded_bundle.prepare_text("the frog")
    drift.add("text", row, loaded_bundle.encode("text", [row])[0])
    assert drift.told() is None


def test_too_few_rows_describe_nothing():
    assert describe([{"length": 1.0}] * (LEAST_ROWS - 1)) == {}


def test_rare_words_share_a_bin_with_unknown_ones():
    found = distribution(["en"] * 96 + ["fr"] * 4)
    assert (found.words, found.counts) == (("en",), (96, 4))
    assert found.bin_of("fr") == found.bin_of("never seen") == 1


def test_bins_hold_about_equally_many():
    found = distribution(np.random.default_rng(0).exponential(size=NUM_KNOWN).tolist())
    assert set(found.counts) == {NUM_KNOWN // 10}
    assert found.bin_of(-1.0) == 0
    assert found.bin_of(1e9) == len(found.counts) - 1
