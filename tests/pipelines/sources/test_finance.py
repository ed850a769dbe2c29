"""Financial texts: Reuters news, Financial PhraseBank, FiQA."""

from __future__ import annotations

import json

from eagleray.pipelines.sources import financial_phrasebank, fiqa, reuters
from eagleray.pipelines.sources.financial_phrasebank import FinancialPhraseBankSpec
from eagleray.pipelines.sources.fiqa import FiqaSpec
from eagleray.pipelines.sources.reuters import ReutersSpec

HEAD = "Category\tText\nd\tstring\nclass\t\n\t\n"


def test_news_keep_their_topic_and_their_part(tmp_path, read_source):
    (tmp_path / "reuters-r8-train.tab").write_text(f"{HEAD}earn\tnet up reuter \n\tno topic\ntrade\t \n")
    (tmp_path / "reuters-r8-test.tab").write_text(f"{HEAD}acq\tbuys a unit reuter")
    (tmp_path / "reuters-r52-train.tab").write_text(f"{HEAD}cocoa\tbahia")
    reading = read_source(reuters.SOURCE, ReutersSpec(), tmp_path)
    assert {name: (row["group"], row["category"], row["text"]) for name, row in reading.records.items()} == {
        "train/1": ("train/1", "earn", "net up reuter"),
        "test/1": ("test/1", "acq", "buys a unit reuter"),
    }
    assert [reason for _, reason in reading.refusals] == ["empty-record", "empty-record"]


def test_a_part_that_is_missing_is_named(tmp_path, read_source):
    (tmp_path / "reuters-r52-train.tab").write_text(f"{HEAD}cocoa\tbahia")
    reading = read_source(reuters.SOURCE, ReutersSpec(topics="r52"), tmp_path)
    assert list(reading.records) == ["train/1"]
    assert reading.refusals == [("reuters-r52-test.tab", "missing-file")]


def test_sentences_of_the_phrasebank(tmp_path, read_source):
    lines = (
        "Sales at user@home rose .@positive\nNokian t\xe4ytt\xe4@neutral\nno label\nA@bullish\n@negative\n"
    )
    (tmp_path / "FinancialPhraseBank-v1.0").mkdir()
    (tmp_path / "FinancialPhraseBank-v1.0/Sentences_75Agree.txt").write_bytes(lines.encode("latin-1"))
    reading = read_source(financial_phrasebank.SOURCE, FinancialPhraseBankSpec(agreement="75"), tmp_path)
    assert [(row["text"], row["category"]) for row in reading.records.values()] == [
        ("Sales at user@home rose .", "positive"),
        ("Nokian t\xe4ytt\xe4", "neutral"),
    ]
    assert [reason for _, reason in reading.refusals] == ["bad-line"] * 3
    missing = read_source(financial_phrasebank.SOURCE, FinancialPhraseBankSpec(), tmp_path)
    assert missing.refusals == [("Sentences_AllAgree.txt", "missing-file")]


def test_a_text_about_two_companies_is_two_records(tmp_path, read_source):
    about = [
        {"target": "Tesco", "sentiment_score": "-0.4"},
        {"target": "Aldi", "sentiment_score": "0.02"},
        {"target": "Lidl"},
    ]
    found = {"1": {"sentence": "Tesco loses to Aldi", "info": about}, "2": {"sentence": "nobody"}}
    (tmp_path / "task1_headline_ABSA_train.json").write_text(json.dumps(found))
    (tmp_path / "other.json").write_text("[")
    reading = read_source(fiqa.SOURCE, FiqaSpec(neutral=0.05), tmp_path)
    assert [(row["group"], row["category"]) for row in reading.records.values()] == [
        ("tesco", "negative"),
        ("aldi", "neutral"),
    ]
    assert sorted(reason for _, reason in reading.refusals) == ["bad-record", "bad-record", "not-fiqa"]
