"""Every record is used exactly once in each epoch, by any number of workers, through resizes and crashes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagleray.pipelines.ledger import Ledger, Tally, corpus_digest, read_ledger, usage, verify
from eagleray.pipelines.order import rows_at, share
from eagleray.pipelines.reading import CorpusReader
from eagleray.workflows.errors import EaglerayError

RANKS = st.sampled_from([1, 2, 3, 5, 6, 8, 16])


@dataclass
class Training:
    """A training that loses everything but its last checkpoint when it crashes."""

    num_records: int
    seed: int
    checkpoint: Ledger = field(init=False)
    used: list[list[int]] = field(default_factory=list)
    """Rows by checkpoint."""

    def __post_init__(self) -> None:
        self.checkpoint = Ledger(corpus="c", split="train", num_records=self.num_records, seed=self.seed)

    def run(self, ranks: int, steps: int, batch_size: int, every: int) -> None:
        """Go on from the checkpoint with so many workers; what comes after the last multiple is lost."""
        cursor, since = self.checkpoint.stop, []
        tallies = [Tally() for _ in range(ranks)]
        for step in range(1, steps + 1):
            for rank in range(ranks):
                start, stop = share(cursor, cursor + batch_size, rank, ranks)
                rows, _ = rows_at(self.seed, self.num_records, start, stop)
                tallies[rank].add(range(start, stop), [f"id {row}" for row in rows])
                since += rows.tolist()
            cursor += batch_size
            if step % every == 0:
                totals = [tally.total for tally in tallies]
                self.checkpoint = self.checkpoint.extended(cursor, cursor // batch_size, totals)
                self.used.append(since)
                tallies, since = [Tally() for _ in range(ranks)], []


def ids(rows):
    return [f"id {row}" for row in rows]


@given(
    st.integers(1, 3000),
    st.integers(0, 2**32),
    st.lists(
        st.tuples(RANKS, st.integers(0, 6), st.integers(1, 200), st.integers(1, 3)), min_size=1, max_size=8
    ),
)
@settings(deadline=None, max_examples=100)
def test_no_schedule_of_resizes_and_crashes_loses_or_repeats_a_record(num_records, seed, schedule):
    training = Training(num_records, seed)
    for phase in schedule:
        training.run(*phase)
    counts = Counter(row for rows in training.used for row in rows)
    least, most = usage(training.checkpoint)
    assert counts.total() == training.checkpoint.stop
    assert {counts[row] for row in range(num_records)} <= {least, most}
    verify(training.checkpoint, ids)


def test_the_ledger_is_the_same_for_any_number_of_workers():
    ledgers = set()
    for ranks in (1, 6, 8, 16):
        training = Training(500, 3)
        training.run(ranks, 8, 48, 4)
        ledgers.add(training.checkpoint.model_dump_json())
    assert len(ledgers) == 1


@given(st.integers(0, 400), RANKS)
def test_shares_are_a_partition(count, ranks):
    parts = [share(7, 7 + count, rank, ranks) for rank in range(ranks)]
    assert [position for part in parts for position in range(*part)] == list(range(7, 7 + count))
    sizes = [stop - start for start, stop in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.fixture
def ledger():
    training = Training(300, 1)
    training.run(4, 9, 64, 3)
    return training.checkpoint


def changed(ledger: Ledger, number: int, **fields) -> Ledger:
    entries = list(ledger.entries)
    entries[number] = entries[number].model_copy(update=fields)
    return ledger.model_copy(update={"entries": tuple(entries)})


def test_a_record_used_twice_or_left_out_is_found(ledger):
    for row in (0, 17, 299):
        swapped = lambda rows, row=row: [f"id {(one + 1) % 300 if one == row else one}" for one in rows]  # noqa: E731
        with pytest.raises(EaglerayError, match="other records were used"):
            verify(ledger, swapped)


def test_a_changed_ledger_is_found(ledger):
    with pytest.raises(EaglerayError, match="chain is broken"):
        verify(changed(ledger, 1, total="0" * 32), ids)
    with pytest.raises(EaglerayError, match="gap or an overlap"):
        verify(changed(ledger, 1, start=ledger.entries[1].start + 1), ids)
    without = ledger.model_copy(update={"entries": ledger.entries[1:]})
    with pytest.raises(EaglerayError, match="gap or an overlap"):
        verify(without, ids)
    with pytest.raises(EaglerayError, match="other records"):
        verify(ledger.model_copy(update={"seed": 2}), ids)


def test_a_ledger_survives_its_file(ledger, tmp_path):
    (tmp_path / "ledger.json").write_text(ledger.model_dump_json())
    assert read_ledger(tmp_path / "ledger.json") == ledger
    with pytest.raises(EaglerayError, match="no ledger"):
        read_ledger(tmp_path / "none.json")


def test_a_real_corpus_is_recomputed(corpus):
    reader = CorpusReader(corpus.folder, "train")
    ledger = Ledger(corpus=corpus_digest(corpus.folder), split="train", num_records=len(reader), seed=5)
    for start in range(0, 90, 30):
        tallies = [Tally(), Tally()]
        for rank, tally in enumerate(tallies):
            part = share(start, start + 30, rank, 2)
            tally.add(range(*part), reader.ids_of(rows_at(5, len(reader), *part)[0]))
        ledger = ledger.extended(start + 30, start // 30 + 1, [tally.total for tally in tallies])
    verify(ledger, reader.ids_of)
    assert usage(ledger) == (90 // len(reader), 90 // len(reader) + 1)
