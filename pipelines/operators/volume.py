"""Bringing volumes to one resolution, and their values into a window."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..operator import Apply, Operator, OperatorSpec
from ..quarantine import Refuse
from ..source import Row
from ..spec import MAX_VOXELS, Preparation


class ResampleVolumeSpec(OperatorSpec):
    """Resample a volume to other distances between voxels; what is made coarser is smoothed first."""

    kind: Literal["resample-volume"] = "resample-volume"
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Distances along depth, height and width."""
    max_voxels: int = Field(default=MAX_VOXELS, ge=1)
    """Voxels from which on the result is refused."""

    @model_validator(mode="after")
    def _positive(self) -> ResampleVolumeSpec:
        if not all(0.01 <= one <= 100 for one in self.spacing_mm):
            raise ValueError("spacing_mm must be 0.01 to 100")
        return self


class WindowVolumeSpec(OperatorSpec):
    """Cut a volume's values to a window of Hounsfield units and scale it to the whole range of a type."""

    kind: Literal["window-volume"] = "window-volume"
    low_hu: float = -1000.0
    """What becomes 0: air, by default."""
    high_hu: float = 400.0
    """What becomes 255, or 1: about bone, by default (Setio et al. 2017)."""
    dtype: Literal["uint8", "float32"] = "uint8"
    """uint8 from 0 to 255, or float32 from 0 to 1."""

    @model_validator(mode="after")
    def _ordered(self) -> WindowVolumeSpec:
        if self.low_hu >= self.high_hu:
            raise ValueError(f"low_hu {self.low_hu:g} is not below high_hu {self.high_hu:g}")
        return self


def resample_volume(spec: ResampleVolumeSpec, preparation: Preparation) -> Apply:
    """`volume` on another grid, and `regions` with it; see `media.resampling`. The first voxel stays where it
    is, so that findings need no change.
    """
    import numpy as np

    from ..media.resampling import resample, resample_marks
    from ..media.volumes import of_row

    def apply(row: Row, refuse: Refuse) -> Row | None:
        if row["volume"] is None:
            return None
        volume = of_row(row["volume"])
        changed = resample(volume, spec.spacing_mm, spec.max_voxels)
        if changed is volume:
            return None
        given: Row = {"volume": changed.row(row["volume"]["address"])}
        if row.get("regions"):
            marked = np.frombuffer(row["regions"]["voxels"], np.uint8).reshape(volume.voxels.shape)
            nearest = resample_marks(marked, volume.spacing_mm.tolist(), changed)
            given["regions"] = {"labels": row["regions"]["labels"], "voxels": nearest.tobytes()}
        return given

    return apply


def window_volume(spec: WindowVolumeSpec, preparation: Preparation) -> Apply:
    """`volume` with its values in a window."""
    import dataclasses

    from ..media.resampling import share_of_window, to_bytes
    from ..media.volumes import of_row

    scale = to_bytes if spec.dtype == "uint8" else share_of_window

    def apply(row: Row, refuse: Refuse) -> Row | None:
        if row["volume"] is None:
            return None
        volume = of_row(row["volume"])
        voxels = scale(volume.voxels, spec.low_hu, spec.high_hu)
        return {"volume": dataclasses.replace(volume, voxels=voxels).row(row["volume"]["address"])}

    return apply


RESAMPLE = Operator(
    spec=ResampleVolumeSpec,
    summary="resample a volume, to 1 mm by default",
    needs=lambda spec: ("volume",),
    gives=lambda spec: ("volume",),
    start=resample_volume,
)
WINDOW = Operator(
    spec=WindowVolumeSpec,
    summary="cut a volume's values to a window of Hounsfield units",
    needs=lambda spec: ("volume",),
    gives=lambda spec: ("volume",),
    start=window_volume,
)
