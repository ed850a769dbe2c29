"""Sources in packages of registries: CIFAR-10's sheets, emoji, Asterisk's prompts, composed scenes."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import rdata
import soundfile
from PIL import Image

from eagleray.pipelines.sources import asterisk, cifar10, emoji, janeausten, scenes
from eagleray.pipelines.sources.asterisk import AsteriskSpec, parse_transcripts
from eagleray.pipelines.sources.cifar10 import CATEGORIES, Cifar10Spec
from eagleray.pipelines.sources.emoji import EmojiSpec
from eagleray.pipelines.sources.janeausten import JaneAustenSpec
from eagleray.pipelines.sources.scenes import COLOURS, NUMBERS, ScenesSpec

from ..conftest import NOUNS, Stamps, png


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_a_row_of_a_sheet_is_a_picture_with_its_label(tmp_path, read_source):
    rows = np.random.default_rng(0).integers(0, 256, (6, 3, 32 * 32, 3), dtype=np.uint8)
    for name, sheet in zip(cifar10.SHEETS, rows, strict=True):
        Image.fromarray(sheet).save(tmp_path / name)
    (tmp_path / "train_lables.json").write_text(json.dumps([number % 10 for number in range(15)]))
    (tmp_path / "test_lables.json").write_text("[9, 8, 7]")
    reading = read_source(cifar10.SOURCE, Cifar10Spec(), tmp_path)
    assert len(reading.records) == 18
    record = reading.records["data_batch_3/00001"]
    assert record["category"] == CATEGORIES[7]  # the eighth picture of training
    assert np.array_equal(pixels_of(record["picture"]["content"]), rows[2, 1].reshape(32, 32, 3))
    assert reading.records["test_batch/00002"]["category"] == CATEGORIES[7]


def test_a_sheet_that_is_none_and_one_that_is_missing_are_refused(tmp_path, read_source):
    Image.new("RGB", (100, 2)).save(tmp_path / "data_batch_1.png")
    (tmp_path / "train_lables.json").write_text("[]")
    reading = read_source(cifar10.SOURCE, Cifar10Spec(), tmp_path)
    assert ("data_batch_1.png", "not-a-sheet") in reading.refusals
    assert ("test_batch.png", "missing-file") in reading.refusals


def test_emoji_have_names_and_keywords_and_tones_are_one_group(tmp_path, read_source):
    (tmp_path / "assets").mkdir()
    picture = io.BytesIO()
    Image.new("RGBA", (8, 8), (200, 30, 30, 255)).save(picture, "WEBP")
    for code in ("1f44b", "1f44b-1f3fb", "1f970", "ffff"):
        (tmp_path / "assets" / f"{code}.webp").write_bytes(picture.getvalue())
    hand = {"hexcode": "1F44B", "label": "waving hand", "tags": ["hello", "wave"]}
    light = {"hexcode": "1F44B-1F3FB", "label": "waving hand: light skin tone"}
    table = [{**hand, "skins": [light]}, {"hexcode": "1F970", "label": "smiling face"}]
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "data.json").write_text(json.dumps(table))
    reading = read_source(emoji.SOURCE, EmojiSpec(path=str(tmp_path)), tmp_path)
    assert set(reading.records) == {"1f44b", "1f44b-1f3fb", "1f970"}
    assert [one["text"] for one in reading.records["1f44b"]["captions"]] == [
        "waving hand",
        "waving hand: hello, wave",
    ]
    assert reading.records["1f44b-1f3fb"]["group"] == reading.records["1f44b"]["group"]
    assert [one["text"] for one in reading.records["1f970"]["captions"]] == ["smiling face"]


def r_data(folder: Path, objects: dict[str, object]) -> None:
    """Write R's database of lazily loaded objects."""
    database, places = b"", {}
    for name, value in objects.items():
        raw = rdata.unparser.unparse_data(rdata.conversion.convert_python_to_r_data(value))
        packed = len(raw).to_bytes(4, "big") + zlib.compress(raw)
        places[name] = np.array([len(database), len(packed)], np.int32)
        database += packed
    (folder / janeausten.DATABASE).write_bytes(database)
    index = rdata.conversion.convert_python_to_r_data({"variables": places, "compressed": True})
    (folder / janeausten.INDEX).write_bytes(gzip.compress(rdata.unparser.unparse_data(index)))


def test_novels_are_read_out_of_r(tmp_path, read_source):
    r_data(tmp_path, {"emma": np.array(["EMMA", "", "Handsome, clever"]), "number": np.array([1.5])})
    reading = read_source(janeausten.SOURCE, JaneAustenSpec(), tmp_path)
    assert reading.records["emma"]["text"] == "EMMA\n\nHandsome, clever"
    assert reading.refusals == [(janeausten.DATABASE, "not-a-text")]


