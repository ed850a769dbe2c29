"""Steps of tokens: every row once, little padding, and the same training on every mesh."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from eagleray.actors.training.batching import arrange, fill_of, num_rows, round_up
from eagleray.actors.training.certificate import Training
from eagleray.actors.training.certifying import certify
from eagleray.actors.training.data import StepReader
from eagleray.actors.training.estimate import estimate
from eagleray.actors.training.group import run_group
from eagleray.actors.training.loop import TrainingJob
from eagleray.actors.training.mesh import check_batching
from eagleray.actors.training.spec import (
    BatchingSpec,
    CompressionSpec,
    ObjectiveSpec,
    OptimizerSpec,
    ParallelSpec,
    TrainingSpec,
)
from eagleray.pipelines.ledger import read_ledger, verify_checkpoint
from eagleray.pipelines.reading import CorpusReader
from eagleray.pipelines.sequences import Sequences
from eagleray.workflows.errors import EaglerayError

from .conftest import DROPPING, STEPS, USUAL, losses
from .test_certifying import SMALL, part
from .test_topologies import assert_equal

LENGTHS = st.lists(st.tuples(st.integers(0, 600), st.integers(0, 40)), min_size=1, max_size=120).map(np.array)


BOTH, ONE = np.array([1, 1]), np.array([1])


@given(LENGTHS, st.integers(1, 6), st.integers(1, 4), st.floats(0.1, 1.0), st.booleans())
@settings(deadline=None, max_examples=200)
def test_a_step_is_divided_into_groups_of_one_shape(lengths, parts, microbatches, fill, rounds):
    groups = arrange(lengths, BOTH, parts, microbatches, fill, rounds=rounds)
    rows = np.concatenate([group.rows.ravel() for group in groups])
    assert sorted(rows[rows >= 0].tolist()) == list(range(len(lengths)))
    each = np.array([sum((group.rows[p] >= 0).sum() for group in groups) for p in range(parts)])
    assert each.max() - each.min() <= 1
    for group in groups:
        assert group.rows.shape[0] == parts
        assert group.rows.shape[1] % microbatches == 0
        assert (lengths[group.rows[group.rows >= 0]] <= group.lengths).all()
    reached = fill_of(groups, lengths, BOTH)
    closest = fill_of(arrange(lengths, BOTH, parts, microbatches, 1.0, rounds=rounds), lengths, BOTH)
    assert reached >= fill - 1e-9 or reached == pytest.approx(closest)


def test_groups_are_as_few_as_may_be():
    lengths = np.array([[10]] * 8 + [[5]] * 8 + [[1]] * 8)
    assert [len(arrange(lengths, ONE, 1, 1, fill)) for fill in (0.1, 0.9, 1.0)] == [1, 3, 3]


def test_what_takes_no_time_makes_no_groups():
    lengths = np.array([[10, number] for number in range(8)])
    (group,) = arrange(lengths, np.array([1, 0]), 2, 1, 1.0)
    assert group.lengths.tolist() == [10, 7]


@given(st.lists(st.integers(1, 2048), min_size=8, max_size=300), st.integers(2, 8))
def test_parts_have_alike_many_tokens(totals, parts):
    lengths = np.array(totals)[:, None]
    groups = arrange(lengths, ONE, parts, 1, 0.9)
    each = [sum(lengths[group.rows[p][group.rows[p] >= 0]].sum() for group in groups) for p in range(parts)]
    assert max(each) - min(each) <= max(totals)


@given(st.integers(1, 100_000))
def test_lengths_are_rounded_up_by_less_than_an_eighth(length):
    (rounded,) = round_up(np.array([length]))
    assert length <= rounded < length * 9 / 8
    assert round_up(np.array([rounded])) == [rounded]


def test_a_step_is_as_many_rows_as_fit_and_at_least_one():
    assert num_rows(iter([3, 4, 5, 1]), 12, 100) == 3
    assert num_rows(iter([3, 4, 5, 1]), 12, 2) == 2
    assert num_rows(iter([30, 1]), 12, 100) == 1
    assert num_rows(iter([3, 4]), 12, 100) == 2


def job_of(corpus, objective, batching, model=DROPPING, **parallel) -> TrainingJob:
    spec = TrainingSpec(
        kind="pretrain",
        steps=STEPS,
        batching=BatchingSpec(**batching),
        objective=ObjectiveSpec(**objective),
        optimizer=OptimizerSpec(warmup_steps=1),
        checkpoint_every=1,
        precision="fp64",
        parallel=ParallelSpec(**parallel),
    )
    return TrainingJob(spec, model, corpus)


TEXT_ONLY = DROPPING.model_copy(update={"vision": None, "audio": None, "decoder": None})
LANGUAGE = {"contrastive": 0, "language": 1.0}


def test_a_captioned_corpus_is_trained_on_alike_by_any_number_of_workers(corpus_folder, tmp_path):
    def job(**parallel):
        return job_of(corpus_folder, USUAL, {"tokens": 96, "max_tokens": 32}, **parallel)

    expected = run_group(losses, 1, job(), None, tmp_path / "1")[0]
    for reports in run_group(losses, 2, job(data=2), None, tmp_path / "2"):
        assert_equal(reports, expected)
    (reports, _) = run_group(losses, 2, job(pipeline=2, microbatches=2), tmp_path / "2" / "2", tmp_path / "3")
    assert_equal(reports, expected[2:])
    one, other = (read_ledger(tmp_path / name / str(STEPS) / "ledger.json") for name in ("1", "3"))
    assert one == other
    assert one.stop != STEPS * 64
    verify_checkpoint(tmp_path / "3" / str(STEPS), corpus_folder)


def test_long_documents_are_trained_on_whole(documents_folder, tmp_path):
    def job(**parallel):
        return job_of(documents_folder, LANGUAGE, {"tokens": 100, "max_tokens": 40}, TEXT_ONLY, **parallel)

    expected = run_group(losses, 1, job())[0]
    for reports in run_group(losses, 2, job(data=2), None, tmp_path):
        assert_equal(reports, expected)
    ledger = read_ledger(tmp_path / str(STEPS) / "ledger.json")
    assert ledger.max_tokens == 40
    assert ledger.num_records > 4
    verify_checkpoint(tmp_path / str(STEPS), documents_folder)


def test_workers_without_a_row_change_nothing(documents_folder):
    def job(**parallel):
        budget = {"tokens": 100, "max_tokens": 40, "max_rows": 2}
        return job_of(documents_folder, LANGUAGE, budget, TEXT_ONLY, **parallel)

    expected = run_group(losses, 1, job())[0]
    for reports in run_group(losses, 3, job(data=3)):
        assert_equal(reports, expected)


def test_every_token_of_long_documents_is_predicted_once(documents_folder):
    reader = CorpusReader(documents_folder, "train")
    job = job_of(documents_folder, LANGUAGE, {"tokens": 100, "max_tokens": 40}, TEXT_ONLY)
    sequences = Sequences(reader, 40)
    steps = StepReader(sequences, TEXT_ONLY, job.spec, 0)
    start, predicted = 0, 0
    while start < len(sequences):
        step = steps.read(start)
        for batch in (batch for groups in step.passes for batch in groups):
            first = (batch["position"] >= 0) & (batch["position"] < len(sequences))  # of the first epoch
            mask = batch["token_mask"][first]
            predicted += int((mask[:, 1:] & mask[:, :-1]).sum())
        real = sum(int(batch["token_mask"].sum()) for batch in step.passes[0])
        assert real <= 100
        assert step.fill > 0.9
        start = step.stop
    whole = [
        len(one) for one in reader.table(np.arange(len(reader)), ["text_tokens"])["text_tokens"].to_pylist()
    ]
    assert predicted == sum(whole) - len(whole)


def test_the_loss_of_groups_is_that_of_rows_that_are_all_of_one_length():
    """The certificate's one process fills all rows up to the longest, and knows no groups."""
    batching = BatchingSpec(fill=0.99)
    for objective, optimizer, model, parallel in (
        (USUAL, OptimizerSpec(), SMALL, {"data": 2}),
        (USUAL, OptimizerSpec(), SMALL, {"tensor": 2, "vision": {"tensor": 1}}),
        ({"contrastive": 1.0, "alignment": 0.5, "negatives": 0}, OptimizerSpec(), SMALL, {"microbatches": 2}),
        (LANGUAGE, OptimizerSpec(), part(vision=None, audio=None, decoder=None), {"pipeline": 2}),
        (
            {"contrastive": 0, "transcription": 1.0},
            OptimizerSpec(),
            part(vision=None, decoder=None),
            {"data": 2},
        ),
        (
            {"contrastive": 0, "answer": 1.0},
            OptimizerSpec(algorithm="adagrad", compression=CompressionSpec(density=0.3, sources=4)),
            part(audio=None),
            {"data": 2, "sharding": "optimizer"},
        ),
    ):
        spec = TrainingSpec(
            kind="pretrain",
            objective=ObjectiveSpec(**objective),
            optimizer=optimizer,
            parallel=ParallelSpec(**parallel),
            batching=batching,
        )
        found = certify(Training(spec, model))
        assert all(finding.holds for finding in found), (objective, found)


