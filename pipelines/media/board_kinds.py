"""Names of what bare boards have, for specs. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal, TypeAlias

DefectKind: TypeAlias = Literal[
    "open", "short", "mouse-bite", "spur", "spurious-copper", "pin-hole", "scratch"
]
"""DeepPCB's six (Tang et al. 2019), and what scratches the solder mask; sizes stand in `board_defects`."""
DEFECT_KINDS: tuple[DefectKind, ...] = (
    "open", "short", "mouse-bite", "spur", "spurious-copper", "pin-hole", "scratch",
)  # fmt: skip
SolderMask: TypeAlias = Literal["green", "blue", "red", "black"]
Finish: TypeAlias = Literal["gold", "tin"]
"""Of copper that solder mask leaves open."""
LayerKind: TypeAlias = Literal["outline", "copper", "soldermask", "silkscreen", "drill"]
LAYER_KINDS: tuple[LayerKind, ...] = ("outline", "copper", "soldermask", "silkscreen", "drill")
