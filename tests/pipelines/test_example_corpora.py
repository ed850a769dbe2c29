"""Every example of a source makes a corpus of small files in that source's format."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from deltalake import write_deltalake
from PIL import Image

from eagleray.pipelines.stages.preprocess import PreprocessSpec

from .chest_files import write_chest
from .conftest import Stamps, png, sound
from .sources.test_edgar import submission
from .sources.test_volumes import lidc_xml, square
from .volume_files import ORIGIN, ct, slices, write_itk, write_series

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "corpora").glob("*.yaml"))
COUNT = 12
CAPTIONS = [f"A disc of the colour number {i}." for i in range(COUNT)]
PICTURES = [png((20 * i, 255 - 20 * i, 90), (60 + i, 50)) for i in range(COUNT)]
WORDS = [
    "the",
    "company",
    "had",
    "to",
    "look",
    "at",
    "state",
    "of",
    "things",
    "and",
    "that",
    "was",
    "use",
    "with",
]


def prose(seed: int, words: int = 200) -> str:
    chosen = np.random.default_rng(seed).choice(WORDS, words).tolist()
    return " ".join(f"{word}." if i % 12 == 11 else word for i, word in enumerate(chosen))


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def coco(folder: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.png", "width": 60 + i, "height": 50} for i in range(COUNT)]
    boxes = [{"image_id": i, "category_id": 1, "bbox": [2, 3, 20, 10]} for i in range(COUNT)]
    said = [{"image_id": i, "caption": CAPTIONS[i]} for i in range(COUNT)]
    instances = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "disc"}]}
    write(folder / "annotations/instances_val2017.json", json.dumps(instances))
    captions = {"images": images, "annotations": said}
    write(folder / "annotations/captions_val2017.json", json.dumps(captions))
    for i in range(COUNT):
        write(folder / f"val2017/{i}.png", PICTURES[i])


def common_voice(folder: Path) -> None:
    lines = ["client_id\tpath\tsentence\tlocale"]
    for i in range(COUNT):
        lines.append(f"speaker{i}\t{i}.wav\t{CAPTIONS[i]}\tca")
        write(folder / f"clips/{i}.wav", sound(200 + 20 * i, 0.3, "WAV"))
    write(folder / "validated.tsv", "\n".join(lines))


def deeppcb(folder: Path) -> None:
    for i in range(COUNT // 2):
        stem = f"PCBData/group{i}/{i}/{i}"
        scan = Image.fromarray(np.pad(np.full((20, 30 + i), 255, np.uint8), 9))
        for ending in ("test", "temp"):
            scan.save(io_path(folder / f"{stem}_{ending}.jpg"))
        write(folder / f"PCBData/group{i}/{i}_not/{i}.txt", "2 3 12 9 1\n")
    write(folder / "PCBData/trainval.txt", "group0/0/0.jpg group0/0_not/0.txt\n")


def io_path(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def delta(folder: Path) -> None:
    write_deltalake(str(folder), pa.table({"id": CAPTIONS, "image": PICTURES, "caption": CAPTIONS}))


def dicom(folder: Path) -> None:
    for i in range(COUNT):
        write_series(folder / f"s{i}", slices(ct(seed=i), series=f"1.2.{i}", patient=f"P{i}"))
        marks = [[[(ORIGIN[2] + 5, square(2, 3, 4))]]] * 3
        write(folder / f"s{i}/marks.xml", lidc_xml(f"1.2.{i}", marks))


def documents(folder: Path) -> None:
    for i in range(COUNT):
        page = f"<html><body><p>{prose(i)}</p></body></html>"
        write(folder / f"{i}.{'html' if i % 2 else 'txt'}", page if i % 2 else prose(i))


def edgar(folder: Path) -> None:
    for i in range(COUNT):
        items = [
            f"<p>Item {number}. {title}</p><p>{prose(100 * i + place)}</p>"
            for place, (number, title) in enumerate(TITLES)
        ]
        page = f"<html><body>{''.join(items)}</body></html>"
        accession = f"{i + 1:010d}-23-000001"
        text = submission(cik=f"{i + 1:010d}", accession=accession, text=page)
        write(folder / f"{i}/10-K/{accession}/full-submission.txt", text)


TITLES = (("1", "Business"), ("1A", "Risk Factors"), ("7", "Management's Discussion and Analysis"))


def huggingface(folder: Path) -> None:
    files = [{"bytes": one, "path": None} for one in PICTURES]
    table = pa.table({"image": files, "label": [i % 2 for i in range(COUNT)]})
    folder = folder / "train"
    folder.mkdir(parents=True)
    with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)


def inserted_nodules(folder: Path) -> None:
    write_chest(folder)


def librispeech(folder: Path) -> None:
    for i in range(COUNT):
        write(folder / f"{i}/1/{i}-1-0000.flac", sound(200 + 20 * i, 0.3, "FLAC"))
        write(folder / f"{i}/1/{i}-1.trans.txt", f"{i}-1-0000 {CAPTIONS[i].upper()}")


def mvtec_ad(folder: Path) -> None:
    for i in range(COUNT):
        place = ("train/good", "test/good", "test/crack")[i % 3]
        write(folder / f"nut/{place}/{i:03d}.png", PICTURES[i])
        if place == "test/crack":
            mask = Image.new("L", (60 + i, 50))
            mask.paste(255, (5, 6, 9, 20))
            mask.save(io_path(folder / f"nut/ground_truth/crack/{i:03d}_mask.png"))


def parquet(folder: Path) -> None:
    folder.mkdir()
    pq.write_table(pa.table({"key": CAPTIONS, "image": PICTURES, "caption": CAPTIONS}), folder / "a.parquet")


def pictures(folder: Path) -> None:
    lines = ["path,caption", *(f"{i}.png,{CAPTIONS[i]}" for i in range(COUNT))]
    write(folder / "captions.csv", "\n".join(lines))
    for i in range(COUNT):
        write(folder / f"{i}.png", PICTURES[i])


def transcripts(folder: Path) -> None:
    for i in range(COUNT):
        write(folder / f"{i}.wav", sound(200 + 20 * i, 0.3, "WAV"))
        write(folder / f"{i}.txt", CAPTIONS[i])


def voc(folder: Path) -> None:
    for i in range(COUNT):
        write(folder / f"JPEGImages/{i}.png", PICTURES[i])
        box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>12</ymax></bndbox>"
        size = f"<size><width>{60 + i}</width><height>50</height><depth>3</depth></size>"
        inside = f"<filename>{i}.png</filename>{size}<object><name>disc</name>{box}</object>"
        write(folder / f"Annotations/{i}.xml", f"<annotation>{inside}</annotation>")


def volumes(folder: Path) -> None:
    lines = ["seriesuid,coordX,coordY,coordZ,diameter_mm"]
    for i in range(COUNT):
        write_itk(folder / f"subset0/1.2.{i}.mhd", ct(seed=i))
        lines.append(f"1.2.{i},{','.join(map(str, ORIGIN))},4.5")
    write(folder / "annotations.csv", "\n".join(lines))


def financial_phrasebank(folder: Path) -> None:
    lines = [f"{one} It rose.@{'positive' if i % 2 else 'neutral'}" for i, one in enumerate(CAPTIONS[:COUNT])]
    write(folder / "Sentences_75Agree.txt", "\n".join(lines))


def fiqa(folder: Path) -> None:
    found = {
        str(i): {"sentence": one, "info": [{"target": f"Company {i}", "sentiment_score": "0.3"}]}
        for i, one in enumerate(CAPTIONS[:COUNT])
    }
    write(folder / "task1_headline_ABSA_train.json", json.dumps(found))


def webdataset(folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as archive:
        for i in range(COUNT):
            for ending, content in (("png", PICTURES[i]), ("txt", CAPTIONS[i].encode())):
                info = tarfile.TarInfo(f"{i}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


MAKERS: dict[str, Callable[[Path], None]] = {
    "coco": coco, "common-voice": common_voice, "deeppcb": deeppcb, "delta": delta, "dicom": dicom,
    "documents": documents, "edgar": edgar, "financial-phrasebank": financial_phrasebank, "fiqa": fiqa,
    "huggingface": huggingface, "inserted-nodules": inserted_nodules,
    "librispeech": librispeech,
    "mvtec-ad": mvtec_ad, "parquet": parquet,
    "pictures": pictures, "transcripts": transcripts, "voc": voc, "volumes": volumes,
    "webdataset": webdataset,
}  # fmt: skip


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_makes_a_corpus(build, path, tmp_path):
    stage = yaml.safe_load(path.read_text("utf-8"))["stages"]["corpus"]
    source = stage["source"]
    expected = COUNT
    if source["kind"] == "mixture":
        for name, part in source["parts"].items():
            part["path"] = str(tmp_path / name)
            if part["kind"] == "tuxpaint":
                part["digest"] = None
                Stamps(tmp_path / name).fill()
            else:
                MAKERS[part["kind"]](tmp_path / name)
        expected = 2 * COUNT + 32
    else:
        source["path"] = str(tmp_path / "data")
        MAKERS[source["kind"]](tmp_path / "data")
    stage["splits"] = {"train": 0.8, "val": 0.1, "test": 0.1}
    if path.stem == "inserted-nodules":
        source |= {"variants": 2, "empty_share": 0, "nodules": [1, 1], "diameter_mm": [6, 15]}
        expected = 3 * 2 * (8 + 16)  # patches of the nodule and of the background
    built = build(PreprocessSpec.model_validate(stage))
    records = sum(split["records"] for split in built.facts["splits"].values())
    assert records == (len(TITLES) * COUNT if path.stem == "edgar" else expected)
    assert built.facts["quarantined"] == {}