def test_a_plan_takes_the_larger_of_few_long_rows_and_many_short_ones():
    def of(length: int, **size) -> int:
        spec = TrainingSpec(kind="pretrain", objective=ObjectiveSpec(**LANGUAGE), **size)
        return estimate(Training(spec, TEXT_ONLY), length, 300, 1).workers[0].total

    budget = BatchingSpec(tokens=64, max_tokens=32, max_rows=16)
    assert of(32, batching=budget) == max(of(32, batch_size=2), of(4, batch_size=16))


def test_a_caption_that_is_too_long_for_a_sequence_is_refused(corpus_folder):
    info = CorpusReader(corpus_folder, "train").info
    check_batching(BatchingSpec(max_tokens=16), info, "pretrain")
    check_batching(None, info, "pretrain")
    with pytest.raises(EaglerayError, match="a caption is not cut, and may have 16 tokens") as caught:
        check_batching(BatchingSpec(max_tokens=8), info, "pretrain")
    assert "pretrain.batching.max_tokens=16" in caught.value.remedy


def test_rows_and_tokens_are_not_both_given():
    with pytest.raises(ValidationError, match="batch_size and batching"):
        TrainingSpec(kind="pretrain", batch_size=8, batching=BatchingSpec())
    with pytest.raises(ValidationError, match="a sequence of 64 tokens is more than a step's 32"):
        BatchingSpec(tokens=32, max_tokens=64)
