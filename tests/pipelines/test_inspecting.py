"""What a corpus's page says is what the corpus holds, counted in another way; nothing on it can run."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eagleray.pipelines.contracts import shard_paths
from eagleray.pipelines.inspecting import inspect
from eagleray.pipelines.page import render
from eagleray.pipelines.spec import SPLITS
from eagleray.pipelines.stages.preprocess import PreprocessSpec

from .conftest import png, sound
from .volume_files import ct, slices, write_series

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 pictures, whose groups are given, with captions in two languages; some broken, some the same."""
    place = tmp_path_factory.mktemp("pictures")
    rows: list[dict[str, str]] = []
    for i in range(120):
        name = f"{'ab'[i % 2]}/{i:03}.png"
        (place / name).parent.mkdir(exist_ok=True)
        same = i % 10 == 7  # the same picture twelve times, in as many groups
        content = (
            png((9, 9, 200), (60, 50)) if same else png((i, 255 - i, i * 2 % 256), (40 + i, 30 + i // 2))
        )
        broken = {3: content[:50], 4: b"no picture \xff\xfe", 5: EVIL.encode(), 6: sound(300, 0.2, "WAV")}
        (place / name).write_bytes(broken.get(i, content))
        said = EVIL if i == 10 else "The same." if i % 30 == 0 else f"Thing number {i}."
        rows.append({"path": name, "caption": said, "es": "" if i % 3 else f"Cosa {i}", "who": f"g{i // 2}"})
    with (place / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return place


@pytest.fixture(scope="module")
def built(build, folder):
    return build(
        PreprocessSpec.model_validate(
            {
                "source": {
                    "kind": "pictures", "path": str(folder), "captions": "captions.csv",
                    "caption_columns": [["en", "caption"], ["es", "es"]], "group_column": "who",
                },
                "preparation": {"image_size": 16, "stored_image_size": 20, "vocab_size": 300,
                                "caption_languages": ["en", "es"], "speech_languages": []},
                "operators": [{"kind": "image-size", "min_side": 31}],
                "splits": {"train": 0.6, "val": 0.2, "test": 0.2},
                "error_budget": 50, "error_budgets": {"image-too-small": 40},
            }
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(built):
    return inspect(built.folder, 4)


def tables(folder: Path) -> dict[str, list[dict]]:
    return {
        split: pa.concat_tables(
            [pa.ipc.open_file(str(path)).read_all() for path in shard_paths(folder, split)]
        ).to_pylist()
        for split in SPLITS
    }


def test_sizes_lengths_languages_and_categories_are_those_of_the_records(built, found):
    rows = tables(built.folder)
    by_name = {one.name: one for one in found.distributions}
    for split, records in rows.items():
        widths = [row["image"]["width"] for row in records]
        summary = by_name["picture width"].splits[split]
        assert summary.count == len(widths) == sum(summary.bars)
        assert summary.median == pytest.approx(np.median(widths))
        assert summary.p95 == pytest.approx(np.percentile(widths, 95))
        assert summary.largest == max(widths)
        lengths = [len(tokens) for row in records for tokens in row["tokens"]]
        assert by_name["caption length"].splits[split].count == len(lengths)
        languages = Counter(one["language"] for row in records for one in row["captions"])
        assert found.languages["captions"][split] == languages
        assert found.categories[split] == Counter(row["category"] for row in records)
        groups = Counter(row["group"] for row in records)
        assert by_name["group size"].splits[split].count == len(groups)


def test_what_stands_in_two_splits_is_found(built, found):
    rows = tables(built.folder)
    shared = {one.kind: one for one in found.shared}
    assert shared["group"].across == 0
    for kind, values_of in {
        "picture": lambda row: [row["image"]["pixels"]],
        "caption": lambda row: [one["text"].lower().rstrip(".") for one in row["captions"]],
    }.items():
        values = {
            split: {one for row in records for one in values_of(row)} for split, records in rows.items()
        }
        counts = Counter(value for each in values.values() for value in each)
        assert shared[kind].across == sum(count > 1 for count in counts.values()) > 0
        assert shared[kind].different == {split: len(each) for split, each in values.items()}
        ids = {row["id"]: split for split, records in rows.items() for row in records}
        for example in shared[kind].examples:
            told = [re.fullmatch(r"(.*) \((\w+)\)", one).groups() for one in example]  # pyright: ignore
            assert len(told) > 1
            assert all(ids[name] == split for name, split in told)
    assert found.near_compared == sum(map(len, rows.values()))
    assert found.near
    assert len(found.leaks) == 3


def test_every_unit_and_every_refusal_is_accounted_for(built, found):
    sums = found.intake
    assert sums["units"] == sums["records"] == 120
    assert sums["records"] == sums["kept"] + sums["refused"] + sums["left_out"]
    quarantine = pq.read_table(built.folder / "quarantine.parquet").to_pylist()
    counts = Counter(row["reason"] for row in quarantine)
    assert {one.reason: one.count for one in found.refusals} == counts
    assert sum(one.broken for one in found.refusals) == 4
    assert all(len(one.samples) == min(4, one.count) for one in found.refusals)


class Reader(HTMLParser):
    """Notes tags and what they refer to, and whether every one is closed."""

    VOID = ("meta", "img", "br", "line")

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs) -> None:
        self.tags[tag] += 1
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_is_whole_and_loads_and_runs_nothing(built):
    everything = inspect(built.folder, 200)
    page = read(render(everything, f"Corpus {EVIL}", ["a run"], 50, {"image-too-small": 40}))
    assert page.tags["script"] == 0
    assert page.handlers == []
    assert page.addresses
    assert all(one.startswith("data:image/png;base64,") for one in page.addresses)
    assert EVIL in page.text  # as text: it is the caption of a record, and the content of a refused file
    assert "at most 40" in page.text
    assert "What is evaluated on may have been trained on" in page.text
    kept = sum(map(len, tables(built.folder).values()))
    small = sum(one.count for one in everything.refusals if one.reason == "image-too-small")
    assert page.tags["img"] == kept + small  # what was refused as too small can be seen; broken ones can't
    assert page.tags["rect"] > 64  # bars, and the wave of the recording that was no picture


def test_the_numbers_are_json(found):
    numbers = json.loads(json.dumps(found.numbers()))
    assert "samples" not in numbers
    assert numbers["leaks"] == found.leaks


def test_speech_is_shown(build, source_stamps):
    found = inspect(build(source_stamps.spec()).folder)
    names = [one.name for one in found.distributions]
    assert "recording" in names
    assert {one.kind for one in found.shared} == {"group", "picture", "caption", "recording"}
    page = read(render(found, "stamps"))
    assert "spectrogram" in render(found, "stamps")
    assert page.tags["figure"] == len(names)


def test_documents_and_volumes_are_shown(build, tmp_path):
    for i in range(8):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / f"texts/{i}.txt").write_text("Words " * (i + 1) + EVIL)
        write_series(tmp_path / f"scans/{i}", slices(ct(seed=i), series=f"1.2.{i}", patient=f"P{i}"))
    texts = {
        "source": {"kind": "documents", "path": str(tmp_path / "texts")},
        "preparation": {"vocab_size": 300},
    }
    scans = {"source": {"kind": "dicom", "path": str(tmp_path / "scans")}}
    for fields, name in ((texts, "document length"), (scans, "slices")):
        found = inspect(build(PreprocessSpec.model_validate(fields)).folder)
        assert name in [one.name for one in found.distributions]
        page = read(render(found, "corpus"))
        assert page.tags["script"] == 0
        assert page.tags["img"] == (8 if name == "slices" else 0)


def test_the_command_writes_the_page_of_a_folder(built, found, tmp_path):
    def run(*words: str) -> str:
        command = [
            str(Path(sys.executable).parent / "eagleray"),
            "corpora",
            "inspect",
            str(built.folder),
            *words,
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
        return done.stdout

    said = run("--output", "pages/a.html")
    assert "the page: pages/a.html" in said
    assert all(f"leakage: {leak}" in said for leak in found.leaks)
    assert read((tmp_path / "pages" / "a.html").read_text("utf-8")).tags["table"] > 3
    assert json.loads(run("--json")) == json.loads(json.dumps(found.numbers()))


def test_memory_does_not_hold_the_pictures(built):
    """Only numbers and hashes stay: a batch at a time is read."""
    import tracemalloc

    tracemalloc.start()
    inspect(built.folder, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 << 20
