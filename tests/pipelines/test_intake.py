"""What is taken over: from a corpus that an earlier run made, and from an attempt that was interrupted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eagleray.pipelines import intake, preparing

from .conftest import Built, Stamps, png


@pytest.fixture
def grown(source_stamps, stamps) -> Stamps:
    """A copy of the 32 records, to change."""
    shutil.copytree(source_stamps.folder, stamps.folder, dirs_exist_ok=True)
    return stamps


def add(stamps: Stamps, number: int) -> None:
    stamps.add(f"things/new/{number}", {".png": png((9, number, 9), (50, 40)), ".txt": b"Something new."})


def test_what_was_there_before_is_not_prepared_again(build, corpus, grown):
    add(grown, 1)
    (grown.folder / "things/drum/red.png").write_bytes(png((1, 2, 3)))
    (grown.folder / "things/drum/blue.txt").write_bytes(b"A drum, blue.")
    (grown.folder / "things/star/red.png").unlink()
    second = build(grown.spec(), earlier=corpus)
    assert second.num_prepared == 3
    assert second.contents == build(grown.spec()).contents


def test_an_unchanged_source_is_not_read_at_all(build, corpus, source_stamps):
    second = build(source_stamps.spec(), earlier=corpus)
    assert second.num_prepared == 0
    assert second.contents == corpus.contents


def test_refused_files_are_taken_over_too(build, grown):
    (grown.folder / "things/drum/red.png").write_bytes(b"no picture")
    (grown.folder / "things/lemon/red_desc_fr.wav").write_bytes(b"")
    first = build(grown.spec(error_budget=3))
    add(grown, 1)
    second = build(grown.spec(error_budget=3), earlier=first)
    assert second.num_prepared == 1
    assert second.facts["quarantined"] == {"empty-audio": 1, "not-an-image": 1}
    assert second.contents == build(grown.spec(error_budget=3)).contents


def test_records_keep_their_split_as_the_corpus_grows(build, corpus, grown):
    for number in range(8):
        add(grown, number)
    second = build(grown.spec(), earlier=corpus)

    def splits(built: Built) -> dict[bytes, str]:
        from eagleray.pipelines.shards import open_split

        return {
            unit: split
            for split in ("train", "val", "test")
            for unit in open_split(built.folder, split).column("unit")["unit"].to_pylist()
        }

    assert splits(corpus).items() <= splits(second).items()
    new = {path for path in second.contents if path.startswith("records/")}
    assert new == {path for path in corpus.contents if path.startswith("records/")}


@given(st.lists(st.integers(0, 12), min_size=1, max_size=3))
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_attempt_cut_short_anywhere_is_taken_up(build, corpus, source_stamps, tmp_path_factory, cuts):
    """Each attempt dies after some blocks; the last one goes through."""
    scratch = tmp_path_factory.mktemp("scratch")
    real = preparing.run

    def dying(units, recipe, parallelism, block_units, blocks):
        for number, block in enumerate(real(units, recipe, parallelism, block_units)):
            if number == blocks:
                raise RuntimeError("killed")
            yield block

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intake, "PART_BYTES", 1)  # what came is on disk
        for blocks in cuts:
            patch.setattr(preparing, "run", lambda *args, blocks=blocks: dying(*args, blocks=blocks))
            try:
                build(source_stamps.spec(block_units=3), scratch=scratch)
            except RuntimeError:
                continue
    done = len(list(Path(scratch, "parts").glob("part-*")))
    last = build(source_stamps.spec(block_units=3), scratch=scratch)
    assert last.contents == corpus.contents
    assert last.num_prepared == max(0, 32 - 3 * done)


def test_every_unit_is_accounted_for(build, grown):
    (grown.folder / "things/drum/red.png").write_bytes(b"no picture")
    built = build(grown.spec(error_budget=3))
    rows = pq.read_table(built.folder / "intake.parquet").to_pylist()
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)
    assert len(rows) == 32
    assert {row["name"]: (row["records"], row["kept"], row["refused"]) for row in rows if row["refused"]} == {
        "things/drum/red.png": (1, 0, 1)
    }
    assert sum(row["kept"] for row in rows) == 31
