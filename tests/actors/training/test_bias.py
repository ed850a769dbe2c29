"""Metrics by language and by described group."""

import numpy as np
import pytest

from eagleray.actors.training.bias import Parts, flagged_texts, read_parts, texts_of
from eagleray.actors.training.metrics import Bootstrap, report
from eagleray.pipelines.reading import CorpusReader

HOW = Bootstrap(200, 0.95, 0)


@pytest.fixture(scope="module")
def reader(corpus_folder):
    return CorpusReader(corpus_folder, "train")


def test_parts_are_what_captions_and_speech_say(reader):
    parts = read_parts(reader, {"frogs": "FROG", "nobody": "xyzzy"})
    captions = [dict(said)["en"] for said in texts_of(reader)]
    assert parts.described["frogs"].tolist() == ["frog" in one for one in captions]
    assert not parts.described["nobody"].any()
    spoken = [number for number, name in enumerate(reader.ids) if int(name[-6:-4]) % 4]
    assert [number for number, one in enumerate(parts.languages) if one == "es"] == spoken
    assert set(parts.languages) == {"es", None}


def test_language_counts_only_where_something_is_spoken():
    parts = Parts(["fr", None, "es", "fr"], {"a": np.array([True, False, True, False])})
    assert list(parts.of([3, 2])) == ["group a"]
    found = parts.of([3, 2, 1], spoken=True)
    assert {name: mask.tolist() for name, mask in found.items()} == {
        "group a": [False, True, False],
        "language es": [False, True, False],
        "language fr": [True, False, False],
    }


def test_parts_that_share_all_make_the_whole():
    values, half = np.arange(10.0) / 10, np.arange(10) < 4
    metric = report(
        "m", values, range(10), 0.5, HOW, parts={"first": half, "rest": ~half, "none": half & ~half}
    )
    first, rest = metric["parts"]  # of nothing there is nothing to tell
    assert (first["queries"], rest["queries"]) == (4, 6)
    assert metric["value"] == pytest.approx((4 * first["value"] + 6 * rest["value"]) / 10)
    assert first["low"] <= first["value"] <= first["high"]


def test_texts_that_are_flagged_are_told_by_language(reader):
    parts = read_parts(reader, {"frogs": "frog"})
    (metric,) = flagged_texts(reader, lambda text: text.startswith("Un "), parts, HOW)
    by = {one["name"]: one["value"] for one in metric["parts"]}
    assert (by["language es"], by["language en"], by["group frogs"]) == (1.0, 0.0, 0.5)
    assert metric["value"] == 0.5
