"""`eagleray assess`: a bundle's assessment of files, in this process and without a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..workflows.errors import EaglerayError

if TYPE_CHECKING:
    from ..pipelines.assessing.spec import Assessment
    from ..pipelines.bundle import LoadedBundle

Page = Annotated[
    Path | None,
    typer.Option("--page", help="Write an HTML page of a scan's slices with what was found in them."),
]
Beside = Annotated[
    str | None,
    typer.Option("--text", help="What is known of a picture or a scan, such as a report; for one file."),
]
Segmentation = Annotated[
    Path | None,
    typer.Option("--dicom-seg", help="Write what was found in a scan as a DICOM Segmentation."),
]
Reference = Annotated[
    Path | None,
    typer.Option("--reference", help="How the pictures should look, for a bundle that compares."),
]


def assess_files(
    bundle: LoadedBundle,
    files: Sequence[Path],
    page: Path | None = None,
    segmentation: Path | None = None,
    reference: Path | None = None,
    text: str | None = None,
) -> list[Assessment]:
    """Assess files, one after the other.

    Args:
        bundle: that assesses something.
        files: documents, pictures or volumes, as the bundle takes; a folder is a series of DICOM slices.
        page: where a page of the scan goes; for one file only.
        segmentation: where a DICOM Segmentation of it goes.
        reference: how pictures should look, for a bundle that compares.
        text: that stands beside the picture or the scan; for one file only.

    Raises:
        EaglerayError: when the bundle assesses nothing, or a file isn't there.
    """
    if not bundle.info.assesses:
        raise EaglerayError(
            "the bundle assesses nothing",
            "export a model that was trained with a weight for objective.document or objective.segmentation",
        )
    scans = "volume" in bundle.info.assesses
    if (page or segmentation) and not (scans and len(files) == 1):
        raise EaglerayError(
            "--page and --dicom-seg are of one scan", "name one volume, and a bundle for those"
        )
    marking = bundle.info.marking
    if reference is not None and not (marking is not None and marking.compares):
        raise EaglerayError("the bundle compares nothing", "leave --reference out")
    if text and not (marking is not None and marking.reads_text and len(files) == 1):
        raise EaglerayError(
            "--text is of one picture or scan, beside which the bundle reads one",
            "name one file, and a bundle of a model with vision.reads_text",
        )
    for path in (*files, *([reference] if reference else [])):
        if not path.exists():
            raise EaglerayError("there is no such file", where=str(path))
    if scans:
        return [_scan(bundle, path, page, segmentation, text) for path in files]
    return [_assess(bundle, path, reference, text) for path in files]


def _assess(bundle: LoadedBundle, path: Path, reference: Path | None, text: str | None) -> Assessment:
    from ..pipelines.assessing.documents import DocumentAssessor
    from ..pipelines.assessing.pictures import PictureAssessor
    from ..pipelines.assessing.spec import not_assessable
    from ..pipelines.media.documents import document_text
    from ..pipelines.media.image import whole
    from ..pipelines.quarantine import Refused

    try:
        if "picture" in bundle.info.assesses:
            compared = whole(reference.read_bytes()) if reference is not None else None
            return PictureAssessor(bundle).assess(whole(path.read_bytes()), compared, text)
        return DocumentAssessor(bundle).assess(document_text(path.read_bytes()))
    except Refused as refused:
        return not_assessable(refused)


def _scan(
    bundle: LoadedBundle, path: Path, page: Path | None, segmentation: Path | None, text: str | None
) -> Assessment:
    from ..pipelines.assessing.dicom_seg import dicom_seg, source_series
    from ..pipelines.assessing.spec import NotAssessable, not_assessable
    from ..pipelines.assessing.viewer import viewer
    from ..pipelines.assessing.volumes import VolumeAssessor
    from ..pipelines.media.opening import open_volume
    from ..pipelines.media.volumes import read_series
    from ..pipelines.quarantine import Refused

    source: Any = None
    try:
        if path.is_dir():
            slices = [(one.name, one.read_bytes()) for one in sorted(path.iterdir()) if one.is_file()]
            scan, source = read_series(slices), source_series(slices)
        else:
            scan = open_volume(path.read_bytes())
    except Refused as refused:
        return not_assessable(refused)
    found = VolumeAssessor(bundle).find(scan, text)
    if isinstance(found, NotAssessable):
        return found
    if page is not None:
        page.write_text(viewer(scan, found.assessment), encoding="utf-8")
    if segmentation is not None:
        assert bundle.info.marking is not None
        labels = bundle.info.marking.findings
        segmentation.write_bytes(dicom_seg(found.marked(scan), labels, scan, datetime.now(UTC), source))
    return found.assessment
