"""Sources of speech: LibriSpeech's layout, Common Voice's, and a folder with transcripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagleray.pipelines.reading import CorpusReader
from eagleray.pipelines.sources import common_voice, librispeech, transcripts
from eagleray.pipelines.sources.common_voice import CommonVoiceSpec
from eagleray.pipelines.sources.librispeech import LibrispeechSpec
from eagleray.pipelines.sources.transcripts import TranscriptsSpec
from eagleray.pipelines.stages.preprocess import PreprocessSpec
from eagleray.workflows.errors import EaglerayError

from ..conftest import PREPARATION, sound


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


LIBRISPEECH = {
    "train/84/121/84-121-0000.flac": b"one",
    "train/84/121/84-121-0001.flac": b"two",
    "train/84/121/84-121.trans.txt": b"84-121-0000 GO DO YOU HEAR\n84-121-0001 BUT IN LESS\n",
    "train/99/7/99-7-0000.flac": b"three",
    "train/99/7/99-7.trans.txt": b"",
    "train/BOOKS.TXT": b"no recording",
}


def test_librispeech_gives_utterances_with_transcript_and_speaker(folder, read_source):
    write(folder, LIBRISPEECH)
    reading = read_source(librispeech.SOURCE, LibrispeechSpec(), folder)
    assert [unit.name for unit in reading.units] == ["train/84/121", "train/99/7"]
    assert reading.records["84-121-0001"] == {
        "id": "84-121-0001",
        "group": "speaker 84",
        "captions": [{"language": "en", "text": "BUT IN LESS"}],
        "recordings": [{"language": "en", "address": "train/84/121/84-121-0001.flac", "content": b"two"}],
    }
    assert reading.records["99-7-0000"]["captions"] == []
    assert reading.refusals == [("train/99/7/99-7-0000.flac", "missing-caption")]


def test_librispeech_transcripts_in_another_encoding_are_refused_and_speech_stays(folder, read_source):
    write(folder, {"1/2/1-2-0.flac": b"one", "1/2/1-2.trans.txt": b"1-2-0 \xe9"})
    reading = read_source(librispeech.SOURCE, LibrispeechSpec(), folder)
    assert ("1/2/1-2.trans.txt", "caption-not-utf8") in reading.refusals
    assert list(reading.records) == ["1-2-0"]


def test_common_voice_gives_sentences_with_speakers(folder, read_source, tmp_path):
    lines = [
        "client_id\tpath\tsentence\tlocale",
        "s1\ta.mp3\tBonjour.\tfr",
        "s1\tgone.mp3\tAdieu.\tfr",
        "s2\tb.mp3\t\tca",
        "s2\ta.mp3\tEncore.\tfr",
        "s3\tlink.mp3\tHola.\tes",
    ]
    write(folder, {"fr/train.tsv": "\n".join(lines).encode(), "fr/clips/a.mp3": b"1", "fr/clips/b.mp3": b"2"})
    (tmp_path / "secret").write_bytes(b"")
    (folder / "fr/clips/link.mp3").symlink_to(tmp_path / "secret")
    reading = read_source(common_voice.SOURCE, CommonVoiceSpec(table="fr/train.tsv"), folder)
    assert reading.records["fr/clips/a.mp3"]["captions"] == [{"language": "fr", "text": "Bonjour."}]
    assert reading.records["fr/clips/b.mp3"]["captions"] == []
    assert {row["group"] for row in reading.records.values()} == {"speaker s1", "speaker s2"}
    assert sorted(reading.refusals) == [
        ("fr/clips/a.mp3", "duplicate-id"),
        ("fr/clips/gone.mp3", "missing-file"),
        ("fr/clips/link.mp3", "link-outside"),
    ]


def test_common_voice_without_the_column_says_which(folder, read_source):
    write(folder, {"validated.tsv": b"client_id\tpath\nx\ty\n"})
    with pytest.raises(EaglerayError, match="has no locale, sentence"):
        read_source(common_voice.SOURCE, CommonVoiceSpec(), folder)


def test_a_transcript_stands_beside_its_recording(folder, read_source):
    write(
        folder,
        {
            "a.wav": b"1",
            "a.txt": b"One\n two.",
            "b/c.FLAC": b"2",
            "d.ogg": b"3",
            "d.txt": b"\xff",
            "e.mp3": b"4",
            "e.txt": b" ",
        },
    )
    reading = read_source(transcripts.SOURCE, TranscriptsSpec(language="es"), folder)
    assert reading.records["a.wav"]["captions"] == [{"language": "es", "text": "One two."}]
    assert [name for name, row in reading.records.items() if not row["captions"]] == [
        "b/c.FLAC",
        "d.ogg",
        "e.mp3",
    ]
    assert reading.refusals == [
        ("b/c.txt", "missing-caption"),
        ("d.txt", "caption-not-utf8"),
        ("e.txt", "missing-caption"),
    ]


def test_transcripts_may_stand_in_a_table_with_speakers(folder, read_source):
    table = b"file,said,who\nx/a.wav,One.,ann\nx/b.wav,,bob\nx/gone.wav,Three.,ann\n"
    write(folder, {"t/table.csv": table, "t/x/a.wav": b"1", "t/x/b.wav": b"2", "t/x/unnamed.wav": b"3"})
    spec = TranscriptsSpec(table="t/table.csv", path_column="file", text_column="said", speaker_column="who")
    reading = read_source(transcripts.SOURCE, spec, folder)
    assert {name: row["group"] for name, row in reading.records.items()} == {
        "t/x/a.wav": "speaker ann",
        "t/x/b.wav": "speaker bob",
    }
    assert sorted(reading.refusals) == [("t/x/b.wav", "missing-caption"), ("t/x/gone.wav", "missing-file")]


def test_a_corpus_of_speech_alone_can_be_read_and_no_speaker_stands_in_two_splits(folder, build):
    files = {}
    for speaker in range(12):
        lines = []
        for number in range(3):
            name = f"{speaker}-1-{number:04d}"
            files[f"{speaker}/1/{name}.flac"] = sound(200 + 30 * speaker, 0.2 + 0.05 * number, "FLAC")
            lines.append(f"{name} HELLO NUMBER {number} OF {speaker}")
        files[f"{speaker}/1/{speaker}-1.trans.txt"] = "\n".join(lines).encode()
    write(folder, files)
    source = {"kind": "librispeech", "path": str(folder)}
    built = build(PreprocessSpec.model_validate({"source": source, "preparation": PREPARATION}))
    speakers: dict[str, set[str]] = {}
    total = 0
    for split in ("train", "val", "test"):
        reader = CorpusReader(built.folder, split)
        import numpy as np

        rows = np.arange(len(reader))
        batch = reader.examples(rows, None)
        assert not batch["present"][:, 0].any()
        assert batch["present"][:, 1:].all()
        assert (batch["label"] == -1).all()
        speakers[split] = {name.split("-")[0] for name in reader.ids}
        total += len(reader)
    assert total == 36
    assert sum(map(len, speakers.values())) == 12