def test_what_is_no_database_of_r_is_refused(tmp_path, read_source):
    assert read_source(janeausten.SOURCE, JaneAustenSpec(), tmp_path).refusals == [
        (janeausten.INDEX, "missing-file")
    ]
    r_data(tmp_path, {"emma": np.array(["EMMA"])})
    (tmp_path / janeausten.DATABASE).write_bytes(b"\0" * 100)
    assert read_source(janeausten.SOURCE, JaneAustenSpec(), tmp_path).refusals == [
        (janeausten.DATABASE, "not-a-text")
    ]
    (tmp_path / janeausten.INDEX).write_bytes(gzip.compress(b"nothing"))
    assert read_source(janeausten.SOURCE, JaneAustenSpec(), tmp_path).refusals == [
        (janeausten.INDEX, "not-an-index")
    ]


def g722(wave: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16_000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
        frame.rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def test_prompts_are_decoded_and_go_with_what_they_say(tmp_path, read_source):
    tone = (9000 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)).astype(np.int16)
    sounds, docs = tmp_path / "sounds/en", tmp_path / "doc"
    for name in ("activated", "digits/1", "beep", "nameless"):
        path = sounds / f"{name}.g722"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(g722(tone))
    docs.mkdir()
    table = "; prompts\n\nactivated: Activated.\ndigits/1: one\nbeep: [this is a simple beep tone]\n"
    (docs / asterisk.TABLE).write_bytes(gzip.compress(table.encode()))
    reading = read_source(asterisk.SOURCE, AsteriskSpec(path=str(tmp_path)), tmp_path)
    assert {name: row["captions"][0]["text"] for name, row in reading.records.items()} == {
        "sounds/en/activated.g722": "Activated.",
        "sounds/en/digits/1.g722": "one",
    }
    assert reading.refusals == [("sounds/en/nameless.g722", "missing-caption")]
    wave, rate = soundfile.read(
        io.BytesIO(reading.records["sounds/en/activated.g722"]["recordings"][0]["content"])
    )
    assert rate == 16_000
    assert np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave) == pytest.approx(440, abs=2)


def test_what_is_no_sound_is_refused(tmp_path, read_source):
    (tmp_path / "a.g722").write_bytes(b"")
    (tmp_path / asterisk.TABLE).write_bytes(gzip.compress(b"a: A.\n"))
    reading = read_source(asterisk.SOURCE, AsteriskSpec(path=str(tmp_path)), tmp_path)
    assert reading.refusals == [("a.g722", "not-audio")]


def test_transcripts_are_lines_of_name_and_text():
    assert parse_transcripts("; x: y\n a/b:  One: two.  \nplain\n") == {"a/b": "One: two."}


@pytest.fixture
def stamps(tmp_path: Path) -> Stamps:
    found = Stamps(tmp_path / "stamps")
    for i, noun in enumerate(NOUNS):
        found.add(f"things/{noun}", {".png": png((120, 120 + i, 120)), ".txt": f"A {noun}.\n".encode()})
    found.add("things/other", {".png": png(), ".txt": b"A large red house.\n"})  # more than one word
    found.add("things/frog2", {".png": png(), ".txt": b"A frog.\n"})  # a second frog: which is meant?
    return found


def test_scenes_are_composed_of_things_with_one_stamp(stamps, read_source):
    reading = read_source(scenes.SOURCE, ScenesSpec(scenes=40, things=6), stamps.folder)
    assert len(reading.records) == 3 * 40
    names = " ".join(row["captions"][0]["text"] for row in reading.records.values())
    assert "frog" not in names
    again = read_source(scenes.SOURCE, ScenesSpec(scenes=40, things=6), stamps.folder)
    assert again.records == reading.records
    assert {row["category"] for row in reading.records.values()} == {"colour", "location", "count"}


def test_answers_are_what_the_picture_shows(stamps, read_source):
    reading = read_source(scenes.SOURCE, ScenesSpec(scenes=40), stamps.folder)
    for unit in reading.units:
        picture = pixels_of(reading.records[f"{unit.name}/count"]["picture"]["content"]).astype(int)
        many, one = unit.fields["many"], unit.fields["one"]
        changed = np.abs(picture - unit.fields["background"]).max(axis=2) > 8
        cells = {
            4 * y + x
            for y in range(4)
            for x in range(4)
            if changed[16 * y : 16 * y + 16, 16 * x : 16 * x + 16].any()
        }
        assert cells == {*many["cells"], *one["cells"]}
        assert reading.records[f"{unit.name}/count"]["answer"] == NUMBERS[len(cells) - 2]
        (cell,) = one["cells"]
        vertical, horizontal = reading.records[f"{unit.name}/location"]["answer"].split()
        assert (vertical == "top") == (cell < 8)
        assert (horizontal == "left") == (cell % 4 < 2)
        asked = unit.fields[unit.fields["asked"]]
        assert reading.records[f"{unit.name}/colour"]["answer"] == asked["colour"]
        y, x = divmod(asked["cells"][0], 4)
        middle = picture[16 * y + 7 : 16 * y + 9, 16 * x + 7 : 16 * x + 9].mean(axis=(0, 1))
        tint = np.array(COLOURS[asked["colour"]], float)
        assert np.argmax(middle) in np.flatnonzero(tint >= tint.max() - 30)


def test_a_folder_without_things_is_refused(tmp_path, read_source):
    reading = read_source(scenes.SOURCE, ScenesSpec(), tmp_path)
    assert reading.refusals[0][1] == "missing-file"
