"""Cutting volumes into patches of their slices, which models of pictures can learn from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from ..operator import Apply, Operator, OperatorSpec
from ..quarantine import Refuse, Refused
from ..source import Row
from ..spec import Preparation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..media.patches import Place
    from ..media.volumes import Volume

BACKGROUND = "background"


class SliceVolumeSpec(OperatorSpec):
    """Cut a volume into patches of its slices, each a picture whose colours are the slice before, its own and
    the one after, with a mask of what is marked in its own.
    """

    kind: Literal["slice-volume"] = "slice-volume"
    size_px: int | None = Field(default=None, ge=8, le=2048)
    """Side of a patch, in voxels; that of the stored picture by default, so that no voxel is resampled."""
    keep: Literal["all", "sampled"] = "sampled"
    """Patches that cover the volume, or some of each finding and some of the background."""
    stride: int | None = Field(default=None, ge=1)
    """Of all: voxels between patches of a slice; their side by default."""
    slice_step: int = Field(default=1, ge=1)
    """Of all: slices between patches."""
    gap: int = Field(default=1, ge=0)
    """Slices between a patch's colours; 0 makes it grey."""
    low_hu: float = -1000.0
    """What becomes 0, of voxels that are not uint8 already."""
    high_hu: float = 400.0
    """What becomes 255, of voxels that are not uint8 already."""
    labels: tuple[str, ...] = Field(default=("nodule",), min_length=1, max_length=255)
    """Regions that the mask shows. A patch's category is the one that it shows most of, else `background`."""
    within: str | None = "lung"
    """Region that every patch of all has a part of, and the middle of each background patch; anywhere where
    the volume has no such region."""
    patches_per_finding: int = Field(default=8, ge=0)
    """Of sampled: patches of each connected piece of a region, moved by a quarter of their side at most."""
    background_patches: int = Field(default=16, ge=0)
    """Of sampled: patches of each volume that no marked region is in, but `within`."""
    hard_share: float = Field(default=0.5, ge=0, le=1)
    """Of background patches, in whose middle is something dense: in lungs, mostly vessels."""

    @model_validator(mode="after")
    def _sound(self) -> SliceVolumeSpec:
        if self.low_hu >= self.high_hu:
            raise ValueError(f"low_hu {self.low_hu:g} is not below high_hu {self.high_hu:g}")
        if len(set(self.labels)) < len(self.labels) or self.within in self.labels:
            raise ValueError("labels must differ from each other and from within")
        return self


def slice_volume(spec: SliceVolumeSpec, preparation: Preparation) -> Apply:
    """`volume` → a record for each patch, with `image`, `mask` and `category`."""
    from ..media.masks import encode
    from ..media.patches import cut, fit, marks_of, named, slab
    from ..media.volumes import of_row

    side = preparation.stored_image_size
    size = spec.size_px or side

    def apply(row: Row, refuse: Refuse) -> list[Row] | None:
        if row["volume"] is None:
            return None
        volume = of_row(row["volume"])
        address: str = row["volume"]["address"]
        marks = marks_of(row, volume, spec.labels)
        patches: list[Row] = []
        for place in _places(spec, row, volume, marks, size):
            pixels = fit(slab(volume.voxels, place, size, spec.gap, (spec.low_hu, spec.high_hu)), side)
            where = f"{address}#slice={place[0]},row={place[1]},column={place[2]}"
            image = {"address": where, "width": size, "height": size, "pixels": pixels.tobytes()}
            mask = None if marks is None else fit(cut(marks[place[0]], place, size), side, is_mask=True)
            category = None if mask is None else named(mask, spec.labels) or BACKGROUND
            shown = None
            if mask is not None and row.get("regions"):
                shown = {"labels": list(spec.labels), "content": encode(mask)}
            patches.append({"image": image, "mask": shown, "category": category})
        if not patches:
            raise Refused("no-patch", "the volume has nothing of what patches are cut from", wanted=True)
        return patches

    return apply


def _places(spec: SliceVolumeSpec, row: Row, volume: Volume, marks: Any, size: int) -> Iterable[Place]:  # noqa: ANN401 - an array or None
    """Where the patches of a volume lie."""
    import numpy as np

    from ..media.patches import all_places, background_places, cut, finding_places, lot, marks_of

    region = marks_of(row, volume, [spec.within]) if spec.within and row.get("regions") else None
    within = region > 0 if region is not None and region.any() else None
    if spec.keep == "all":
        every = all_places(volume.voxels.shape, size, spec.stride or size, spec.slice_step)
        return [one for one in every if within is None or cut(within[one[0]], one, size).any()]
    rng = lot(row["id"])
    found = list(finding_places(marks, size, spec.patches_per_finding, rng)) if marks is not None else []
    avoided = np.zeros(volume.voxels.shape, np.bool_) if marks is None else marks > 0
    if row.get("regions"):
        others = [one for one in row["regions"]["labels"] if one != spec.within]
        other = marks_of(row, volume, others)
        avoided |= other > 0 if other is not None else False
    hard = round(spec.background_patches * spec.hard_share)
    counts = (hard, spec.background_patches - hard)
    return [*found, *background_places(volume.voxels, within, avoided, size, counts, rng)]


SLICE = Operator(
    spec=SliceVolumeSpec,
    summary="cut a volume into patches of its slices, with masks of what is marked",
    needs=lambda spec: ("volume",),
    gives=lambda spec: ("image", "mask", "category"),
    start=slice_volume,
    consumes=("volume", "regions", "findings"),
    splits=True,
)
