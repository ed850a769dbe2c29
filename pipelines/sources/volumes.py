"""A folder of volumes: NIfTI, NRRD and MetaImage, with findings in a table as LUNA16 has them."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from ..files import OUTSIDE, Files
from ..quarantine import Refusal, Refuse, Refused, link_outside
from ..source import Row, Source, SourceSpec, Unit
from ..spec import MAX_VOXELS, Preparation
from ..tables import read_rows

NIFTI = (".nii", ".nii.gz")
NRRD = (".nrrd", ".nhdr")
META = (".mha", ".mhd")


class VolumesSpec(SourceSpec):
    """A folder of volumes: NIfTI, NRRD and MetaImage."""

    kind: Literal["volumes"] = "volumes"
    annotations: str | None = None
    """A CSV, TSV, JSONL or Parquet file of findings, such as LUNA16's `annotations.csv`; none by default."""
    id_column: str = "seriesuid"
    """Its column of volumes: a file's name without what follows the format's dot."""
    position_columns: tuple[str, str, str] = ("coordX", "coordY", "coordZ")
    """Its columns of the finding's centre, in millimetres of patient space (LPS)."""
    diameter_column: str = "diameter_mm"
    """Its column of diameters, in millimetres."""
    label_column: str | None = None
    """Its column of labels; every finding is a `nodule` by default."""
    patients: str | None = None
    """A table that says whose volume is whose; no patient stands in two splits then."""
    patient_columns: tuple[str, str] = ("seriesuid", "patient")
    """That table's columns of volumes and patients."""
    max_voxels: int = Field(default=MAX_VOXELS, ge=1)
    """Voxels from which on a volume is refused."""


def list_units(spec: VolumesSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each volume: its file, and the one with its voxels where that is another."""
    findings = _findings(spec, files)
    patients = _patients(spec, files)
    named: set[str] = set()
    for path, entry in files.entries.items():
        name = _name(path)
        if name is None:
            continue
        named.add(name)
        if entry.version == OUTSIDE:
            yield link_outside("volumes", path)
            continue
        try:
            beside = _beside(files, path)
        except Refused as refused:
            yield Refusal(path, path, "volumes", refused.reason, refused.message)
            continue
        fields: dict[str, Any] = {"findings": findings.get(name, [])}
        if name in patients:
            fields["patient"] = patients[name]
        yield Unit(path, (path, beside) if beside else (path,), fields)
    for name in sorted(findings.keys() - named):
        message = f"{spec.annotations} names it, it is not there"
        yield Refusal(name, name, "volumes", "missing-file", message)


def read(
    spec: VolumesSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The record of a volume; a finding outside of it is refused."""
    from ..media import volumes

    path, *beside = unit.files

    def other(name: str) -> bytes:
        return files.read(beside[0])  # the listing saw that it is the one named

    data = files.read(path)
    lower = path.lower()
    if lower.endswith(NIFTI):
        volume = volumes.read_nifti(data, spec.max_voxels)
    elif lower.endswith(NRRD):
        volume = volumes.read_nrrd(data, other, spec.max_voxels)
    else:
        volume = volumes.read_metaimage(data, other, spec.max_voxels)
    kept: list[Row] = []
    for label, *numbers in unit.fields["findings"]:
        finding = finding_row(label, numbers)
        if volume.holds(numbers[:3]) and numbers[3] > 0:
            kept.append(finding)
        else:
            place = ", ".join(f"{one:g}" for one in numbers[:3])
            refuse(Refused("finding-outside", f"a {label} of {numbers[3]:g} mm at {place} is outside"), path)
    patient = unit.fields.get("patient")
    yield {
        "id": path,
        "group": f"patient {patient}" if patient else f"volume {path}",
        "volume": volume.row(path),
        "findings": kept,
    }


def finding_row(label: str, numbers: list[float]) -> Row:
    """A finding as `contracts.COLUMNS` has it, from x, y, z and diameter."""
    return dict(zip(("label", "x_mm", "y_mm", "z_mm", "diameter_mm"), (label, *numbers), strict=True))


def _name(path: str) -> str | None:
    """A volume's name without folder and ending; None for other files."""
    for ending in (".nii.gz", ".nii", *NRRD, *META):
        if path.lower().endswith(ending):
            return path[: -len(ending)].rpartition("/")[2]
    return None


def _beside(files: Files, path: str) -> str | None:
    """Path of the file with the voxels, if a header names another."""
    from ..media.volumes import HEADER_BYTES, file_beside

    if not path.lower().endswith((".nhdr", ".nrrd", *META)):
        return None
    named = file_beside(files.read(path, 0, HEADER_BYTES))
    if named is None:
        return None
    found = posixpath.normpath(posixpath.join(posixpath.dirname(path), named))
    if found.startswith(("/", "..")) or "\\" in named:
        raise Refused("path-outside", f"the header names {named}, which is outside the folder")
    if found not in files.entries:
        raise Refused("missing-file", f"the header names {named}, which is not there")
    if files.entries[found].version == OUTSIDE:
        raise Refused("link-outside", f"the header names {named}, a link that leads out of the folder")
    return found


def _findings(spec: VolumesSpec, files: Files) -> Mapping[str, list[list[Any]]]:
    found: dict[str, list[list[Any]]] = defaultdict(list)
    if spec.annotations is None:
        return found
    columns = (*spec.position_columns, spec.diameter_column)
    wanted = [spec.id_column, *columns, *([spec.label_column] if spec.label_column else [])]
    for row in read_rows(files, spec.annotations, wanted):
        label = str(row[spec.label_column]) if spec.label_column else "nodule"
        found[str(row[spec.id_column])].append([label, *(_number(row[name]) for name in columns)])
    return found


def _patients(spec: VolumesSpec, files: Files) -> Mapping[str, str]:
    if spec.patients is None:
        return {}
    volume, patient = spec.patient_columns
    return {
        str(row[volume]): str(row[patient]) for row in read_rows(files, spec.patients, spec.patient_columns)
    }


def _number(value: Any) -> float:  # noqa: ANN401 - what a table holds
    """A number; what is none is -1, so that the finding is refused where its volume is read."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return -1.0


SOURCE = Source(
    spec=VolumesSpec,
    summary="a folder of volumes (NIfTI, NRRD, MetaImage), with findings in LUNA16's table",
    columns=lambda spec: ("volume", "findings"),
    list_units=list_units,
    read=read,
)
