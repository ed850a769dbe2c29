"""Bringing volumes to one resolution, and their values into a window."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..operator import Apply, Operator, OperatorSpec
from ..quarantine import Refuse, Refused
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
    """`volume` on another grid, and `regions` with it: the first voxel stays where it is, so that findings
    need no change.

    Linear interpolation; where voxels get larger by a factor s, after a Gaussian of deviation (s - 1) / 2
    voxels, which keeps what is finer than the new grid from showing up as something coarser. A voxel of the
    regions is the nearest old one.
    """
    import math

    import numpy as np
    from scipy.ndimage import affine_transform, gaussian_filter1d

    from ..media.volumes import Volume, of_row

    def apply(row: Row, refuse: Refuse) -> Row | None:
        if row["volume"] is None:
            return None
        volume = of_row(row["volume"])
        steps = np.array(spec.spacing_mm) / volume.spacing_mm
        if np.abs(steps - 1).max() < 1e-6:
            return None
        # As many voxels as have their centres within the volume, or half an old voxel beyond it.
        sizes = np.array(volume.voxels.shape)
        shape = [int(size) for size in np.maximum(1, np.floor((sizes - 0.5) / steps).astype(int) + 1)]
        if math.prod(shape) > spec.max_voxels:
            size = "x".join(str(one) for one in shape)
            raise Refused("volume-too-large", f"resampled, {size} voxels are over {spec.max_voxels:,}")
        values = volume.voxels.astype(np.float32)
        for axis, step in enumerate(steps):
            if step > 1:
                values = gaussian_filter1d(values, (step - 1) / 2, axis, mode="nearest")
        moved = affine_transform(values, steps, output_shape=tuple(shape), order=1, mode="nearest")
        kind = volume.voxels.dtype
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            moved = np.clip(np.rint(moved), limits.min, limits.max)
        changed = Volume(moved.astype(kind), np.array(spec.spacing_mm), volume.origin_mm, volume.direction)
        given: Row = {"volume": changed.row(row["volume"]["address"])}
        if row.get("regions"):
            marked = np.frombuffer(row["regions"]["voxels"], np.uint8).reshape(volume.voxels.shape)
            nearest = affine_transform(marked, steps, output_shape=tuple(shape), order=0, mode="nearest")
            given["regions"] = {"labels": row["regions"]["labels"], "voxels": nearest.tobytes()}
        return given

    return apply


def window_volume(spec: WindowVolumeSpec, preparation: Preparation) -> Apply:
    """`volume` with its values in a window."""
    import dataclasses

    import numpy as np

    from ..media.volumes import of_row

    def apply(row: Row, refuse: Refuse) -> Row | None:
        if row["volume"] is None:
            return None
        volume = of_row(row["volume"])
        share = (volume.voxels.astype(np.float32) - spec.low_hu) / (spec.high_hu - spec.low_hu)
        share = np.clip(share, 0, 1).astype(np.float32)
        voxels = np.rint(share * 255).astype(np.uint8) if spec.dtype == "uint8" else share
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
